"""Walks over the keys under a prefix, and finds what is none of ours, or what has lost the rest of it.

The fleet may work on meanwhile. So whatever seems to be missing is looked at once more behind that: what was there
before, is missing, and is there still, is no matter of the moment. All walks are bounded.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aism_engine.domain.commands.command import OPEN
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor.keyspace import Keyspace
from aism_engine.ops.inspector import Tell
from aism_engine.store.client import Client, naming_outages, outage_of
from aism_engine.store.keys import Keys
from aism_engine.store.records import CHUNK, text
from aism_engine.store.redis_exceptions import ResponseError

_OPEN: Final = frozenset(status.value.encode() for status in OPEN)
_OF_AGENTS: Final = {
    "commands": "list",
    "state": "string",
    "metadata": "hash",
    "inbox": "list",
    "measurements": "hash",
}
_RECORDS: Final = {
    "mail": "list",
    "agent": "hash",
    "command": "hash",
    "group": "hash",
    "request": "string",
    "replies": "list",
}
_SINGLE: Final = {
    "response_queue": "list",
    "request_queue": "list",
    "fanout": "list",
    "oversized": "list",
    "heartbeats": "zset",
    "index": "set",
    "silent": "zset",
    "deadlines": "zset",
    "audit": "stream",
    "archives": "hash",
    "dead_letters": "stream",
    "holds": "hash",
    "lease": "string",
    "epoch": "string",
    "ledger": "string",
    "heard": "string",
}
"""Redis types: of what an agent has, of records by their kind, and of keys by their name in store/keys.py."""
DEADLINES: Final = {"command": "command", "group": "group", "stay": "agent"}
"""Whose record a deadline is about, by its kind."""
_EXPIRING: Final = frozenset({"request", "replies"})
_IDENTIFIER: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_AGENT: Final = re.compile(
    rf":agent:(?P<id>{_IDENTIFIER}):(?:(?P<part>{'|'.join(_OF_AGENTS)})|replies:{_IDENTIFIER})\Z"
)
_RECORD: Final = re.compile(rf":engine:(?P<kind>{'|'.join(_RECORDS)}):(?P<id>{_IDENTIFIER})\Z")
_NO_EXPIRY: Final = -1
_GONE: Final = -2
"""What PTTL says."""
_MARK: Final = ":engine:epoch"
"""Where there is this key, there is or was an engine."""


class Named(NamedTuple):
    """What a key is, by its name."""

    key: str
    type: str
    kind: str
    id: str = ""
    agent_id: str = ""


def named(keys: Keys, key: str) -> Named | None:
    """Tell what this key of the fleet is; None where no engine of this version writes such a key."""
    rest = key.removeprefix(keys.prefix)
    if found := _AGENT.match(rest):
        part = found["part"]
        return Named(key, _OF_AGENTS[part] if part else "list", part or "replies", agent_id=found["id"])
    if found := _RECORD.match(rest):
        kind = found["kind"]
        return Named(key, _RECORDS[kind], kind, found["id"], found["id"] if kind == "agent" else "")
    return next((Named(key, kind, name) for name, kind in _SINGLE.items() if getattr(keys, name) == key), None)


class KeyspaceScan:
    """One walk over one fleet.

    Raises `ServerUnavailableError`, `noperm`, where keys may not be walked over, or ResponseError where they cannot be.
    """

    def __init__(self, client: Client, keys: Keys, *, most: int, tell: Tell | None = None) -> None:
        """`most` is how many keys of the server are walked over, and how many members of each index."""
        self._client = client
        self._keys = keys
        self._most = most
        self._tell = tell or (lambda _: None)
        self._found = Keyspace(prefix=keys.prefix)
        self._strays: set[str] = set()
        self._below: set[str] = set()

    async def walk(self) -> Keyspace:
        await self._look_above()
        await self._walk_keys()
        await self._walk_index()
        await self._walk_deadlines()
        await self._walk_heartbeats()
        return self._found

    async def _look_above(self) -> None:
        parts = self._keys.prefix.split(":")
        for length in range(1, len(parts)):
            head = ":".join(parts[:length])
            with suppress(ServerUnavailableError):  # whom we may not see, we cannot meet
                if (await self._calls([("EXISTS", f"{head}{_MARK}")]))[0] == 1:
                    self._found.fleets_above.append(head)

    async def _walk_keys(self) -> None:
        cursor, walked = 0, 0
        while True:
            with naming_outages():
                cursor, page = await self._client.scan(cursor, match=f"{self._keys.prefix}:*", count=CHUNK)
            walked += CHUNK
            self._found.looked_at += len(page)
            await self._look_at_keys([text(key) for key in page])
            self._tell(f"{self._found.looked_at} keys looked at")
            if not int(cursor):
                return
            if walked >= self._most:
                self._found.more = True
                return

    async def _look_at_keys(self, page: Sequence[str]) -> None:
        known = []
        for key in page:
            if (name := named(self._keys, key)) is not None:
                known.append(name)
            else:
                self._note_foreign(key)
        types = await self._calls([("TYPE", name.key) for name in known])
        good = []
        for name, kind in zip(known, types, strict=True):
            if (found := text(kind)) in {name.type, "none"}:
                good.append(name)
            else:
                self._found.wrong_type.add(f"{name.key} ({found})")
        await self._look_for_strays([name for name in good if name.agent_id and name.agent_id not in self._strays])
        await self._look_at_expiry([name for name in good if name.kind in _EXPIRING or name.kind == "lease"])
        await self._look_at_open([name for name in good if name.kind in {"command", "group"}])

    def _note_foreign(self, key: str) -> None:
        """Note a key that is none of ours: that of a fleet whose prefix begins as ours does, or whose ever."""
        head = self._keys.prefix
        for part in key.removeprefix(f"{head}:").split(":")[:-2]:
            head = f"{head}:{part}"
            if named(Keys(head), key) is not None:
                if head not in self._below and len(self._below) < CHUNK:
                    self._below.add(head)
                    self._found.fleets_below.add(head)
                return
        self._found.foreign.add(key)

    async def _look_for_strays(self, names: Sequence[Named]) -> None:
        if not names:
            return
        index = self._keys.index
        replies = await self._calls([("SMISMEMBER", index, *(name.agent_id for name in names))])
        if not isinstance(replies[0], list):
            return  # the index itself has the wrong type, which is told
        missing = [name for name, known in zip(names, replies[0], strict=True) if not known]
        still = await self._calls([("EXISTS", name.key) for name in missing])
        for name, there in zip(missing, still, strict=True):
            if there == 1 and name.agent_id not in self._strays and len(self._strays) < self._most:
                self._strays.add(name.agent_id)
                self._found.stray_agents.add(name.agent_id)

    async def _look_at_expiry(self, names: Sequence[Named]) -> None:
        for name, left in zip(names, await self._calls([("PTTL", name.key) for name in names]), strict=True):
            if left != _NO_EXPIRY:
                continue
            if name.kind == "lease":
                self._found.lease_for_ever = True
            else:
                self._found.for_ever.add(name.key)

    async def _look_at_open(self, names: Sequence[Named]) -> None:
        """Look whether what is open has a deadline, and what has ended an end."""
        calls: list[tuple[str, ...]] = []
        for name in names:
            field = "status" if name.kind == "command" else "ended_at"
            look = ("HGET", name.key, field)
            calls += (look, ("ZSCORE", self._keys.deadlines, f"{name.kind}:{name.id}"), look, ("PTTL", name.key))
        replies = iter(await self._calls(calls))
        for name in names:
            before, deadline, after, left = next(replies), next(replies), next(replies), next(replies)
            if _is_open(name.kind, before) and _is_open(name.kind, after):
                if deadline is None and left != _GONE:
                    self._found.commands_without_deadline.add(f"{name.kind}:{name.id}")
            elif not _is_open(name.kind, before) and left == _NO_EXPIRY:
                self._found.for_ever.add(name.key)

    async def _walk_index(self) -> None:
        keys = self._keys
        async for page in self._pages("SSCAN", keys.index):
            ids = [text(member) for member in page]
            records = await self._calls([("EXISTS", keys.agent(each)) for each in ids])
            gone = [each for each, there in zip(ids, records, strict=True) if there == 0]
            for each, still in zip(
                gone, await self._calls([("SISMEMBER", keys.index, each) for each in gone]), strict=True
            ):
                if still:
                    self._found.lost_records.add(each)

    async def _walk_deadlines(self) -> None:
        keys = self._keys
        async for page in self._pages("ZSCAN", keys.deadlines):
            members = [text(member) for member, _ in page]
            records = [_record_of(keys, member) for member in members]
            there = await self._calls([("EXISTS", record) for record in records])
            gone = [member for member, found in zip(members, there, strict=True) if found == 0]
            for member, still in zip(
                gone, await self._calls([("ZSCORE", keys.deadlines, member) for member in gone]), strict=True
            ):
                if still is not None:
                    self._found.deadlines_without_record.add(member)

    async def _walk_heartbeats(self) -> None:
        async for page in self._pages("ZSCAN", self._keys.heartbeats):
            self._found.beating += len(page)
            members = [text(member) for member, _ in page]
            for member in members:
                if not is_identifier(member):
                    self._found.strange_members.add(member)
            await self._look_for_unknown([member for member in members if is_identifier(member)])

    async def _look_for_unknown(self, members: Sequence[str]) -> None:
        index, heartbeats = self._keys.index, self._keys.heartbeats
        known = await self._calls([("SISMEMBER", index, member) for member in members])
        missing = [member for member, there in zip(members, known, strict=True) if there == 0]
        beating = await self._calls([("ZSCORE", heartbeats, member) for member in missing])
        known = await self._calls([("SISMEMBER", index, member) for member in missing])
        for member, score, there in zip(missing, beating, known, strict=True):
            if score is not None and there == 0:
                self._found.unknown_members.add(member)

    async def _pages(self, command: str, key: str) -> Any:  # noqa: ANN401  pages of members, or of pairs
        cursor, walked = 0, 0
        while walked < self._most:
            try:
                with naming_outages():
                    reply = await self._client.execute_command(command, key, cursor, "COUNT", CHUNK)
            except ServerUnavailableError as error:
                if error.outage != "wrong_type":
                    raise
                return
            cursor, page = int(reply[0]), list(reply[1].items()) if isinstance(reply[1], dict) else list(reply[1])
            walked += len(page)
            self._tell(f"{walked} members of {key} looked at")
            yield page
            if not cursor:
                return
        self._found.more = True

    async def _calls(self, calls: Iterable[tuple[str, ...]]) -> list[Any]:
        """Send many reads at once; that a key has the wrong type is its reply."""
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call)
        with naming_outages():
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, ResponseError) and outage_of(reply) != "wrong_type":
                    raise reply
        return replies


def _record_of(keys: Keys, member: str) -> str:
    """Give the key of the record that a deadline is about; one of no kind of ours names no key that there is."""
    kind, _, name = member.partition(":")
    return f"{keys.prefix}:engine:{DEADLINES.get(kind, 'none')}:{name}"


def _is_open(kind: str, value: Any) -> bool:  # noqa: ANN401
    """Tell by the field that was read whether this command or group is open; a damaged record is not."""
    if kind == "command":
        return value in _OPEN
    return value is None or value == b""
