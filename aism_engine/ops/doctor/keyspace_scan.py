"""Scans the keys under a prefix: finds unknown keys, wrong types, missing expiries, and references to missing records.

The fleet may be working meanwhile. So when a record is missing, the scan reads its reference again, and after that the
record again. The reference is broken only if it still exists and the record is still missing. All scans are bounded.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from aism_engine.domain.commands.command import OPEN
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor.keyspace import KeyspaceFacts
from aism_engine.ops.doctor.known_keys import KnownKey, classify
from aism_engine.ops.doctor.permissions import skipping_errors_reported_elsewhere
from aism_engine.ops.inspector import Report
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.records import CHUNK, text

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

    Raises `ServerUnavailableError` with the outage `noperm` if SCAN is denied. Raises ResponseError if the server does
    not support SCAN.
    """

    def __init__(self, client: Client, keys: Keys, *, max_keys: int, report: Report | None = None) -> None:
        """`max_keys` limits how many keys of the server are scanned, and how many members of each index."""
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
        await self._scan_indexes()
        return self._facts

    async def _find_fleets_above(self) -> None:
        parts = self._keys.prefix.split(":")
        for length in range(1, len(parts)):
            head = ":".join(parts[:length])
            # If the ACL denies this key, the check is skipped: the user has no access to that fleet's keys either.
            with skipping_errors_reported_elsewhere():
                if (await self._replies([("EXISTS", Keys(head).epoch)]))[0] == 1:
                    self._facts.fleets_above.append(head)

    # --- the keys -----------------------------------------------------------------------------------------------------

    async def _scan_keys(self) -> None:
        cursor, scanned = 0, 0
        while True:
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
        await self._check_indexed(good)
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
        agents = {each.agent_id: each.key for each in keys if each.agent_id and each.agent_id not in self._unindexed}
        checks = {
            agent_id: (("SISMEMBER", self._keys.index, agent_id), ("EXISTS", key)) for agent_id, key in agents.items()
        }
        for agent_id in await self._broken(checks):
            if len(self._unindexed) < self._max_keys:
                self._unindexed.add(agent_id)
                self._facts.unindexed_agents.add(agent_id)

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

    async def _scan_indexes(self) -> None:
        keys, facts = self._keys, self._facts
        async for agent_id in self._dangling("SSCAN", keys.index, lambda member: ("EXISTS", keys.agent(member))):
            facts.missing_records.add(agent_id)
        async for member in self._dangling("ZSCAN", keys.deadlines, lambda name: ("EXISTS", _record_key(keys, name))):
            facts.deadlines_without_record.add(member)
        async for member in self._dangling("ZSCAN", keys.heartbeats, lambda name: ("SISMEMBER", keys.index, name)):
            (facts.unindexed_members if is_identifier(member) else facts.invalid_members).add(member)
        (count,) = await self._replies([("ZCARD", keys.heartbeats)])
        facts.heartbeats = count if isinstance(count, int) else 0

    async def _dangling(self, scan: str, key: str, find_target: Callable[[str], RedisCommand]) -> AsyncIterator[str]:
        """Yield the members of a set or sorted set whose target does not exist.

        `find_target` returns the command that asks whether the target of a member exists.
        """
        lookup = "SISMEMBER" if scan == "SSCAN" else "ZSCORE"
        async for page in self._pages(scan, key):
            for member in await self._broken({member: (find_target(member), (lookup, key, member)) for member in page}):
                yield member

    async def _broken(self, checks: Mapping[str, tuple[RedisCommand, RedisCommand]]) -> list[str]:
        """Return the members whose reference is broken: the reference exists, but its target does not.

        A check has two commands. The first asks whether the target exists, the second whether the reference exists. The
        first is then sent again, because the engine may have written both between the two reads.
        """
        members = list(checks)
        for step, should_exist in ((0, False), (1, True), (0, False)):
            replies = await self._replies(checks[member][step] for member in members)
            members = [each for each, reply in zip(members, replies, strict=True) if _exists(reply) is should_exist]
        return members

    async def _pages(self, command: str, key: str) -> AsyncIterator[list[str]]:
        """Yield pages of members. A key of the wrong type has no pages."""
        cursor, scanned = 0, 0
        while scanned < self._max_keys:
            try:
                reply = await self._client.execute_command(command, key, cursor, "COUNT", CHUNK)
            except ServerUnavailableError as error:
                if error.outage != "wrong_type":
                    raise
                return
            cursor, page = int(reply[0]), [each[0] if command == "ZSCAN" else each for each in reply[1]]
            scanned += len(page)
            self._report(f"{scanned} members of {key} scanned")
            yield [text(member) for member in page]
            if not cursor:
                return
        self._facts.truncated = True

    async def _replies(self, commands: Iterable[RedisCommand]) -> list[Any]:
        """Send commands in one round trip. An error about a key of the wrong type is returned as its reply."""
        replies: list[Any] = await self._client.execute_commands(commands, raise_wrong_type=False)
        return replies


def _record_key(keys: Keys, member: str) -> str:
    """Return the key of the record that a deadline belongs to; for an unknown kind, a key that does not exist."""
    kind, _, name = member.partition(":")
    return f"{keys.prefix}:engine:{DEADLINE_RECORDS.get(kind, 'none')}:{name}"


def _exists(reply: Any) -> bool | None:  # noqa: ANN401
    """Return what a reply of EXISTS, SISMEMBER or ZSCORE says; None if it is an error."""
    if isinstance(reply, Exception):
        return None
    return reply is not None and (isinstance(reply, float) or bool(reply))  # a score may be 0.0


def _is_open(kind: str, value: Any) -> bool:  # noqa: ANN401
    """Return whether a command is open by its status, or a group by its `ended_at`. A damaged record is not open."""
    if kind == "command":
        return value in _OPEN
    return value is None or value == b""
