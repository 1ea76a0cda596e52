"""Loading: how a new leader reads the whole fleet. Nobody else can write meanwhile, since the epoch is its own."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from aism_engine.domain.agents.agent import AGENT_TABLE, Hold
from aism_engine.domain.commands.command import COMMAND_TABLE
from aism_engine.domain.commands.group import GROUP_TABLE
from aism_engine.domain.fleet import Fleet
from aism_engine.store.client import Client, naming_outages
from aism_engine.store.keys import Keys
from aism_engine.store.records import Records, agent_of, command_of, group_of, text

_AUDIT_PAGE: Final = 100
_CAUSES: Final = 10_000
"""How many messages of the past a new leader reads, at least, to know a second copy: an arbitrary number. A commit of a
busy fleet holds hundreds, that of a quiet one holds one.
"""


class LoadedFleet(NamedTuple):
    fleet: Fleet
    ledger: str
    """The id of the last commit."""
    damaged: int
    """How many records of agents could not be read."""


async def load_fleet(client: Client, keys: Keys, recent_ids: int) -> LoadedFleet:
    """Read all of it; raises `ServerUnavailableError`."""
    records = Records(client)
    with naming_outages():
        ledger = await client.get(keys.ledger)
        agent_ids = [text(member) for member in await client.smembers(keys.index)]
        deadlines = dict(await client.zrange(keys.deadlines, 0, -1, withscores=True))
        hold = await client.hget(keys.holds, "fleet")
    agents = [agent async for agent in records.each(agent_ids, keys.agent, AGENT_TABLE.fields, agent_of)]
    command_ids, group_ids = list(_named(deadlines, "command")), list(_named(deadlines, "group"))
    commands = [
        command
        async for command in records.each(command_ids, keys.command, COMMAND_TABLE.fields, command_of)
        if command.open
    ]
    groups = [group async for group in records.each(group_ids, keys.group, GROUP_TABLE.fields, group_of)]
    held = Hold(hold.decode()) if hold in {b"pause", b"drain"} else Hold.NONE
    fleet = Fleet(agents, commands, groups, hold=held, recent_ids=recent_ids)
    for agent_id in _named(deadlines, "stay"):
        if (agent := fleet.agents.get(agent_id)) is not None:
            agent.stay_until = deadlines[f"stay:{agent_id}".encode()]
    for agent_id, cause in await _causes(client, keys):
        fleet.mark_seen(agent_id, cause)
    return LoadedFleet(fleet, ledger.decode() if ledger else "", len(agent_ids) - len(agents))


def _named(members: Iterable[bytes], kind: str) -> Iterator[str]:
    """Give the names of those deadlines that are of one kind."""
    for member in members:
        found, _, name = text(member).partition(":")
        if found == kind:
            yield name


async def _causes(client: Client, keys: Keys) -> list[tuple[str, str]]:
    """Read whose messages were heard last, by their ids, the oldest first."""
    causes: list[tuple[str, str]] = []
    last = b"+"
    while len(causes) < _CAUSES:
        with naming_outages():
            entries = await client.execute_command("XREVRANGE", keys.audit, last, "-", "COUNT", _AUDIT_PAGE)
        for _, fields in entries:  # redis-py has made a dict of them
            causes += reversed(_heard(fields))
        if len(entries) < _AUDIT_PAGE:
            break
        last = b"(" + entries[-1][0]
    return causes[::-1]


class _Cause(msgspec.Struct):
    """Of a fact, what tells that its agent has said something, and that it was applied."""

    event: str
    agent_id: str = ""
    by: str = ""
    cause: str = ""

    @property
    def tells(self) -> bool:
        return self.by == "agent" and self.event != "dead_letter_added" and "" not in {self.agent_id, self.cause}


_FACTS = msgspec.json.Decoder(list[_Cause])
_HEARD = msgspec.json.Decoder(list[tuple[str, str]])


def _heard(entry: Mapping[bytes, bytes]) -> list[tuple[str, str]]:
    """Read one entry of the audit; one that is none of ours tells nothing."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        facts = _FACTS.decode(entry.get(b"facts", b"[]"))
        heard = _HEARD.decode(entry.get(b"message_ids", b"[]"))
        return [*((fact.agent_id, fact.cause) for fact in facts if fact.tells), *heard]
    return []
