"""Bounded reads of a fleet: single lookups, and scans that walk over everything a page at a time.

Every read is bounded in count and, where it reads messages, in bytes. Each method raises `ServerUnavailableError` while
the server cannot serve; none retries.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from aism_engine.clock import Clock
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.heartbeats import MILLISECONDS_FROM
from aism_engine.domain.commands.command import COMMAND_TABLE, Command
from aism_engine.domain.commands.delivery import HEAD_BYTES
from aism_engine.domain.commands.group import GROUP_TABLE, Group
from aism_engine.domain.effects import DeadLetter
from aism_engine.domain.protocol.messages import Labels
from aism_engine.domain.protocol.names import is_state_name, is_type_name
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.batch import Argument
from aism_engine.store.client import Client, naming_outages
from aism_engine.store.keys import Keys
from aism_engine.store.records import MEASUREMENTS_CHUNK, Records, command_of, group_of, is_empty, measurements_of, text
from aism_engine.store.scripts import PEEK_HEADS, READ_SNAPSHOTS


class FleetReader:
    """Reads one fleet."""

    def __init__(self, client: Client, keys: Keys, clock: Clock) -> None:
        self.keys = keys
        self._client = client
        self._records = Records(client)
        self._clock = clock

    # --- agents -------------------------------------------------------------------------------------------------------

    async def snapshots(self, agent_ids: Collection[str]) -> dict[str, AgentSnapshot]:
        """Read what agents write themselves. A value that has the wrong type or is too long counts as absent."""
        if not agent_ids:
            return {}
        keys = [self.keys.heartbeats]
        for agent_id in agent_ids:
            keys += (self.keys.metadata(agent_id), self.keys.state(agent_id))
        with naming_outages():
            found = await READ_SNAPSHOTS(self._client, keys, list(agent_ids))
        return {agent_id: _snapshot(*values) for agent_id, values in zip(agent_ids, found, strict=True)}

    async def measurements(self, agent_ids: Collection[str]) -> dict[str, dict[str, float]]:
        """Read the latest value of each measurement of these agents."""
        found = self._records.each(
            list(agent_ids), self.keys.agent_measurements, (), measurements_of, chunk=MEASUREMENTS_CHUNK
        )
        return {agent_id: {} for agent_id in agent_ids} | {agent_id: values async for agent_id, values in found}

    async def silent_agents(self) -> dict[str, float]:
        """Read the agents shown as silent, and since when. A key of the wrong type counts as empty."""
        try:
            with naming_outages():
                found = await self._client.zrange(self.keys.silent, 0, -1, withscores=True)
        except ServerUnavailableError as error:
            if error.outage != "wrong_type":
                raise
            return {}
        return {text(member): score for member, score in found}

    async def unread_counts(self, agent_ids: Collection[str]) -> dict[str, int]:
        """Count the messages in the inbox of each agent and those held back; a key that is not a list counts as empty.

        Held messages are counted first, so that a message released meanwhile counts twice and is never missed.
        """
        if not agent_ids:
            return {}
        lists = [name(agent_id) for name in (self.keys.mail, self.keys.inbox) for agent_id in agent_ids]
        lengths = await self._pipeline(("LLEN", key) for key in lists)
        counts = [length if isinstance(length, int) else 0 for length in lengths]
        both = zip(counts[: len(agent_ids)], counts[len(agent_ids) :], strict=True)
        return {agent_id: sum(pair) for agent_id, pair in zip(agent_ids, both, strict=True)}

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    async def heartbeat_scores(self, agent_ids: Collection[str]) -> dict[str, float | None]:
        if not agent_ids:
            return {}
        with naming_outages():
            scores = await self._client.zmscore(self.keys.heartbeats, list(agent_ids))
        return dict(zip(agent_ids, scores, strict=True))

    async def heartbeats_outside(self, low: float, high: float, chunk: int) -> tuple[dict[str, float], float]:
        """Read the heartbeats whose score lies outside of two instants, in seconds or in milliseconds.

        Scores from 1e11 on are milliseconds: as seconds, that is the year 5138. Agents whose clocks are right are not
        read. Return also how many seconds the slowest page took.
        """
        spans = (
            ("-inf", f"({low}"),
            (f"({high}", f"({MILLISECONDS_FROM}"),
            (str(MILLISECONDS_FROM), f"({low * 1000}"),
            (f"({high * 1000}", "+inf"),
        )
        found, slowest_s = dict[str, float](), 0.0
        for lower, upper in spans:
            offset = 0
            while True:
                began = self._clock.monotonic()
                with naming_outages():
                    page = await self._client.zrangebyscore(
                        self.keys.heartbeats, lower, upper, start=offset, num=chunk, withscores=True
                    )
                slowest_s = max(slowest_s, self._clock.monotonic() - began)
                found.update((text(member), score) for member, score in page)
                if len(page) < chunk:
                    break
                offset += chunk
        return found, slowest_s

    async def heartbeat_count(self) -> int:
        with naming_outages():
            return int(await self._client.zcard(self.keys.heartbeats))

    async def scan_heartbeats(self, cursor: int, chunk: int) -> tuple[int, dict[str, float]]:
        """Read a page of all heartbeats; a cursor of 0 begins, and ends, the scan."""
        with naming_outages():
            cursor, page = await self._client.zscan(self.keys.heartbeats, cursor, count=chunk)
        return int(cursor), {text(member): float(score) for member, score in page}

    # --- commands and groups ------------------------------------------------------------------------------------------

    async def commands(self, command_ids: Collection[str]) -> dict[str, Command]:
        """Read command records without their large fields; a damaged one counts as absent."""
        if not command_ids:
            return {}
        found = await self._records.read(map(self.keys.command, command_ids), COMMAND_TABLE.fields)
        commands = map(command_of, command_ids, found)
        return {command.command_id: command for command in commands if command is not None}

    async def groups(self, group_ids: Collection[str]) -> dict[str, Group]:
        """Read group records; a damaged one counts as absent."""
        if not group_ids:
            return {}
        found = await self._records.read(map(self.keys.group, group_ids), GROUP_TABLE.fields)
        groups = map(group_of, group_ids, found)
        return {group.group_id: group for group in groups if group is not None}

    async def group_request(self, group_id: str) -> bytes | None:
        """Read the request that made a group; None if its record is gone."""
        with naming_outages():
            found: bytes | None = await self._client.hget(self.keys.group(group_id), "request")
        return found

    async def command_bodies(self, command_ids: Sequence[str], max_bytes: int) -> dict[str, bytes]:
        """Read the bodies of these commands, in order, until they exceed `max_bytes`. An unreadable body is empty."""
        found: dict[str, bytes] = {}
        for command_id in command_ids:
            if max_bytes < 0:
                break
            try:
                with naming_outages():
                    body = await self._client.hget(self.keys.command(command_id), "body")
            except ServerUnavailableError as error:
                if error.outage != "wrong_type":
                    raise
                body = None
            found[command_id] = body or b""
            max_bytes -= len(found[command_id])
        return found

    async def list_heads(self, agent_ids: Sequence[str]) -> dict[str, bytes]:
        """Read the head of the next command in each agent's list: empty if the list is; absent if it is not a list."""
        if not agent_ids:
            return {}
        lists = [self.keys.commands(agent_id) for agent_id in agent_ids]
        with naming_outages():
            found = await PEEK_HEADS(self._client, lists, [HEAD_BYTES])
        return {agent_id: head for agent_id, head in zip(agent_ids, found, strict=True) if head is not None}

    async def due_deadlines(self, now: float, limit: int) -> list[tuple[str, float]]:
        """Read the deadlines until now, oldest first. A name that is not UTF-8 has surrogates."""
        with naming_outages():
            found = await self._client.zrangebyscore(self.keys.deadlines, "-inf", now, 0, limit, withscores=True)
        return [(member.decode(errors="surrogateescape"), score) for member, score in found]

    async def scan_without_deadline(self, cursor: int, chunk: int) -> tuple[int, set[str], set[str]]:
        """Scan a page of all keys for open commands and groups without a deadline; a cursor of 0 begins, and ends.

        Raises `ServerUnavailableError`, `noperm`, also if the server has no SCAN.
        """
        keys = self.keys
        command, group = keys.command("").encode(), keys.group("").encode()
        try:
            with naming_outages():
                cursor, page = await self._client.scan(cursor, match=f"{keys.prefix}:engine:*", count=chunk)
        except ResponseError as error:
            raise ServerUnavailableError("noperm", str(error)) from error
        with naming_outages():
            found = [("command", text(key[len(command) :])) for key in page if key.startswith(command)]
            found += [("group", text(key[len(group) :])) for key in page if key.startswith(group)]
            if not found:
                return int(cursor), set(), set()
            scores = await self._client.zmscore(keys.deadlines, [f"{kind}:{name}" for kind, name in found])
        without = [each for each, score in zip(found, scores, strict=True) if score is None]
        ended_at = await self._records.read((getattr(keys, kind)(name) for kind, name in without), ["ended_at"])
        still_open = {each for each, packed in zip(without, ended_at, strict=True) if is_empty(packed)}
        commands, groups = ({name for kind, name in still_open if kind == wanted} for wanted in ("command", "group"))
        return int(cursor), commands, groups

    # --- requests, dead letters, sizes --------------------------------------------------------------------------------

    async def saved_replies(self, request_ids: Sequence[str]) -> dict[str, bytes]:
        """Read the replies to requests that were answered before."""
        if not request_ids:
            return {}
        with naming_outages():
            found = await self._client.mget([self.keys.saved_reply(request_id) for request_id in request_ids])
        return {request_id: reply for request_id, reply in zip(request_ids, found, strict=True) if reply is not None}

    async def dead_letters(self, dead_letter_ids: Collection[str]) -> dict[str, DeadLetter]:
        found: dict[str, DeadLetter] = {}
        for dead_letter_id in dead_letter_ids:
            with naming_outages():
                entries = await self._client.xrange(self.keys.dead_letters, dead_letter_id, dead_letter_id)
            if entries and (dead_letter := read_dead_letter(entries[0][1])) is not None:
                found[dead_letter_id] = dead_letter
        return found

    async def lengths(self) -> dict[str, int]:
        """Read the length of every queue, stream and index."""
        keys = self.keys
        calls: dict[str, tuple[Argument, ...]] = {
            "response_queue": ("LLEN", keys.response_queue),
            "request_queue": ("LLEN", keys.request_queue),
            "audit": ("XLEN", keys.audit),
            "dead_letters": ("XLEN", keys.dead_letters),
            "oversized": ("LLEN", keys.oversized),
            "deadlines": ("ZCARD", keys.deadlines),
            "heartbeats": ("ZCARD", keys.heartbeats),
        }
        replies = await self._pipeline(list(calls.values()))
        return {name: reply for name, reply in zip(calls, replies, strict=True) if isinstance(reply, int)}

    async def _pipeline(self, calls: Iterable[tuple[Argument, ...]]) -> list[Any]:
        """Send several reads at once. The reply of a failed read is its error; an outage is raised."""
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call)
        with naming_outages():
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


