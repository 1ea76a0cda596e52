"""Scans the keys under a prefix for keys that no engine wrote, and for records that do not belong together.

The fleet may be working meanwhile. So when a record is missing, the reference to it is read again afterwards: only a
reference that existed both before and after is broken. All scans are bounded.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from aism_engine.domain.commands.command import OPEN
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor.keyspace import KeyspaceFacts
from aism_engine.ops.doctor.known_keys import KnownKey, classify
from aism_engine.ops.inspector import Report
from aism_engine.store.client import Client, naming_outages, outage_of
from aism_engine.store.keys import Keys
from aism_engine.store.records import CHUNK, text
from aism_engine.store.redis_exceptions import ResponseError

RedisCommand: TypeAlias = tuple[str, ...]

_OPEN: Final = frozenset(status.value.encode() for status in OPEN)
DEADLINE_RECORDS: Final = {"command": "command", "group": "group", "stay": "agent"}
"""The kind of record that a deadline belongs to, by the kind of the deadline."""
_EXPIRING: Final = frozenset({"saved_reply", "agent_reply", "request_reply"})
_NO_EXPIRY: Final = -1
_NO_KEY: Final = -2
"""Replies of PTTL."""


class KeyspaceScan:
    """One scan of one fleet's keys.

    Raises `ServerUnavailableError`, `noperm`, if SCAN is denied, or ResponseError if the server does not have it.
    """

    def __init__(self, client: Client, keys: Keys, *, max_keys: int, report: Report | None = None) -> None:
        """`max_keys` bounds the keys of the server that are scanned, and the members of each index."""
        self._client = client
        self._keys = keys
        self._max_keys = max_keys
        self._report = report or (lambda _: None)
        self._facts = KeyspaceFacts(prefix=keys.prefix)
        self._unindexed: set[str] = set()
        self._fleets_below: set[str] = set()

    async def run(self) -> KeyspaceFacts:
        await self._find_fleets_above()
        await self._scan_keys()
        await self._scan_index()
        await self._scan_deadlines()
        await self._scan_heartbeats()
        return self._facts

    async def _find_fleets_above(self) -> None:
        parts = self._keys.prefix.split(":")
        for length in range(1, len(parts)):
            head = ":".join(parts[:length])
            with suppress(ServerUnavailableError):  # a user that may not read these keys cannot collide with them
                if (await self._replies([("EXISTS", Keys(head).epoch)]))[0] == 1:
                    self._facts.fleets_above.append(head)

    # --- the keys -----------------------------------------------------------------------------------------------------

    async def _scan_keys(self) -> None:
        cursor, scanned = 0, 0
        while True:
            with naming_outages():
                cursor, page = await self._client.scan(cursor, match=f"{self._keys.prefix}:*", count=CHUNK)
            scanned += CHUNK
            self._facts.scanned += len(page)
            await self._check_keys([text(key) for key in page])
            self._report(f"{self._facts.scanned} keys scanned")
            if not int(cursor):
                return
            if scanned >= self._max_keys:
                self._facts.truncated = True
                return

    async def _check_keys(self, page: Sequence[str]) -> None:
        classified = {name: classify(self._keys, name) for name in page}
        known = [each for each in classified.values() if each is not None]
        for name, found in classified.items():
            if found is None:
                self._add_unknown(name)
        good = []
        for key, reply in zip(known, await self._replies([("TYPE", each.key) for each in known]), strict=True):
            if (actual := text(reply)) in {key.type, "none"}:
                good.append(key)
            else:
                self._facts.wrong_type.add(f"{key.key} ({actual})")
        await self._check_indexed([each for each in good if each.agent_id and each.agent_id not in self._unindexed])
        await self._check_expiry([each for each in good if each.name in _EXPIRING or each.name == "lease"])
        await self._check_deadlines([each for each in good if each.name in {"command", "group"}])

    def _add_unknown(self, key: str) -> None:
        """Add a key that belongs to a fleet with a longer prefix, or that no engine wrote."""
        head = self._keys.prefix
        for part in key.removeprefix(f"{head}:").split(":")[:-2]:
            head = f"{head}:{part}"
            if classify(Keys(head), key) is not None:
                if head not in self._fleets_below and len(self._fleets_below) < CHUNK:
                    self._fleets_below.add(head)
                    self._facts.fleets_below.add(head)
                return
        self._facts.foreign.add(key)

    async def _check_indexed(self, keys: Sequence[KnownKey]) -> None:
        if not keys:
            return
        (indexed,) = await self._replies([("SMISMEMBER", self._keys.index, *(each.agent_id for each in keys))])
        if not isinstance(indexed, list):
            return  # the index has the wrong type, which is a finding of its own
        missing = [each for each, found in zip(keys, indexed, strict=True) if not found]
        exist = await self._replies([("EXISTS", each.key) for each in missing])
        for each, found in zip(missing, exist, strict=True):
            if found == 1 and each.agent_id not in self._unindexed and len(self._unindexed) < self._max_keys:
                self._unindexed.add(each.agent_id)
                self._facts.unindexed_agents.add(each.agent_id)

    async def _check_expiry(self, keys: Sequence[KnownKey]) -> None:
        for key, ttl_ms in zip(keys, await self._replies([("PTTL", each.key) for each in keys]), strict=True):
            if ttl_ms == _NO_EXPIRY and key.name == "lease":
                self._facts.lease_without_expiry = True
            elif ttl_ms == _NO_EXPIRY:
                self._facts.without_expiry.add(key.key)

    async def _check_deadlines(self, keys: Sequence[KnownKey]) -> None:
        """Check that open commands and groups have a deadline, and that ended ones expire."""
        commands: list[RedisCommand] = []
        for key in keys:
            read = ("HGET", key.key, "status" if key.name == "command" else "ended_at")
            commands += (read, ("ZSCORE", self._keys.deadlines, f"{key.name}:{key.id}"), read, ("PTTL", key.key))
        replies = iter(await self._replies(commands))
        for key in keys:
            before, deadline, after, ttl_ms = next(replies), next(replies), next(replies), next(replies)
            if not _is_open(key.name, before):
                if ttl_ms == _NO_EXPIRY:
                    self._facts.without_expiry.add(key.key)
            elif _is_open(key.name, after) and deadline is None and ttl_ms != _NO_KEY:
                self._facts.commands_without_deadline.add(f"{key.name}:{key.id}")

    # --- the indexes --------------------------------------------------------------------------------------------------

    async def _scan_index(self) -> None:
        index = self._keys.index
        async for page in self._pages("SSCAN", index):
            records = {text(member): ("EXISTS", self._keys.agent(text(member))) for member in page}
            for agent_id in await self._broken(records, lambda member: ("SISMEMBER", index, member), absent=0):
                self._facts.missing_records.add(agent_id)

    async def _scan_deadlines(self) -> None:
        deadlines = self._keys.deadlines
        async for page in self._pages("ZSCAN", deadlines):
            records = {text(member): ("EXISTS", _record_key(self._keys, text(member))) for member, _ in page}
            for member in await self._broken(records, lambda member: ("ZSCORE", deadlines, member), absent=None):
                self._facts.deadlines_without_record.add(member)

    async def _scan_heartbeats(self) -> None:
        index, heartbeats = self._keys.index, self._keys.heartbeats
        async for page in self._pages("ZSCAN", heartbeats):
            self._facts.heartbeats += len(page)
            members = [text(member) for member, _ in page]
            for member in members:
                if not is_identifier(member):
                    self._facts.invalid_members.add(member)
            records = {member: ("SISMEMBER", index, member) for member in members if is_identifier(member)}
            unindexed = await self._broken(records, lambda member: ("ZSCORE", heartbeats, member), absent=None)
            # An agent whose first heartbeat came before the scan may have been added meanwhile.
            added = await self._replies([records[member] for member in unindexed])
            for member, found in zip(unindexed, added, strict=True):
                if found == 0:
                    self._facts.unindexed_members.add(member)

    async def _broken(
        self, records: Mapping[str, RedisCommand], reference: Callable[[str], RedisCommand], *, absent: int | None
    ) -> list[str]:
        """Return the members whose record is missing while the reference to it exists: its reply is not `absent`."""
        exist = await self._replies(records.values())
        missing = [member for member, found in zip(records, exist, strict=True) if found == 0]
        referred = await self._replies(map(reference, missing))
        return [member for member, found in zip(missing, referred, strict=True) if found != absent]

    async def _pages(self, command: str, key: str) -> AsyncIterator[list[Any]]:
        """Yield pages of members, or of pairs of member and score. A key of the wrong type has no pages."""
        cursor, scanned = 0, 0
        while scanned < self._max_keys:
            try:
                with naming_outages():
                    reply = await self._client.execute_command(command, key, cursor, "COUNT", CHUNK)
            except ServerUnavailableError as error:
                if error.outage != "wrong_type":
                    raise
                return
            cursor, page = int(reply[0]), list(reply[1].items()) if isinstance(reply[1], dict) else list(reply[1])
            scanned += len(page)
            self._report(f"{scanned} members of {key} scanned")
            yield page
            if not cursor:
                return
        self._facts.truncated = True

    async def _replies(self, commands: Iterable[RedisCommand]) -> list[Any]:
        """Send commands in one round trip. An error about a key of the wrong type is returned as its reply."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        with naming_outages():
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, ResponseError) and outage_of(reply) != "wrong_type":
                    raise reply
        return replies


def _record_key(keys: Keys, member: str) -> str:
    """Return the key of the record that a deadline belongs to; for an unknown kind, a key that does not exist."""
    kind, _, name = member.partition(":")
    return f"{keys.prefix}:engine:{DEADLINE_RECORDS.get(kind, 'none')}:{name}"


def _is_open(kind: str, value: Any) -> bool:  # noqa: ANN401
    """Return whether a command is open by its status, or a group by its `ended_at`. A damaged record is not open."""
    if kind == "command":
        return value in _OPEN
    return value is None or value == b""
