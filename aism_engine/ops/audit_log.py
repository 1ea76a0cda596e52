"""Reads the audit stream of one fleet as a log.

Guaranteed: an `AuditTail` returns every entry after its cursor once, in order, or reports what is missing. A gap means
that entries were trimmed before they were read. A rollback means that the server lost entries that were already read.

Not guaranteed: the number of entries in a gap. It is unknown before Redis 7.0, and after the server's `entries-added`
has restarted. The deletion of single entries by another client is not detected.

The server gives increasing entry ids, `{milliseconds}-{number}`, which contain the time of the entry. After a failover
or a restored backup it may give the same id to another commit, so id and commit together identify an entry.
"""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count, repeat
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw, Struct

from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.records import pairs
from aism_engine.store.scripts import READ_AUDIT

BEGINNING: Final = "0-0"
"""Less than the id of any entry."""
NO_COMMIT: Final = "-"
"""Stands for the commit of an entry that no engine wrote."""
PAGE_ENTRIES: Final = 200
PAGE_BYTES: Final = 1 << 18
"""Bounds of a page: arbitrary numbers that occupy the server for about a millisecond."""
_SEARCH_ENTRIES: Final = 100  # read per call while `find_common_entry` searches backwards
DECODE_ERRORS: Final = (ValueError, RecursionError)
_NO_ITEMS: Final = Raw()  # one object, since `omit_defaults` compares by identity
_ITEMS: Final = msgspec.json.Decoder(list[Raw])

EntryKey: TypeAlias = tuple[str, str]
FindKnown: TypeAlias = Callable[[Collection[EntryKey]], Awaitable[set[EntryKey]]]
"""Returns which of these entries, each given by its id and commit, were read before."""


def entry_order(entry_id: str) -> tuple[int, int]:
    """Return the sort key of an entry id. Raises ValueError if it is not an entry id."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def entry_time(entry_id: str) -> float:
    """Return when an entry was written, in unix seconds by Redis `TIME`."""
    return entry_order(entry_id)[0] / 1000


def entry_day(entry_id: str) -> str:
    """Return the UTC day of an entry, such as `2026-11-23`; `0001-01-01` if its time is outside the calendar."""
    try:
        return datetime.fromtimestamp(entry_time(entry_id), UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return "0001-01-01"


class Cursor(NamedTuple):
    """The last entry that was read. If `commit` is empty, reading starts after `id`, even if no such entry exists.

    `number` is the position of the entry, counted from the first one ever written; None if it is unknown.
    """

    id: str = BEGINNING
    commit: str = ""
    number: int | None = None


class Gap(Struct, frozen=True):
    """Entries between two ids were trimmed before they were read. `entries` is None if the number is unknown."""

    after: str
    before: str
    entries: int | None


class Rollback(Struct, frozen=True):
    """The server lost entries that were read before: those after the id `after`, up to the id `before`.

    If `after` is `0-0`, the server lost all of them.
    """

    after: str
    before: str


class AuditLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of an archive: an audit entry, or a note of missing entries.

    `n` is the number of the entry, counted by the server since the first one; absent if the server does not count.
    `foreign` holds the fields of an entry that no engine wrote.
    """

    id: str = ""
    n: int | None = None
    commit: str = ""
    epoch: str = ""
    facts: Raw = _NO_ITEMS
    message_ids: Raw = _NO_ITEMS
    foreign: dict[str, str] | None = None
    gap: Gap | None = None
    rollback: Rollback | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.id, self.commit, self.n)

    def items(self) -> list[dict[str, Any]]:
        """Return the facts of an entry. For a note of missing entries return one item: `{"gap": ...}`, for example."""
        notes = {"gap": self.gap, "rollback": self.rollback}
        return [{name: note} for name, note in notes.items() if note is not None] or self.decoded_facts()

    def decoded_facts(self) -> list[dict[str, Any]]:
        """Decode the facts. Items that do not name an event are left out, since anyone can write to the audit."""
        with suppress(*DECODE_ERRORS):
            facts = msgspec.json.decode(self.facts)
            return [fact for fact in facts if isinstance(fact, dict) and isinstance(fact.get("event"), str)]
        return []


