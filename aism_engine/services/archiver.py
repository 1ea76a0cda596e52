"""The archiver: copies the audit to files on this engine's disk, whether the engine leads or stands by.

A page is written as soon as it is read. Written entries are synced every `poll_interval` and every 8 MiB; then the
archiver publishes its cursor, and the janitor trims only up to published cursors. So neither a kill nor a power
failure loses an entry.

A disk error is logged and counted by its cause, and the archiver retries with backoff. The engine keeps working. The
audit keeps what is not archived yet, up to `retention.audit_entries_max`. Entries that are trimmed before they are
archived are a gap, which the archive notes.

After each page except the last, the archiver pauses for as long as the page took. All disk access runs in threads.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import structlog

from aism_engine.backoff import Backoff
from aism_engine.errors import ServerUnavailableError
from aism_engine.metrics import start_at_zero
from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.archive.archive_writer import ArchiveWriter
from aism_engine.ops.archive.directory import CAUSES, ArchiveError
from aism_engine.ops.audit_log import BEGINNING, AuditLine, AuditLog, AuditTail, EntryKey, entry_time
from aism_engine.ops.audit_retention import AuditRetention, PublishedCursor
from aism_engine.services.base import Service, ServiceContext
from aism_engine.settings import ArchiveSettings

log = structlog.get_logger(component="archiver")

P = ParamSpec("P")
T = TypeVar("T")

_PUBLISH_EVERY_S: Final = 60.0
"""Longest time between two publications of the cursor: after `retention.archive_ttl` without one, the janitor forgets
the archive.
"""
_COMPRESSION_PAUSE_S: Final = 60.0
"""Pause after a failed compression."""
_BACKOFF: Final = Backoff(1.0, 30.0)
"""Pauses after errors. Each attempt opens the archive again, which reads up to 32 MiB of the newest file. So attempts
must be rare while an error, such as a full disk, lasts.
"""


class Archiver(Service):
    """Copies the audit to the archive, starting after the last entry of the archive."""

    name = "archiver"
    times_idle_steps = True
    leads_only = False

    def __init__(
        self,
        context: ServiceContext,
        settings: ArchiveSettings,
        audit: AuditLog,
        retention: AuditRetention,
        *,
        prefix: str,
    ) -> None:
        super().__init__(context)
        start_at_zero(context.metrics.archive_errors, CAUSES)
        self._audit = audit
        self._retention = retention
        self._path = Path(settings.directory)
        self._prefix = prefix
        self._poll_interval_s = settings.poll_interval
        self._archive: ArchiveWriter | None = None
        self._tail: AuditTail | None = None
        self._error: str | None = None
        """Cause of the current disk error."""
        self._failures = 0
        self._published: tuple[str, float] = ("", float("-inf"))
        self._synced_at = float("-inf")
        self._compress_from = float("-inf")

    async def run_once(self) -> bool:
        began_at = self._clock.monotonic()
        try:
            more = await self._archive_page()
        except ArchiveError as error:
            await self._fail(error)
            return False
        except ServerUnavailableError:
            raise
        except Exception as error:
            log.exception("archive_failed")  # a bug here must not end an engine that otherwise works
            await self._fail(ArchiveError("internal_error", repr(error)))
            return False
        self._recovered()
        self._record_step(began_at)
        if more:
            await asyncio.sleep(self._clock.monotonic() - began_at)  # leave half of the time to the rest of the engine
        return more

    async def wait(self) -> None:
        await asyncio.sleep(_BACKOFF.pause_s(self._failures) if self._failures else self._poll_interval_s)

    async def _archive_page(self) -> bool:
        archive, tail = self._archive, self._tail
        if archive is None or tail is None:
            archive = await _in_thread(self._open)
            tail = self._tail = AuditTail(self._audit, archive.cursor, self._find_known)
            log.info("archive_opened", directory=str(self._path), archive=archive.name, cursor=archive.cursor.id)
            await self._publish(archive)  # before the first page: the janitor then keeps what the archive lacks
        metrics = self._context.metrics
        page = await tail.read()
        if page.lines:
            metrics.archive_bytes.inc(await _in_thread(archive.append, page.lines))
            metrics.archive_entries.inc(sum(1 for line in page.lines if line.id))
            self._report_missing(page.lines)
        metrics.archive_behind.set(float("nan") if page.behind is None else page.behind)
        next_id = page.first if tail.cursor.id == BEGINNING else tail.cursor.id
        metrics.archive_lag.set(max(0.0, page.now - entry_time(next_id)) if page.more else 0)
        now = self._clock.monotonic()
        if now - self._synced_at >= self._poll_interval_s or not page.more:
            await _in_thread(archive.sync)
            self._synced_at = now
        if archive.synced.id != self._published[0] or now - self._published[1] >= _PUBLISH_EVERY_S:
            await self._publish(archive)
        return await self._compress(archive, now) or page.more

    def _open(self) -> ArchiveWriter:
        """Open the archive, and keep it even if the caller is cancelled meanwhile, so that `release` can close it."""
        self._archive = self._archive or ArchiveWriter.open(self._path, self._prefix)
        return self._archive

    async def _publish(self, archive: ArchiveWriter) -> None:
        cursor = archive.synced.id
        published = PublishedCursor(cursor, await self._store.read_time(), archive.host, str(archive.path))
        await self._retention.publish_cursor(archive.name, published)
        self._published = (cursor, self._clock.monotonic())

    async def _compress(self, archive: ArchiveWriter, now: float) -> bool:
        """Compress the next part of an earlier day's file. After an error the plain file stays; archiving continues."""
        if now < self._compress_from:
            return False
        try:
            return await _in_thread(archive.compress)
        except ArchiveError as error:
            self._compress_from = now + _COMPRESSION_PAUSE_S
            self._context.metrics.archive_errors.labels(error.cause).inc()
            log.warning("archive_not_compressed", cause=error.cause, detail=error.detail)
            return False

    async def _find_known(self, entries: Collection[EntryKey]) -> set[EntryKey]:
        """Return which of these entries are in the archive.

        In a rollback, the server loses entries that were already read. The tail then continues after the last entry
        that the archive and the server have in common.
        """
        try:
            return await _in_thread(ArchiveReader(self._path).known, entries)
        except OSError as error:
            raise ArchiveError.from_os_error(error) from error

    def _report_missing(self, lines: Collection[AuditLine]) -> None:
        metrics = self._context.metrics
        for line in lines:
            if line.gap is not None:
                metrics.archive_gaps.inc()
                metrics.archive_lost.inc(line.gap.entries or 0)
                gap = {"after": line.gap.after, "before": line.gap.before, "entries": line.gap.entries}
                log.error("archive_gap", **gap, reason="the audit was trimmed at retention.audit_entries_max")
            if line.rollback is not None:
                log.warning("archive_rollback", after=line.rollback.after, before=line.rollback.before)

    async def _fail(self, error: ArchiveError) -> None:
        """Close the archive, count the error, and log it unless it is the same as before. The next step opens again."""
        archive, self._archive, self._tail = self._archive, None, None
        if archive is not None:
            with suppress(ArchiveError):
                await _in_thread(archive.close)
        self._failures += 1
        self._context.metrics.archive_up.set(0)
        self._context.metrics.archive_errors.labels(error.cause).inc()
        if error.cause != self._error:
            consequence = "the audit keeps what is not archived, up to retention.audit_entries_max"
            log.error("archive_unavailable", cause=error.cause, detail=error.detail, consequence=consequence)
        self._error = error.cause

    def _recovered(self) -> None:
        self._context.metrics.archive_up.set(1)
        self._failures = 0
        if self._error is not None:
            log.info("archive_available", cause=self._error)
            self._error = None

    async def release(self) -> None:
        """Sync and close the archive, and publish its final cursor."""
        archive, self._archive = self._archive, None
        if archive is None:
            return
        try:
            await _in_thread(archive.close)
        except ArchiveError as error:
            log.warning("archive_not_closed", cause=error.cause, detail=error.detail)
            return
        with suppress(ServerUnavailableError, TimeoutError):  # the next start publishes the cursor
            async with asyncio.timeout(1):
                await self._publish(archive)
        log.info("archive_closed", cursor=archive.cursor.id)


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread. A cancelled caller waits until `work` has ended: two threads never use one archive."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()
        raise
