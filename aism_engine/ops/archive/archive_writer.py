"""Writes an archive. Every method blocks on the disk, so the engine calls them in a thread."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from aism_engine.ops.archive import directory
from aism_engine.ops.archive.archive_reader import last_entry
from aism_engine.ops.archive.directory import ArchiveError, Identity
from aism_engine.ops.audit_log import DECODE_ERRORS, AuditLine, Cursor, entry_day

log = structlog.get_logger(component="archive")

MAX_UNSYNCED_BYTES: Final = 8 << 20
_CHECKED_BYTES: Final = 4 * MAX_UNSYNCED_BYTES
"""How much of the newest file is checked line by line when it is opened. A power loss may damage anything that was not
synced, not just the end.
"""
_COMPRESS_BYTES: Final = 2 << 20
"""Number of bytes compressed per step. A step takes about a twentieth of a second."""
_LINES: Final = msgspec.json.Decoder(AuditLine)


class ArchiveWriter:
    """One archive, locked for writing from `open` to `close`. Every method raises ArchiveError on an OSError.

    If `append` or `sync` fails, the archive is closed and what was not synced is cut off: it is unknown how much of it
    reached the disk, and the audit still holds all of it.
    """

    def __init__(self, path: Path, lock: int, identity: Identity) -> None:
        self.path = path
        self.name = identity.archive
        self.host = socket.gethostname()
        self.cursor = Cursor()
        """The last entry written."""
        self.synced = Cursor()
        """The last entry that survives a power loss."""
        self._lock = lock
        self._file = -1
        self._day = ""
        self._size = self._synced_size = 0
        self._compressing: Iterator[None] = iter(())

    @classmethod
    def open(cls, path: Path, prefix: str) -> Self:
        """Lock a directory, cut off a torn end, and find where to continue."""
        with _archive_errors():
            archive = cls(path, *directory.acquire(path, prefix))
            try:
                archive._recover()
            except BaseException:
                archive._release()
                raise
        return archive

    def append(self, lines: Sequence[AuditLine]) -> int:
        """Write lines, and return their size in bytes."""
        written, buffer = 0, bytearray()
        with self._closing_on_error():
            for line in lines:
                if line.id and (day := entry_day(line.id)) > self._day:
                    self._write(buffer)
                    buffer.clear()
                    self._begin_day(day)
                encoded = msgspec.json.encode(line) + b"\n"
                buffer += encoded
                written += len(encoded)
            self._write(buffer)
            self.cursor = next((line.cursor for line in reversed(lines) if line.id), self.cursor)
            if self._size - self._synced_size >= MAX_UNSYNCED_BYTES:
                self._sync()
        return written

    def sync(self) -> None:
        """Make everything written survive a power loss."""
        with self._closing_on_error():
            self._sync()

    def compress(self) -> bool:
        """Compress the next part of an earlier day's file. Return whether there is more to do."""
        with _archive_errors():
            for _ in self._compressing:
                return True
            found = directory.day_files(self.path)
            plain = [file for file in found if not file.is_compressed and file.day != self._day]
            if plain:
                self._compressing = directory.compress(plain[0].path, _COMPRESS_BYTES)
        return bool(plain)

    def close(self) -> None:
        """Sync, and unlock the directory."""
        try:
            self.sync()
        finally:
            self._release()

    def _recover(self) -> None:
        for part in self.path.glob("*.part"):
            part.unlink()
        found = directory.day_files(self.path)
        if found and not found[-1].is_compressed:
            self._open_file(found[-1].path, found[-1].day)
            self._truncate_damage()
        elif found:
            self._day = found[-1].day  # it is compressed, so new entries go to a later file
        if not self.cursor.commit:
            self.cursor = next(filter(None, map(last_entry, reversed(found))), Cursor())
        self._sync()

    def _truncate_damage(self) -> None:
        """Truncate the newest file after its last complete entry, or before its first damaged line.

        A note of missing entries at the end is cut off, too: it is written again together with the entry after it. A
        kill damages only the end of the file. If complete lines follow the damage, a power loss or a person caused it,
        and the rest is kept in a file of its own.
        """
        start = max(0, self._size - _CHECKED_BYTES)
        with open(self._file, "rb", closefd=False) as file:
            file.seek(start)
            content = file.read()
        position = 0 if start == 0 else content.find(b"\n") + 1  # the line that begins before `start` is not checked
        complete = position
        while (end := content.find(b"\n", position)) >= 0:
            try:
                line = _LINES.decode(content[position:end])
            except DECODE_ERRORS:
                break
            position = end + 1
            if line.id:
                self.cursor, complete = line.cursor, position
        damaged = content[complete:]
        if not damaged:
            return
        kept = complete + start
        if damaged.count(b"\n") > 1:
            directory.write_atomically(self.path / f"damaged-{self._day}-{kept}.jsonl", damaged)
        consequence = "the entries are read again from the audit"
        log.warning("archive_truncated", bytes=len(damaged), day=self._day, consequence=consequence)
        os.ftruncate(self._file, kept)
        self._size = kept

    def _open_file(self, path: Path, day: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._day = day
        self._size = os.fstat(self._file).st_size
        self._synced_size = 0

    def _begin_day(self, day: str) -> None:
        """Close the current file for good, and begin that of another day."""
        if self._file >= 0:
            self._sync()
            os.close(self._file)
            self._file = -1
        self._open_file(directory.plain_path(self.path, day), day)
        directory.sync_directory(self.path)
        self._synced_size = self._size

    def _write(self, content: bytearray) -> None:
        if content and self._lock < 0:
            raise OSError(errno.EBADF, "the archive is closed")
        if content and self._file < 0:  # the newest file is compressed, and the entry is not of a later day
            self._begin_day((date.fromisoformat(self._day) + timedelta(days=1)).isoformat())
        view = memoryview(content)
        while view:
            written = os.write(self._file, view)
            self._size += written
            view = view[written:]

    def _sync(self) -> None:
        if self._file >= 0 and (self._size != self._synced_size or self.synced != self.cursor):
            os.fdatasync(self._file)
            self._synced_size = self._size
        self.synced = self.cursor

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._file >= 0:
                try:
                    os.ftruncate(self._file, self._synced_size)
                except OSError as truncate_error:  # the next `open` checks what is left
                    log.warning("archive_not_truncated", detail=str(truncate_error))
            self._release()
            raise ArchiveError.from_os_error(error) from error

    def _release(self) -> None:
        self._compressing = iter(())
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1


@contextmanager
def _archive_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArchiveError.from_os_error(error) from error