def line_from_entry(entry_id: bytes, fields: dict[bytes, bytes], number: int | None = None) -> AuditLine:
    """Convert an entry as the server returns it. Anyone may have written it: unknown content is kept as text."""
    facts, message_ids = _array(fields.get(b"facts", b"[]")), _array(fields.get(b"message_ids"))
    known = fields.keys() <= {b"commit", b"epoch", b"facts", b"message_ids"} and fields.get(b"commit")
    line = AuditLine(id=decode_truncated(entry_id), n=number, commit=_commit(fields))
    if not known or facts is None or message_ids is None:
        foreign = {decode_truncated(name): decode_truncated(value) for name, value in fields.items()}
        return msgspec.structs.replace(line, foreign=foreign)
    epoch = decode_truncated(fields.get(b"epoch", b""))
    return msgspec.structs.replace(line, epoch=epoch, facts=facts, message_ids=message_ids)


def decode_truncated(value: bytes) -> str:
    """Decode the first 4096 bytes of a value that anyone may have written; invalid UTF-8 is escaped."""
    return value[:4096].decode(errors="backslashreplace")


def _array(raw: bytes | None) -> Raw | None:
    """Return a JSON array on one line without decoding its items; None if it is not an array."""
    if raw is None:
        return _NO_ITEMS
    try:
        raw.decode()
        _ITEMS.decode(raw)
        return Raw(msgspec.json.format(raw, indent=-1) if b"\n" in raw or b"\r" in raw else raw)
    except DECODE_ERRORS:
        return None


def _commit(fields: dict[bytes, bytes]) -> str:
    return decode_truncated(fields.get(b"commit") or NO_COMMIT.encode())


def check_continuity(
    cursor: Cursor, commit_at_cursor: str | None, first: str, first_number: int | None
) -> tuple[Literal["intact", "gap", "rollback"], int | None]:
    """Return whether the audit still holds everything after the cursor, and how many entries are missing.

    `commit_at_cursor` is None if the entry at the cursor is gone. `first` and `first_number` are of the oldest entry.
    The janitor never trims the entry at an archive's cursor. If that entry is gone and all others are younger, a commit
    trimmed it (`retention.audit_entries_max`). If an older entry remains, the server was rolled back.
    """
    if not cursor.commit or commit_at_cursor == cursor.commit:
        return "intact", 0
    if entry_order(first) <= entry_order(cursor.id):
        return "rollback", None
    if first_number is None or cursor.number is None or first_number <= cursor.number:
        return "gap", None  # the server does not count, or its count restarted
    entries = first_number - cursor.number - 1
    return ("gap" if entries else "intact"), entries


class Page(NamedTuple):
    """Entries, and the size and ends of the stream. `added` counts all entries ever added, None before Redis 7.0."""

    now: float
    length: int
    added: int | None
    first: str
    last: str
    commit_at_cursor: str | None
    """Commit of the entry after which the page begins; None if there is no such entry."""
    entries: list[tuple[bytes, dict[bytes, bytes]]]

    @property
    def more(self) -> bool:
        return bool(self.entries) and self.entries[-1][0].decode() != self.last

    @property
    def first_number(self) -> int | None:
        return None if self.added is None else self.added - self.length + 1

    def lines(self, after: Cursor) -> list[AuditLine]:
        """Convert the entries. Each line has the number of its entry, or None if the number is unknown."""
        number = None if after.number is None else after.number + 1
        if self.added is None:
            number = None
        elif not self.more:
            number = self.added - len(self.entries) + 1
        elif self.entries[0][0].decode() == self.first:
            number = self.first_number
        numbers = repeat(None) if number is None else count(number)
        return [line_from_entry(*entry, n) for entry, n in zip(self.entries, numbers, strict=False)]


