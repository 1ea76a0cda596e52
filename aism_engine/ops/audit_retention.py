"""Trims old audit entries and dead letters.

Each archive publishes its cursor: the last entry that is safe on its disk. An archive is live if it published its
cursor within `retention.archive_ttl`. No entry after the cursor of a live archive is trimmed, except by the hard bound
`retention.audit_entries_max`, which every commit enforces by itself.
"""

from typing import Final

import msgspec
from msgspec import Struct

from aism_engine.ops.audit_log import decode_truncated, entry_order
from aism_engine.store.batch import Argument
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import TRIM_AUDIT, TrimCode

_TRIM_ENTRIES: Final = 100
"""Entries trimmed per call."""


class PublishedCursor(Struct, frozen=True):
    """The cursor of an archive, as published: every entry up to `cursor` is synced to its disk.

    `at` is when this was published, in unix seconds by Redis `TIME`. Host and directory are information for people.
    """

    cursor: str
    at: float
    host: str = ""
    directory: str = ""


class AuditRetention:
    """Cursors of the archives, and trimming. Raises `ServerUnavailableError` while the server cannot serve."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def publish_cursor(self, archive: str, published: PublishedCursor) -> None:
        await self._client.hset(self._keys.archives, archive, msgspec.json.encode(published))

    async def cursors(self) -> dict[str, PublishedCursor | None]:
        """Read the cursor of every archive, None where it is malformed."""
        found = await self._client.hgetall(self._keys.archives)
        return {decode_truncated(archive): _published(value) for archive, value in found.items()}

    async def remove_cursor(self, archive: str) -> None:
        """Stop keeping entries for this archive."""
        await self._client.hdel(self._keys.archives, archive)

    async def trim_audit(self, token: str, keep: int, before: str | None) -> tuple[TrimCode, int, bool]:
        """Trim some of the oldest entries. At least `keep` entries remain, and all entries from the id `before` on.

        Returns the script's code, how many entries were trimmed, and whether another call may trim more.

        The script compares the fencing token, so that a former leader with other settings trims nothing. Cursors move
        forward, so a `before` that is a moment old keeps too many entries, not too few. Exception: if the cursor of a
        live archive moves back after `before` was read, this method may trim entries that this archive still needs.
        """
        arguments: list[Argument] = [token, keep, _TRIM_ENTRIES, before or ""]
        code, removed, more = await TRIM_AUDIT(self._client, [self._keys.epoch, self._keys.audit], arguments)
        return TrimCode(code), removed, bool(more)

    async def trim_dead_letters(self, before: float) -> int:
        """Remove the dead letters written before this instant, and return how many."""
        minimum = f"{before * 1000:.0f}"
        removed: int = await self._client.xtrim(self._keys.dead_letters, minid=minimum, approximate=False)
        return removed


def _published(value: bytes) -> PublishedCursor | None:
    try:
        published = msgspec.json.decode(value, type=PublishedCursor)
        return published if min(entry_order(published.cursor)) >= 0 else None
    except (ValueError, RecursionError):
        return None
