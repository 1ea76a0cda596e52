"""The audit, read as a log; who archives it; and how it is trimmed behind them.

What is guaranteed. A `Tail` gives every entry behind its cursor once, in order, or says what is missing: a gap, where
the audit was trimmed before it was read, or that the server has gone back in time. Nothing is trimmed that a living
archive has yet to read, short of the hard bound, which each commit enforces by itself.

What is not guaranteed. How many entries a gap has lost, before Redis 7.0 or after the server's own count has begun
anew. That somebody who deletes single entries of the audit is noticed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from aism_engine.ops.audit_log import NO_COMMIT, Cursor, Gap, Line, Rewound, clipped, line, missing
from aism_engine.store.client import Client, naming_outages
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import AUDIT, TRIM, TrimCode

MOST: Final = 200
MOST_BYTES: Final = 1 << 18
"""Of a page: arbitrary numbers, by which the server is held up for about a millisecond."""
_TRIMMED_AT_A_TIME: Final = 100
_LOOKED_AT: Final = 100
"""Entries read at a time while it is sought where a server that has gone back agrees with what was read."""

Known: TypeAlias = Callable[[Collection[tuple[str, str]]], Awaitable[set[tuple[str, str]]]]
"""Tells which of these entries, each its id and its commit, were read before."""


class Announcement(Struct, frozen=True):
    """How far an archive has come, as its engine tells it: everything up to `cursor` lies on its disk for good.

    `at` is unix seconds by Redis `TIME`; host and directory are for people.
    """

    cursor: str
    at: float
    host: str = ""
    directory: str = ""


class Page(NamedTuple):
    """Entries of the audit, and what the server says of it all. `added` is None before Redis 7.0."""

    now: float
    length: int
    added: int | None
    first: str
    last: str
    found: str | None
    """The commit of the entry behind which was read; None where there is no such entry."""
    entries: list[tuple[bytes, dict[bytes, bytes]]]

    @property
    def more(self) -> bool:
        return bool(self.entries) and self.entries[-1][0].decode() != self.last

    @property
    def first_number(self) -> int | None:
        return None if self.added is None else self.added - self.length + 1


class History:
    """Reads the audit of one fleet, and trims it."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def page(self, after: str, most: int = MOST, most_bytes: int = MOST_BYTES) -> Page:
        with naming_outages():
            seconds, microseconds, length, added, first, last, found, commit, *entries = await AUDIT(
                self._client, [self._keys.audit], [after, most, most_bytes]
            )
        return Page(
            now=int(seconds) + int(microseconds) / 1_000_000,
            length=length,
            added=None if added == b"" else int(added),
            first=first.decode(),
            last=last.decode(),
            found=clipped(commit or NO_COMMIT.encode()) if found else None,
            entries=[(entry_id, _table(fields)) for entry_id, fields in entries],
        )

    async def ancestor(self, cursor: Cursor, known: Known) -> Cursor:
        """Find the youngest entry, not behind the cursor, that is in the audit and was read before.

        The newest are looked at first: a failover takes back little. Each time ten times as many, so that what was read
        is searched only a few times. Where nothing is known it is another server, and everything is new.
        """
        below, wanted = cursor.id, _LOOKED_AT
        while True:
            seen: list[tuple[str, str]] = []
            while len(seen) < wanted:
                with naming_outages():
                    found = await self._client.execute_command(
                        "XREVRANGE", self._keys.audit, below, "-", "COUNT", _LOOKED_AT
                    )
                seen += ((clipped(key), clipped(_table(fields).get(b"commit") or b"-")) for key, fields in found)
                if len(found) < _LOOKED_AT:
                    wanted = 0
                    break
                below = f"({seen[-1][0]}"
            read = await known(seen)
            for each in seen:
                if each in read:
                    return Cursor(*each)
            if not wanted:
                return Cursor()
            wanted *= 10

    # --- who archives, and what may go --------------------------------------------------------------------------------

    async def announce(self, archive: str, announcement: Announcement) -> None:
        with naming_outages():
            await self._client.hset(self._keys.archives, archive, msgspec.json.encode(announcement))

    async def announced(self) -> dict[str, Announcement | None]:
        """Read who archives; None is what nobody can read."""
        with naming_outages():
            found = await self._client.hgetall(self._keys.archives)
        return {clipped(archive): _announcement(value) for archive, value in found.items()}

    async def withdraw(self, archive: str) -> None:
        """Take an announcement back: nothing is held back for this archive any more."""
        with naming_outages():
            await self._client.hdel(self._keys.archives, archive)

    async def trim(self, token: str, keep: int, before: str | None) -> tuple[TrimCode, int, bool]:
        """Trim some of the audit: down to `keep` entries, leaving `before` and all behind it.

        Gives how many went, and whether there may be more to trim at once.

        The script compares the token, so that a leader of yesterday, with other settings, stays away. Even without that
        it could do no harm: it takes only what every archive that was announced has on its disk, and only what exceeds
        a bound that was set. `before` was read a moment ago: cursors only grow, so it can but leave too much. An
        archive that announced itself in between, with an older cursor, is one that came a moment too late.
        """
        with naming_outages():
            code, removed, more = await TRIM(
                self._client,
                [self._keys.epoch, self._keys.audit],
                [token, keep, _TRIMMED_AT_A_TIME, before or ""],
            )
        return TrimCode(code), removed, bool(more)

    async def trim_dead_letters(self, before: float) -> int:
        """Remove the dead letters that were buried before this instant; gives how many."""
        with naming_outages():
            removed: int = await self._client.xtrim(
                self._keys.dead_letters, minid=f"{before * 1000:.0f}", approximate=False
            )
        return removed