class AuditLog:
    """The audit stream of one fleet. Raises `ServerUnavailableError` while the server cannot serve."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def page(self, after: str, max_entries: int = PAGE_ENTRIES, max_bytes: int = PAGE_BYTES) -> Page:
        seconds, microseconds, length, added, first, last, found, commit, entries = await READ_AUDIT(
            self._client, [self._keys.audit], [after, max_entries, max_bytes]
        )
        return Page(
            now=int(seconds) + int(microseconds) / 1_000_000,
            length=length,
            added=None if added == b"" else int(added),
            first=first.decode(),
            last=last.decode(),
            commit_at_cursor=decode_truncated(commit or NO_COMMIT.encode()) if found else None,
            entries=[(entry_id, pairs(values)) for entry_id, values in entries],
        )

    async def find_common_entry(self, cursor: Cursor, find_known: FindKnown) -> Cursor:
        """Return the youngest entry, at the cursor or before it, that exists in the audit and was read before.

        The search starts with the newest entries, because a failover loses only a few. Each round examines ten times as
        many entries as the one before, so that `find_known` is called only a few times. Without a common entry the
        result is the beginning: this is another server, and every entry is new.
        """
        end, wanted = cursor.id, _SEARCH_ENTRIES
        while True:
            candidates: list[EntryKey] = []
            while len(candidates) < wanted:
                found = await self._client.xrevrange(self._keys.audit, end, "-", count=_SEARCH_ENTRIES)
                candidates += ((decode_truncated(key), _commit(pairs(values))) for key, values in found)
                if len(found) < _SEARCH_ENTRIES:
                    wanted = 0
                    break
                end = f"({candidates[-1][0]}"
            known = await find_known(candidates)
            common = next((each for each in candidates if each in known), None)
            if common is not None or not wanted:
                return Cursor(*common) if common is not None else Cursor()
            wanted *= 10


class TailPage(NamedTuple):
    """The result of one read. `behind` counts the unread entries, None if unknown; `first` is the oldest id kept."""

    lines: list[AuditLine]
    now: float
    more: bool
    behind: int | None
    first: str


class AuditTail:
    """Reads the audit from a cursor on, page by page, and detects missing entries."""

    def __init__(self, audit: AuditLog, cursor: Cursor, find_known: FindKnown) -> None:
        self.cursor = cursor
        self._audit = audit
        self._find_known = find_known
        self._rollback: Rollback | None = None
        """A rollback that `read` returns only with the next entry, because an archive must not end with a note."""

    async def read(self) -> TailPage:
        """Read the next page. The last line is always an entry: notes of missing entries come before the next one."""
        page = await self._audit.page(self.cursor.id)
        if not page.length:
            return TailPage([], page.now, more=False, behind=0, first="")
        continuity, missing = check_continuity(self.cursor, page.commit_at_cursor, page.first, page.first_number)
        if continuity == "rollback":
            before = self._rollback.before if self._rollback else self.cursor.id
            self.cursor = await self._audit.find_common_entry(self.cursor, self._find_known)
            self._rollback = Rollback(self.cursor.id, before)
            return TailPage([], page.now, more=True, behind=None, first=page.first)
        lines: list[AuditLine] = []
        if page.entries:
            if self._rollback is not None:
                lines.append(AuditLine(rollback=self._rollback))
                self._rollback = None
            if continuity == "gap":
                lines.append(AuditLine(gap=Gap(self.cursor.id, page.first, missing)))
            import asyncio  # noqa: PLC0415  slow to import

            # Converting a page takes about a millisecond of CPU, so it runs beside the event loop.
            lines += await asyncio.to_thread(page.lines, self.cursor)
            self.cursor = lines[-1].cursor
        behind = None if page.added is None or self.cursor.number is None else page.added - self.cursor.number
        return TailPage(lines, page.now, page.more, behind if page.more else 0, page.first)