def read_dead_letter(fields: Mapping[bytes, bytes]) -> DeadLetter | None:
    """Decode an entry of the dead letters; None if another client wrote it."""
    texts = {text(name): text(value) for name, value in fields.items() if name != b"raw"}
    try:
        return DeadLetter(
            code=texts["code"],
            reason=texts["reason"],
            source=texts["source"],
            raw=fields[b"raw"],
            digest=texts["digest"],
            size=int(texts["size"]),
            agent_id=texts.get("agent_id"),
            replay_of=texts.get("replay_of"),
        )
    except (KeyError, ValueError):
        return None


def _snapshot(type_: bytes, labels: bytes, state: bytes, score: bytes) -> AgentSnapshot:
    return AgentSnapshot(
        type=_type_name(type_),
        labels=_labels(labels) if labels else {},
        state=_state_name(state),
        score=float(score) if score else None,
    )


def _labels(packed: bytes) -> dict[str, str]:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(packed, type=Labels)
    return {}


@lru_cache(maxsize=1024)  # a fleet is read again and again, and has few types and states
def _type_name(value: bytes) -> str | None:
    name = text(value)
    return name if is_type_name(name) else None


@lru_cache(maxsize=1024)
def _state_name(value: bytes) -> str | None:
    name = text(value)
    return name if is_state_name(name) else None