class Reading(NamedTuple):
    """What a tail has read. `behind` is how many entries are there still, None where the server does not count them."""

    lines: list[Line]
    now: float
    more: bool
    behind: int | None
    first: str


class Tail:
    """Reads the audit on from a cursor, page by page, and notices what is missing."""

    def __init__(self, history: History, cursor: Cursor, known: Known) -> None:
        self.cursor = cursor
        self._history = history
        self._known = known
        self._rewound: Rewound | None = None
        """Told with the next entry: alone at the end of a file it would be told again after a restart."""

    async def read(self) -> Reading:
        """Read on. What is said of a gap comes right before the entry behind it, never alone."""
        page = await self._history.page(self.cursor.id)
        if not page.length:
            return Reading([], page.now, more=False, behind=0, first="")
        what, lost = missing(self.cursor, page.found, page.first, page.first_number)
        if what == "rewound":
            before = self.cursor
            self.cursor = await self._history.ancestor(before, self._known)
            self._rewound = Rewound(self.cursor.id, self._rewound.before if self._rewound else before.id)
            return Reading([], page.now, more=True, behind=None, first=page.first)
        lines: list[Line] = []
        if page.entries:
            if self._rewound is not None:
                lines.append(Line(rewound=self._rewound))
                self._rewound = None
            if what == "gap":
                lines.append(Line(gap=Gap(self.cursor.id, page.first, lost)))
            number = _number(page, self.cursor)
            # Building the lines of a page takes about a millisecond of the processor: not on the loop.
            lines += await asyncio.to_thread(_lines, page.entries, number)
            self.cursor = lines[-1].cursor
        behind = None if page.added is None or self.cursor.number is None else page.added - self.cursor.number
        return Reading(lines, page.now, page.more, behind if page.more else 0, page.first)


def _lines(entries: list[tuple[bytes, dict[bytes, bytes]]], number: int | None) -> list[Line]:
    return [
        line(entry_id, fields, None if number is None else number + place)
        for place, (entry_id, fields) in enumerate(entries)
    ]


def _number(page: Page, cursor: Cursor) -> int | None:
    """Give the number of the first entry of a page, as the server counts them, where that can be known."""
    if page.added is None:
        return None
    if not page.more:
        return page.added - len(page.entries) + 1
    if page.entries[0][0].decode() == page.first:
        return page.first_number
    return None if cursor.number is None else cursor.number + 1


def held_back(announced: Mapping[str, Announcement | None]) -> str | None:
    """Give the oldest cursor of all archives; None where there is none."""
    cursors = [each.cursor for each in announced.values() if each is not None]
    return min(cursors, key=_order, default=None)


def _order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))


def _announcement(value: bytes) -> Announcement | None:
    try:
        found = msgspec.json.decode(value, type=Announcement)
        milliseconds, number = map(int, found.cursor.split("-"))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return found if min(milliseconds, number) >= 0 else None


def _table(fields: Any) -> dict[bytes, bytes]:  # noqa: ANN401  redis-py makes a dict of them, a script a list
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
