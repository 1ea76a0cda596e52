"""Reads of a fleet: single lookups, and scans that read everything a page at a time.

What agents write to their own keys is read with a limit of bytes, and so are the fields of records. Requests, replies
and dead letters are read whole. Each method raises `ServerUnavailableError` while the server cannot serve; none
retries.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from aism_engine.clock import Clock
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.commands.command import Command
from aism_engine.domain.commands.group import Group
from aism_engine.domain.effects import DeadLetter
from aism_engine.domain.protocol.messages import Labels
from aism_engine.domain.protocol.names import is_state_name, is_type_name
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.records import (
    COMMANDS,
    GROUPS,
    NO_VALUE,
    chunks,
    each_record,
    read_measurements,
    read_records,
    text,
)
from aism_engine.store.scripts import PEEK_HEADS, READ_SNAPSHOTS
from aism_engine.store.server_time import ServerTime

T = TypeVar("T")

_HEAD_BYTES: Final = 192
"""Bytes of a body that are enough to read its id: the id is the first field, of at most 128 characters."""


class FleetReader:
    """Reads one fleet."""

    def __init__(self, client: Client, keys: Keys, clock: Clock) -> None:
        self.keys = keys
        self._client = client
        self._clock = clock
        self.time = ServerTime(clock)

    @property
    def now(self) -> float:
        """Instant for decisions, in unix seconds of the server: see store/server_time.py."""
        return self.time.now

    async def read_time(self) -> float:
        """Read the server's time, correct `self.time` by it, and return `self.time.now`."""
        asked_at = self._clock.monotonic()
        seconds, microseconds = await self._client.execute_command("TIME")
        self._observe_time(seconds, microseconds, asked_at)
        return self.time.now

    def _observe_time(self, seconds: bytes, microseconds: bytes, asked_at: float) -> None:
        self.time.observe(int(seconds) + int(microseconds) / 1_000_000, asked_at)

    # --- agents -------------------------------------------------------------------------------------------------------

    async def snapshots(self, agent_ids: Collection[str]) -> dict[str, AgentSnapshot]:
        """Read what agents write themselves. A value that has the wrong type or is too long counts as absent."""
        if not agent_ids:
            return {}
        keys = [self.keys.heartbeats, self.keys.index]
        for agent_id in agent_ids:
            keys += (self.keys.metadata(agent_id), self.keys.state(agent_id), self.keys.agent(agent_id))
        found = await READ_SNAPSHOTS(self._client, keys, list(agent_ids))
        return {agent_id: _snapshot(*values) for agent_id, values in zip(agent_ids, found, strict=True)}

    async def measurements(self, agent_ids: Collection[str]) -> dict[str, dict[str, float]]:
        """Read the latest value of each measurement of these agents."""
        return await read_measurements(self._client, agent_ids, self.keys.agent_measurements)

    async def silent_agents(self) -> dict[str, float]:
        """Read which agents are marked as silent, and since when. A key of the wrong type counts as empty."""
        found = await _unless_wrong_type(self._client.zrange(self.keys.silent, 0, -1, withscores=True))
        return {text(member): score for member, score in found or ()}

    async def unread_counts(self, agent_ids: Collection[str]) -> dict[str, int]:
        """Count the messages in each agent's inbox and those that wait for it; a key of the wrong type counts as empty.

        Waiting messages are counted first, so that one released meanwhile counts twice and is never missed.
        """
        keys, ids = self.keys, list(agent_ids)
        if not ids:
            return {}
        lengths = await self.read_lengths(("LLEN", name(each)) for name in (keys.mail, keys.inbox) for each in ids)
        both = zip(ids, lengths[: len(ids)], lengths[len(ids) :], strict=True)
        return {agent_id: (waiting or 0) + (unread or 0) for agent_id, waiting, unread in both}

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    async def heartbeat_scores(self, agent_ids: Collection[str]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for ids in chunks(list(agent_ids)):
            found.update(zip(ids, await self._client.zmscore(self.keys.heartbeats, ids), strict=True))
        return found

    async def heartbeats_outside(self, low: float, high: float, chunk: int) -> tuple[dict[str, float], float]:
        """Read the heartbeats whose score is before `low` or after `high`, which are in seconds.

        An agent may write its score in seconds or in milliseconds. So the scores between `low` and `high`, and those
        between `1000 * low` and `1000 * high`, are recent and not read. All scores outside these two ranges are read.
        Return also how many seconds the slowest round trip took.
        """
        spans = (("-inf", f"({low}"), (f"({high}", f"({low * 1000}"), (f"({high * 1000}", "+inf"))
        found, slowest_s = dict[str, float](), 0.0
        unread = [(span, 0) for span in spans]
        while unread:  # one round trip reads a page of each span
            began = self._clock.monotonic()
            pages = await self._client.execute_commands(
                ("ZRANGEBYSCORE", self.keys.heartbeats, *span, "WITHSCORES", "LIMIT", offset, chunk)
                for span, offset in unread
            )
            slowest_s = max(slowest_s, self._clock.monotonic() - began)
            scores = [_scores(page) for page in pages]
            for each in scores:
                found.update(each)
            spans_read = zip(unread, scores, strict=True)
            unread = [(span, offset + chunk) for (span, offset), page in spans_read if len(page) == chunk]
        return found, slowest_s

    async def heartbeat_count(self) -> int:
        return int(await self._client.zcard(self.keys.heartbeats))

    async def scan_heartbeats(self, cursor: int, chunk: int) -> tuple[int, dict[str, float]]:
        """Read a page of all heartbeats. A cursor of 0 begins the scan; a returned cursor of 0 ends it."""
        cursor, page = await self._client.zscan(self.keys.heartbeats, cursor, count=chunk)
        return int(cursor), {text(member): float(score) for member, score in page}

    # --- commands and groups ------------------------------------------------------------------------------------------

    async def commands(self, command_ids: Iterable[str]) -> dict[str, Command]:
        """Read command records without their large fields; a damaged one counts as absent."""
        ids = list(command_ids)
        if not ids:  # for most batches
            return {}
        records = each_record(self._client, ids, self.keys.command, COMMANDS)
        return {command.command_id: command async for command in records}

    async def groups(self, group_ids: Iterable[str]) -> dict[str, Group]:
        """Read group records; a damaged one counts as absent."""
        records = each_record(self._client, group_ids, self.keys.group, GROUPS)
        return {group.group_id: group async for group in records}

    async def group_request(self, group_id: str) -> bytes | None:
        """Read the request that made a group; None if its record is gone, or if the key has the wrong type."""
        found: bytes | None = await _unless_wrong_type(self._client.hget(self.keys.group(group_id), "request"))
        return found

    async def command_bodies(self, command_ids: Sequence[str], max_bytes: int) -> dict[str, bytes]:
        """Read the bodies of these commands, in order, until they exceed `max_bytes`. An unreadable body is empty."""
        found: dict[str, bytes] = {}
        for command_id in command_ids:
            if max_bytes < 0:
                break
            body = await _unless_wrong_type(self._client.hget(self.keys.command(command_id), "body"))
            found[command_id] = body or b""
            max_bytes -= len(found[command_id])
        return found

    async def list_heads(self, agent_ids: Sequence[str]) -> dict[str, bytes]:
        """Read the first bytes of the oldest command in each agent's list, as peek_heads.lua describes.

        Cancels are skipped. The value is empty if the list has no other command. If the key is not a list, the agent is
        absent from the result.
        """
        if not agent_ids:
            return {}
        found = await PEEK_HEADS(self._client, [self.keys.commands(agent_id) for agent_id in agent_ids], [_HEAD_BYTES])
        return _present(agent_ids, found)

    async def due_deadlines(self, now: float, limit: int) -> list[tuple[str, float]]:
        """Read the deadlines until now, oldest first. A member that is not UTF-8 is decoded with surrogates."""
        found = await self._client.zrangebyscore(self.keys.deadlines, "-inf", now, 0, limit, withscores=True)
        return [(member.decode(errors="surrogateescape"), score) for member, score in found]

    async def scan_without_deadline(self, cursor: int, chunk: int) -> tuple[int, set[str], set[str]]:
        """Scan a page of all keys for open commands and groups without a deadline.

        A cursor of 0 begins the scan; a returned cursor of 0 ends it. Raises `ServerUnavailableError`. The outage is
        `noperm` if the ACL refuses SCAN, or if the server does not know SCAN, because an operator has renamed or
        disabled it.
        """
        from aism_engine.store.redis_exceptions import ResponseError  # noqa: PLC0415  slow to import

        keys = self.keys
        try:
            cursor, page = await self._client.scan(cursor, match=f"{keys.prefix}:engine:*", count=chunk)
        except ResponseError as error:
            raise ServerUnavailableError("noperm", str(error)) from error
        names = [text(key) for key in page]
        commands = await self._without_deadline(names, "command", keys.command)
        return int(cursor), commands, await self._without_deadline(names, "group", keys.group)

    async def _without_deadline(self, names: Iterable[str], kind: str, key: Callable[[str], str]) -> set[str]:
        prefix = key("")
        ids = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if not ids:
            return set()
        scores = await self._client.zmscore(self.keys.deadlines, [f"{kind}:{each}" for each in ids])
        missing = [each for each, score in zip(ids, scores, strict=True) if score is None]
        ended_at = await read_records(self._client, map(key, missing), ["ended_at"])
        return {each for each, packed in zip(missing, ended_at, strict=True) if packed == NO_VALUE}

    # --- requests, dead letters, sizes --------------------------------------------------------------------------------

    async def saved_replies(self, request_ids: Sequence[str]) -> dict[str, bytes]:
        """Read the saved replies to requests that were decided before.

        The format of each value is: a digest of the request, a space, the reply.
        """
        if not request_ids:
            return {}
        return _present(request_ids, await self._client.mget(map(self.keys.saved_reply, request_ids)))

    async def dead_letters(self, dead_letter_ids: Collection[str]) -> dict[str, DeadLetter]:
        found: dict[str, DeadLetter] = {}
        for dead_letter_id in dead_letter_ids:
            entries = await self._client.xrange(self.keys.dead_letters, dead_letter_id, dead_letter_id, count=1)
            if entries and (dead_letter := read_dead_letter(entries[0][1])) is not None:
                found[dead_letter_id] = dead_letter
        return found

    async def lengths(self) -> dict[str, int]:
        """Read the lengths of the engine's queues and streams, and of the sorted sets of deadlines and heartbeats."""
        commands = {
            **dict.fromkeys(("response_queue", "request_queue", "fanout", "oversized"), "LLEN"),
            **dict.fromkeys(("audit", "dead_letters"), "XLEN"),
            **dict.fromkeys(("deadlines", "heartbeats"), "ZCARD"),
        }
        found = await self.read_lengths((command, getattr(self.keys, name)) for name, command in commands.items())
        return {name: length for name, length in zip(commands, found, strict=True) if length is not None}

    async def read_lengths(self, calls: Iterable[tuple[str, str]]) -> list[int | None]:
        """Read several lengths in one round trip. The length of a key of the wrong type is None."""
        replies = await self._client.execute_commands(calls, raise_wrong_type=False)
        return [reply if isinstance(reply, int) else None for reply in replies]


def _scores(page: Sequence[Any]) -> list[tuple[str, float]]:
    """Decode members with scores: pairs in RESP3, a flat list in RESP2."""
    pairs = page if page and isinstance(page[0], list) else zip(page[::2], page[1::2], strict=True)
    return [(text(member), float(score)) for member, score in pairs]


async def _unless_wrong_type(reply: Awaitable[T]) -> T | None:
    """Return the reply; None if the key has the wrong type."""
    try:
        return await reply
    except ServerUnavailableError as error:
        if error.outage != "wrong_type":
            raise
        return None


def _present(ids: Sequence[str], values: Iterable[bytes | None]) -> dict[str, bytes]:
    return {each: value for each, value in zip(ids, values, strict=True) if value is not None}


def read_dead_letter(fields: Mapping[bytes, bytes]) -> DeadLetter | None:
    """Decode an entry of the dead letters; None if another client wrote it."""
    values: dict[str, Any] = {text(name): value if name == b"raw" else text(value) for name, value in fields.items()}
    with suppress(msgspec.ValidationError):
        return msgspec.convert(values, DeadLetter, strict=False)
    return None


def _snapshot(type_: bytes, labels: bytes, state: bytes, score: bytes, recorded: int) -> AgentSnapshot:
    return AgentSnapshot(
        type=_name(type_, is_type_name),
        labels=_labels(labels) if labels else {},
        state=_name(state, is_state_name),
        score=float(score) if score else None,
        is_recorded=recorded == 1,
    )


def _labels(packed: bytes) -> dict[str, str]:
    with suppress(ValueError, RecursionError):
        return msgspec.json.decode(packed, type=Labels)
    return {}


@lru_cache(maxsize=1024)  # a fleet is read again and again, and has few types and states
def _name(value: bytes, is_valid: Callable[[str], object]) -> str | None:
    name = text(value)
    return name if is_valid(name) else None
