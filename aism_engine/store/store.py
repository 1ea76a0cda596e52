"""The fleet as it stands in Redis: what is read of it, and the one way in which it is written.

All reads here are bounded: in count, and where messages are read in bytes as well. Every method raises
`ServerUnavailableError`, with the outage by its name, while the server cannot serve; none retries.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

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
from aism_engine.domain.text import message_digest
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.batch import Argument, SourceTrim
from aism_engine.store.client import Client, naming_outages
from aism_engine.store.keys import Keys
from aism_engine.store.loader import LoadedFleet, load_fleet
from aism_engine.store.records import MEASURED_AT_ONCE, Records, command_of, group_of, is_empty, measurements_of, text
from aism_engine.store.scripts import (
    ACQUIRE_LEASE,
    COMMIT,
    PEEK,
    PEEK_HEADS,
    PROBE_PERMISSIONS,
    PUSH_PUBLISHED,
    READ_SNAPSHOTS,
    RELEASE_LEASE,
    CommitCode,
    LeaseCode,
    ReleaseCode,
)
from aism_engine.store.server_time import ServerTime


class Peek(NamedTuple):
    """The oldest messages of a queue, still in it. `length` is that of the whole queue."""

    queue: str
    messages: list[bytes]
    oversized: str
    """The digest of the one message too large to read, else empty; its head is then the only message here."""
    length: int
    ledger: str = ""
    """The last commit when it was read: what is in hand already, it was read behind only if that was not committed yet.
    """

    @property
    def taken(self) -> SourceTrim:
        if self.oversized:
            return SourceTrim(self.queue, 1, self.oversized, self.oversized, oversized=True)
        return SourceTrim(
            self.queue, len(self.messages), message_digest(self.messages[0]), message_digest(self.messages[-1])
        )


class CommitReply(NamedTuple):
    code: CommitCode
    details: list[int]


class Store:
    """Reads and writes one fleet."""

    def __init__(self, client: Client, keys: Keys, clock: Clock) -> None:
        self.keys = keys
        self._client = client
        self._records = Records(client)
        self._clock = clock
        self.time = ServerTime(clock)
        self.lease_left_s = 0.0

    @property
    def now(self) -> float:
        """The time that decisions are made by, in unix seconds: see store/server_time.py."""
        return self.time.now

    async def read_time(self) -> float:
        """Compare our time with the server's, and give ours."""
        asked_at = self._clock.monotonic()
        with naming_outages():
            seconds, microseconds = await self._client.execute_command("TIME")
        return self._observe(seconds, microseconds, asked_at)

    def _observe(self, seconds: bytes, microseconds: bytes, asked_at: float) -> float:
        self.time.observe(int(seconds) + int(microseconds) / 1_000_000, asked_at)
        return self.time.now

    # --- the commit path --------------------------------------------------------------------------------------------

    async def peek(self, queue: str, *, most: int, most_bytes: int, limit: int, skip: int = 0) -> Peek:
        """Read the oldest messages of a queue, at most so many, of so many bytes together, none over `limit` bytes.

        `skip` leaves out the very oldest, that are in hand already.
        """
        asked_at = self._clock.monotonic()
        with naming_outages():
            seconds, microseconds, length, oversized, ledger, messages = await PEEK(
                self._client, [queue, self.keys.ledger], [most, most_bytes, limit, skip]
            )
        self._observe(seconds, microseconds, asked_at)
        return Peek(queue, messages, oversized.decode(), length, ledger.decode())

    async def commit(self, keys: Sequence[str], arguments: Sequence[Argument]) -> CommitReply:
        with naming_outages():
            code, details = await COMMIT(self._client, keys, arguments)
        return CommitReply(CommitCode(code), details)

    async def probe(self) -> None:
        """Try whether we may do all that a commit needs. Raises ServerUnavailableError, `noperm`, before anything is
        half done.
        """
        keys = self.keys
        with naming_outages():
            await PROBE_PERMISSIONS(
                self._client, [f"{keys.prefix}:engine:probe"], [keys.state_changes, keys.errors, keys.measurements]
            )

    # --- leadership -------------------------------------------------------------------------------------------------

    async def take_lease(self, holder: str, ttl_s: float, token: str | None) -> tuple[LeaseCode, str]:
        """Take the lease, or renew it; gives the token of whoever holds it. `lease_left_s` says how long it lasts."""
        with naming_outages():
            code, held, left_ms = await ACQUIRE_LEASE(
                self._client, [self.keys.lease, self.keys.epoch], [holder, int(ttl_s * 1000), token or ""]
            )
        self.lease_left_s = int(left_ms) / 1000
        return LeaseCode(code), held.decode()

    async def release_lease(self, token: str) -> bool:
        with naming_outages():
            return bool(await RELEASE_LEASE(self._client, [self.keys.lease], [token]) == ReleaseCode.RELEASED)

    # --- what a batch has to know -----------------------------------------------------------------------------------

    async def snapshots(self, agent_ids: Collection[str]) -> dict[str, AgentSnapshot]:
        """Read what agents have set by their own hand. What is of the wrong type, or too long, is as good as none."""
        if not agent_ids:
            return {}
        keys = [self.keys.heartbeats]
        for agent_id in agent_ids:
            keys += (self.keys.metadata(agent_id), self.keys.state(agent_id))
        with naming_outages():
            found = await READ_SNAPSHOTS(self._client, keys, list(agent_ids))
        return {agent_id: _sighting(*seen) for agent_id, seen in zip(agent_ids, found, strict=True)}

    async def commands(self, command_ids: Collection[str]) -> dict[str, Command]:
        """Read the records of commands, but for what is large in them; one that is damaged is as good as none."""
        if not command_ids:
            return {}
        replies = await self._records.read(map(self.keys.command, command_ids), COMMAND_TABLE.fields)
        found = (
            (command_id, command_of(command_id, packed))
            for command_id, packed in zip(command_ids, replies, strict=True)
        )
        return {command_id: command for command_id, command in found if command is not None}

    async def groups(self, group_ids: Collection[str]) -> dict[str, Group]:
        """Read the records of groups; one that is damaged is as good as none."""
        if not group_ids:
            return {}
        replies = await self._records.read(map(self.keys.group, group_ids), GROUP_TABLE.fields)
        found = ((group_id, group_of(group_id, packed)) for group_id, packed in zip(group_ids, replies, strict=True))
        return {group_id: group for group_id, group in found if group is not None}

    async def measurements(self, agent_ids: Collection[str]) -> dict[str, dict[str, float]]:
        """Read what each of these agents has measured: the latest value of each name."""
        found = self._records.each(
            list(agent_ids), self.keys.agent_measurements, (), measurements_of, most=MEASURED_AT_ONCE
        )
        return {agent_id: {} for agent_id in agent_ids} | {agent_id: values async for agent_id, values in found}

    async def orphans(self, cursor: int, chunk: int) -> tuple[int, set[str], set[str]]:
        """Walk over all keys, for the commands and groups that are open and have no deadline; a cursor of 0 begins, and
        ends, the walk. Raises ServerUnavailableError, `noperm`, also where the server has no SCAN.
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
        lost = [each for each, score in zip(found, scores, strict=True) if score is None]
        ends = await self._records.read((getattr(keys, kind)(name) for kind, name in lost), ["ended_at"])
        still_open = {each for each, packed in zip(lost, ends, strict=True) if is_empty(packed)}
        commands, groups = ({name for kind, name in still_open if kind == wanted} for wanted in ("command", "group"))
        return int(cursor), commands, groups

    async def bodies(self, command_ids: Sequence[str], most_bytes: int) -> dict[str, bytes]:
        """Read what was pushed for the first of these commands, as many as fit: each may be a message of the largest
        size.

        One that cannot be read is empty; the first is given whatever its size.
        """
        found: dict[str, bytes] = {}
        for command_id in command_ids:
            if most_bytes < 0:
                break
            try:
                with naming_outages():
                    body = await self._client.hget(self.keys.command(command_id), "body")
            except ServerUnavailableError as error:
                if error.outage != "wrong_type":
                    raise
                body = None
            found[command_id] = body or b""
            most_bytes -= len(found[command_id])
        return found

    async def heads(self, agent_ids: Sequence[str]) -> dict[str, bytes]:
        """Read the head of what each of these agents will pop next; empty where nothing lies in its list."""
        if not agent_ids:
            return {}
        with naming_outages():
            found = await PEEK_HEADS(
                self._client, [self.keys.commands(agent_id) for agent_id in agent_ids], [HEAD_BYTES]
            )
        return {agent_id: head for agent_id, head in zip(agent_ids, found, strict=True) if head is not None}

    async def unread(self, agent_ids: Collection[str]) -> dict[str, int]:
        """Count the messages that each of these agents has not read, or is not let have yet; of what is no list, none.

        What waits is counted first: what is let through meanwhile is counted twice, and never missed.
        """
        if not agent_ids:
            return {}
        lists = [name(agent_id) for name in (self.keys.mail, self.keys.inbox) for agent_id in agent_ids]
        lengths = await self._pipeline(("LLEN", key) for key in lists)
        counts = [length if isinstance(length, int) else 0 for length in lengths]
        both = zip(counts[: len(agent_ids)], counts[len(agent_ids) :], strict=True)
        return {agent_id: sum(pair) for agent_id, pair in zip(agent_ids, both, strict=True)}

    async def answers(self, request_ids: Sequence[str]) -> dict[str, bytes]:
        """Read what was answered to requests that were asked before."""
        if not request_ids:
            return {}
        with naming_outages():
            found = await self._client.mget([self.keys.saved_reply(request_id) for request_id in request_ids])
        return {request_id: answer for request_id, answer in zip(request_ids, found, strict=True) if answer is not None}

    async def dead_letters(self, dead_letter_ids: Collection[str]) -> dict[str, DeadLetter]:
        """Read dead letters by their ids in the stream."""
        found: dict[str, DeadLetter] = {}
        for dead_letter_id in dead_letter_ids:
            with naming_outages():
                entries = await self._client.xrange(self.keys.dead_letters, dead_letter_id, dead_letter_id)
            if entries and (dead_letter := read_dead_letter(entries[0][1])) is not None:
                found[dead_letter_id] = dead_letter
        return found

    async def group_request(self, group_id: str) -> bytes | None:
        """Read the request that a group was made from; none where its record has gone."""
        with naming_outages():
            found: bytes | None = await self._client.hget(self.keys.group(group_id), "request")
        return found

    async def scores(self, agent_ids: Collection[str]) -> dict[str, float | None]:
        """Read the heartbeats of these agents."""
        if not agent_ids:
            return {}
        with naming_outages():
            scores = await self._client.zmscore(self.keys.heartbeats, list(agent_ids))
        return dict(zip(agent_ids, scores, strict=True))

    async def silent(self) -> dict[str, float]:
        """Read who was last seen to be silent, and since when; where somebody has put something else there, nobody."""
        try:
            with naming_outages():
                found = await self._client.zrange(self.keys.silent, 0, -1, withscores=True)
        except ServerUnavailableError as error:
            if error.outage != "wrong_type":
                raise
            return {}
        return {text(member): score for member, score in found}

    async def scores_outside(self, fresh_from: float, fresh_to: float, chunk: int) -> tuple[dict[str, float], float]:
        """Read the heartbeats whose score is outside of what sane clocks write, in seconds or in milliseconds.

        Whoever beats with a sane clock is never read. Scores from 1e11 on are milliseconds: as seconds, that is the
        year 5138. Gives also how many seconds the slowest page was in coming.
        """
        spans = (
            ("-inf", f"({fresh_from}"),
            (f"({fresh_to}", f"({MILLISECONDS_FROM}"),
            (str(MILLISECONDS_FROM), f"({fresh_from * 1000}"),
            (f"({fresh_to * 1000}", "+inf"),
        )
        found, slowest_s = dict[str, float](), 0.0
        for low, high in spans:
            offset = 0
            while True:
                asked_at = self._clock.monotonic()
                with naming_outages():
                    page = await self._client.zrangebyscore(
                        self.keys.heartbeats, low, high, start=offset, num=chunk, withscores=True
                    )
                slowest_s = max(slowest_s, self._clock.monotonic() - asked_at)
                found.update((text(member), score) for member, score in page)
                if len(page) < chunk:
                    break
                offset += chunk
        return found, slowest_s

    async def due(self, now: float, most: int) -> list[tuple[str, float]]:
        """Read the deadlines that have come, the oldest first; a name that is no UTF-8 has surrogates."""
        with naming_outages():
            found = await self._client.zrangebyscore(
                self.keys.deadlines, "-inf", now, start=0, num=most, withscores=True
            )
        return [(member.decode(errors="surrogateescape"), score) for member, score in found]

    async def beating(self) -> int:
        """Count the members of the heartbeats."""
        with naming_outages():
            return int(await self._client.zcard(self.keys.heartbeats))

    async def members(self, cursor: int, chunk: int) -> tuple[int, dict[str, float]]:
        """Walk over all members of the heartbeats, and their scores; a cursor of 0 begins, and ends, the walk."""
        with naming_outages():
            cursor, page = await self._client.zscan(self.keys.heartbeats, cursor, count=chunk)
        return int(cursor), {text(member): float(score) for member, score in page}

    async def depths(self) -> dict[str, int]:
        """Measure everything that has a length."""
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

    async def push_published(self, token: str, number: int, messages: Sequence[bytes]) -> None:
        """Put what was heard on a channel into the response queue, the first one first: the `number`th time under this
        token. It comes to nothing where what was heard later is there already: it may be lost, and not turned round.
        """
        queue, heard, epoch = self.keys.response_queue, self.keys.publication_cursor, token.partition(":")[0]
        with naming_outages():
            await PUSH_PUBLISHED(self._client, [queue, heard], [epoch, number, *messages])

    async def load(self, recent_ids: int) -> LoadedFleet:
        """Read the whole fleet; to be called by a leader alone."""
        loaded = await load_fleet(self._client, self.keys, recent_ids)
        loaded.fleet.silent = await self.silent()
        return loaded

    async def _pipeline(self, calls: Iterable[tuple[Argument, ...]]) -> list[Any]:
        """Send many reads at once. The error of one is its reply; an outage is everybody's."""
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call)
        with naming_outages():
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


def read_dead_letter(fields: Mapping[bytes, bytes]) -> DeadLetter | None:
    """Read a dead letter back; none where somebody has put something else there."""
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


def _sighting(kind: bytes, labels: bytes, state: bytes, score: bytes) -> AgentSnapshot:
    return AgentSnapshot(
        type=_type(kind),
        labels=_labels(labels) if labels else {},
        state=_state(state),
        score=float(score) if score else None,
    )


def _labels(packed: bytes) -> dict[str, str]:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(packed, type=Labels)
    return {}


@lru_cache(maxsize=1024)  # a large fleet is looked at again and again, and has few types and states
def _type(value: bytes) -> str | None:
    found = text(value)
    return found if is_type_name(found) else None


@lru_cache(maxsize=1024)
def _state(value: bytes) -> str | None:
    found = text(value)
    return found if is_state_name(found) else None
