"""The archivist: writes the audit to files of its own, whether this engine leads or stands by.

Its pace is its own: a page at a time, and while it has much to catch up with it rests as long as a page took. What
touches the disk is done aside. Whatever is wrong with the disk has a name in log and metrics, and is tried again; the
engine goes on, and the audit holds what is not archived yet, up to `retention.audit_entries_max`.

A page is written as soon as it was read, and made to last once in `every_s` (and after 8 MiB): only then is it
announced, and only what was announced may be trimmed. So neither a kill nor a loss of power costs an entry.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import structlog

from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.metrics import start_at_zero
from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.archive.archive_writer import Archive
from aism_engine.ops.archive.directory import TROUBLES, ArchiveError
from aism_engine.ops.audit_log import BEGINNING, Line, instant
from aism_engine.ops.audit_stream import Announcement, History, Tail
from aism_engine.services.base import Service, ServiceContext

log = structlog.get_logger(component="archiver")

P = ParamSpec("P")
T = TypeVar("T")

_ANNOUNCE_EVERY_S: Final = 60.0
"""Though nothing is new: one that says nothing for long is taken to be gone."""
_TROUBLED_S: Final = 5.0
"""Pause after a trouble with the disk, at least: an arbitrary number."""


class Archiver(Service):
    """Copies the audit into the directory, from the last line that stands there."""

    name = "archiver"
    polls = False
    leads_only = False

    def __init__(
        self, context: ServiceContext, history: History, directory: str, *, prefix: str, every_s: float
    ) -> None:
        super().__init__(context)
        start_at_zero(context.metrics.archive_errors, TROUBLES)
        self._history = history
        self._path = Path(directory)
        self._prefix = prefix
        self._every_s = every_s
        self._archive: Archive | None = None
        self._tail: Tail | None = None
        self._trouble: str | None = None
        self._pause_s = every_s
        self._announced: tuple[str, float] = ("", float("-inf"))
        self._synced_at = float("-inf")
        self._compress_from = float("-inf")

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._close()

    async def run_once(self) -> bool:
        began = self._clock.monotonic()
        self._pause_s = self._every_s
        try:
            more = await self._go_on()
        except ArchiveError as error:
            await self._give_up()
            self._troubled(error)
            return False
        except (ServerUnavailableError, NotLeadingError):
            raise
        except Exception as error:
            log.exception("archive_failed")  # a bug of ours: no reason to end an engine that does its work
            await self._give_up()
            self._troubled(ArchiveError("internal_error", repr(error)))
            return False
        self._untroubled()
        self._record_step(began, ())
        if more:
            await asyncio.sleep(self._clock.monotonic() - began)  # half of the time is the engine's
        return more

    async def wait(self) -> None:
        await asyncio.sleep(self._pause_s)

    async def _go_on(self) -> bool:
        archive, tail = self._archive, self._tail
        if archive is None or tail is None:
            archive = await _aside(self._open)
            tail = self._tail = Tail(self._history, archive.cursor, self._known)
            log.info("archive_opened", directory=str(self._path), archive=archive.name, cursor=archive.cursor.id)
            await self._announce(archive)  # before anything else: from now on nothing is trimmed that it lacks
        metrics = self._context.metrics
        reading = await tail.read()
        if reading.lines:
            metrics.archive_bytes.inc(await _aside(archive.append, reading.lines))
            metrics.archive_entries.inc(sum(1 for line in reading.lines if line.id))
            self._tell(reading.lines)
        metrics.archive_behind.set(float("nan") if reading.behind is None else reading.behind)
        at = reading.first if tail.cursor.id == BEGINNING else tail.cursor.id
        metrics.archive_lag.set(max(0.0, reading.now - instant(at)) if reading.more else 0)
        now = self._clock.monotonic()
        if now - self._synced_at >= self._every_s or not reading.more:
            await _aside(archive.sync)
            self._synced_at = now
        if archive.synced.id != self._announced[0] or now - self._announced[1] >= _ANNOUNCE_EVERY_S:
            await self._announce(archive)
        return await self._compress(archive, now) or reading.more

    def _open(self) -> Archive:
        """Take the directory, and hold it here: whoever is cancelled meanwhile has to give it back."""
        self._archive = self._archive or Archive.open(self._path, self._prefix)
        return self._archive

    async def _announce(self, archive: Archive) -> None:
        cursor = archive.synced.id
        at = await self._store.read_time()
        await self._history.announce(archive.name, Announcement(cursor, at, archive.host, str(archive.path)))
        self._announced = (cursor, self._clock.monotonic())

    async def _compress(self, archive: Archive, now: float) -> bool:
        """Compress a little. That it fails is no reason not to archive: the plain file stays, and is tried later."""
        if now < self._compress_from:
            return False
        try:
            return await _aside(archive.compress)
        except ArchiveError as error:
            self._compress_from = now + _ANNOUNCE_EVERY_S
            self._context.metrics.archive_errors.labels(error.trouble).inc()
            log.warning("archive_not_compressed", trouble=error.trouble, detail=error.detail)
            return False

    async def _known(self, entries: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        try:
            return await _aside(ArchiveReader(self._path).known, entries)
        except OSError as error:
            raise ArchiveError("io_error", str(error)) from error

    def _tell(self, lines: Collection[Line]) -> None:
        metrics = self._context.metrics
        for line in lines:
            if line.gap is not None:
                metrics.archive_gaps.inc()
                metrics.archive_lost.inc(line.gap.entries or 0)
                gap = {"after": line.gap.after, "before": line.gap.before, "entries": line.gap.entries}
                log.error("archive_gap", **gap, reason="the audit was trimmed at retention.audit_entries_max")
            if line.rewound is not None:
                log.warning("archive_rewound", after=line.rewound.after, before=line.rewound.before)

    async def _give_up(self) -> None:
        """Give the directory back; what was in hand is void, and read again."""
        archive, self._archive, self._tail = self._archive, None, None
        if archive is not None:
            with suppress(ArchiveError):
                await _aside(archive.close)

    def _troubled(self, error: ArchiveError) -> None:
        """Note what is wrong: told once in words, counted each time."""
        self._pause_s = max(self._every_s, _TROUBLED_S)
        metrics = self._context.metrics
        metrics.archive_up.set(0)
        metrics.archive_errors.labels(error.trouble).inc()
        if error.trouble != self._trouble:
            log.error(
                "archive_unavailable",
                trouble=error.trouble,
                detail=error.detail,
                consequence="the audit keeps what is not archived, up to retention.audit_entries_max",
            )
        self._trouble = error.trouble

    def _untroubled(self) -> None:
        self._context.metrics.archive_up.set(1)
        if self._trouble is not None:
            log.info("archive_available", trouble=self._trouble)
            self._trouble = None

    async def _close(self) -> None:
        """Make it last, say how far it has come, and give the directory back."""
        archive, self._archive = self._archive, None
        if archive is None:
            return
        try:
            await _aside(archive.close)
        except ArchiveError as error:
            log.warning("archive_not_closed", trouble=error.trouble, detail=error.detail)
            return
        with suppress(ServerUnavailableError, TimeoutError):  # it is announced at the next start
            async with asyncio.timeout(1):
                await self._announce(archive)
        log.info("archive_closed", cursor=archive.cursor.id)


async def _aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what blocks on the disk aside from the loop. Whoever is cancelled waits for it: two never touch one archive.

    Raises ArchiveError as it comes.
    """
    doing = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        if not doing.cancelled():
            doing.exception()
        raise
