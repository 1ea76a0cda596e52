"""Loads the whole fleet for a new leader. The leader holds the newest epoch, so no other engine writes meanwhile."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from aism_engine.domain.fleet import Fleet
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.records import AGENTS, COMMANDS, GROUPS, each_record, read_fleet_hold, text

_AUDIT_PAGE: Final = 100
_MIN_MESSAGE_IDS: Final = 10_000
"""Minimum number of message ids that a new leader reads, if the audit has that many: an arbitrary number.

The limit counts ids and not audit entries: an entry of a busy fleet has hundreds of ids, an entry of a quiet fleet one.
"""


class LoadedFleet(NamedTuple):
    fleet: Fleet
    ledger: str
    """Id of the last commit."""
    damaged: int
    """Number of agent records that could not be read."""


async def load_fleet(client: Client, keys: Keys, recent_ids: int) -> LoadedFleet:
    """Load agents, open commands, groups and recent message ids. Raises `ServerUnavailableError`.

    `recent_ids` is the number of message ids that the fleet remembers per agent, to recognize duplicates.
    """
    ledger = await client.get(keys.ledger)
    agent_ids = [text(member) for member in await client.smembers(keys.index)]
    deadlines = dict(await client.zrange(keys.deadlines, 0, -1, withscores=True))
    held = await read_fleet_hold(client, keys)
    agents = [agent async for agent in each_record(client, agent_ids, keys.agent, AGENTS)]
    commands = each_record(client, _names(deadlines, "command"), keys.command, COMMANDS)
    open_commands = [command async for command in commands if command.open]
    groups = [group async for group in each_record(client, _names(deadlines, "group"), keys.group, GROUPS)]
    fleet = Fleet(agents, open_commands, groups, held=held, recent_ids=recent_ids)
    for agent in agents:
        agent.stay_until = deadlines.get(f"stay:{agent.agent_id}".encode(), 0.0)
    for agent_id, message_id in await _recent_message_ids(client, keys):
        fleet.mark_seen(agent_id, [message_id])
    return LoadedFleet(fleet, ledger.decode() if ledger else "", len(agent_ids) - len(agents))


def _names(members: Iterable[bytes], kind: str) -> Iterator[str]:
    """Return the names of the deadlines of one kind."""
    for member in members:
        found, _, name = text(member).partition(":")
        if found == kind:
            yield name


async def _recent_message_ids(client: Client, keys: Keys) -> list[tuple[str, str]]:
    """Read the last applied messages from the audit, oldest first: the agent and the id of each message."""
    message_ids: list[tuple[str, str]] = []
    last = b"+"
    while len(message_ids) < _MIN_MESSAGE_IDS:
        entries = await client.execute_command("XREVRANGE", keys.audit, last, "-", "COUNT", _AUDIT_PAGE)
        for _, fields in entries:
            message_ids += reversed(_message_ids_of(fields))
        if len(entries) < _AUDIT_PAGE:
            break
        last = b"(" + entries[-1][0]
    return message_ids[::-1]


class _Cause(msgspec.Struct):
    """The fields of a fact that identify the message that caused it."""

    event: str
    agent_id: str = ""
    by: str = ""
    cause: str = ""


_FACTS = msgspec.json.Decoder(list[_Cause])
_MESSAGE_IDS = msgspec.json.Decoder(list[tuple[str, str]])


def _message_ids_of(entry: Mapping[bytes, bytes]) -> list[tuple[str, str]]:
    """Read the message ids of an audit entry. An entry that cannot be decoded has none: another client wrote it."""
    with suppress(ValueError, RecursionError):
        facts = _FACTS.decode(entry.get(b"facts", b"[]"))
        message_ids = _MESSAGE_IDS.decode(entry.get(b"message_ids", b"[]"))
        applied = [fact for fact in facts if fact.by == "agent" and fact.event != "dead_letter_added"]
        caused = [(fact.agent_id, fact.cause) for fact in applied if fact.agent_id and fact.cause]
        return caused + message_ids
    return []
