"""The archive as its engine writes it. Everything here blocks on the disk: it is called aside from the event loop."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from aism_engine.ops.archive import directory as files
from aism_engine.ops.archive.directory import DayFile
from aism_engine.ops.audit_log import Cursor, Line, day

log = structlog.get_logger(component="archive")

UNSYNCED: Final = 8 << 20
"""Most bytes that are written before they are synced."""
_CHECKED: Final = 4 * UNSYNCED
"""Of the newest file, how much is checked line by line when it is opened: a loss of power may have taken anything that
was not synced, not just the end.
"""
_STEP: Final = 2 << 20
"""Bytes compressed at a time, in about a twentieth of a second."""
_LINES: Final = msgspec.json.Decoder(Line)


class Archive:
    """One directory, taken to write in. `Archive.open` takes it, `close` gives it back.

    Any OSError gives it back at once, with what was not synced cut off: what the disk has taken of it is unknown, and
    the audit still holds it all.
    """

    def __init__(self, path: Path, lock: int, identity: files.Identity) -> None:
        self.path = path
        self.name = identity.archive
        self.host = socket.gethostname()
        self.cursor = Cursor()
        """The last entry written."""
        self.synced = Cursor()
        """The last entry that a loss of power cannot take."""
        self._lock = lock
        self._file = -1
        self._day = ""
        self._size = self._synced_size = 0
        self._compressing: Iterator[None] = iter(())

    @classmethod
    def open(cls, path: Path, prefix: str) -> Self:
        """Take a directory, cut off what was torn, and find where to go on. Raises ArchiveError by its trouble."""
        try:
            lock, identity = files.claim(path, prefix)
            archive = cls(path, lock, identity)
            try:
                archive._recover()
            except BaseException:
                archive._release()
                raise
        except OSError as error:
            raise files.named(error) from error
        return archive

    @property
    def unsynced(self) -> int:
        return self._size - self._synced_size

    def append(self, lines: Sequence[Line]) -> int:
        """Write these lines; gives how many bytes they are."""
        try:
            written, buffer = 0, bytearray()
            for line in lines:
                if line.id and (today := day(line.id)) > self._day:
                    self._write(buffer)
                    buffer.clear()
                    self._begin(today)
                encoded = msgspec.json.encode(line)
                buffer += encoded
                buffer += b"\n"
                written += len(encoded) + 1
            self._write(buffer)
            self.cursor = next((line.cursor for line in reversed(lines) if line.id), self.cursor)
            if self.unsynced >= UNSYNCED:
                self._sync()
        except OSError as error:
            self._fail()
            raise files.named(error) from error
        return written

    def sync(self) -> None:
        """Make all that was written last."""
        try:
            self._sync()
        except OSError as error:
            self._fail()
            raise files.named(error) from error

    def compress(self) -> bool:
        """Compress a little of the days that are over; tells whether there is more to do."""
        try:
            for _ in self._compressing:
                return True
            over = [file for file in files.day_files(self.path) if not file.closed and file.day != self._day]
            if over:
                self._compressing = files.compress(over[0].path, _STEP)
        except OSError as error:
            self._compressing = iter(())
            raise files.named(error) from error
        return bool(over)

    def close(self) -> None:
        """Sync, and give the directory back."""
        try:
            self.sync()
        finally:
            self._release()

    # --- within -------------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        for part in self.path.glob("*.part"):
            part.unlink()
        found = files.day_files(self.path)
        if found and not found[-1].closed:
            self._open(found[-1].path, found[-1].day)
            self._cut_torn()
        elif found:
            self._day = found[-1].day  # closed: whatever comes belongs to a later file
        if not self.cursor.commit:
            self.cursor = next(filter(None, map(_last_cursor, reversed(found))), Cursor())
        self._sync()

    def _cut_torn(self) -> None:
        """Cut the newest file behind its last whole entry, or before what is damaged.

        What is said of a gap is never the last: it is written, and written again, with the entry behind it. Damage with
        whole lines behind it is kept aside, for a kill does not leave that: a loss of power may, or a hand.
        """
        start = max(0, self._size - _CHECKED)
        content = _read(self._file, start, self._size - start)
        place = 0 if start == 0 else content.find(b"\n") + 1  # the line that begins before `start` is not checked
        whole = 0 if start == 0 else place
        while (end := content.find(b"\n", place)) >= 0:
            try:
                line = _LINES.decode(content[place:end])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                break
            place = end + 1
            if line.id:
                self.cursor, whole = line.cursor, place
        torn = content[whole:]
        if torn:
            log.warning("archive_cut", bytes=len(torn), day=self._day, consequence="it is read again from the audit")
            if torn.count(b"\n") > 1:
                files.write_whole(self.path / f"cut-{self._day}-{start + whole}.jsonl", torn)
            os.ftruncate(self._file, start + whole)
            self._size = start + whole

    def _open(self, path: Path, today: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._day = today
        self._size = os.fstat(self._file).st_size
        self._synced_size = 0

    def _begin(self, today: str) -> None:
        """Close the file of one day, for good, and begin that of another."""
        if self._file >= 0:
            self._sync()
            os.close(self._file)
            self._file = -1
        self._open(files.plain(self.path, today), today)
        files.sync_folder(self.path)
        self._synced_size = self._size

    def _write(self, content: bytearray) -> None:
        if content and self._lock < 0:
            raise OSError(errno.EBADF, "the directory was given back")
        if content and self._file < 0:
            self._begin(_day_after(self._day))  # the newest is closed, and this is older than it
        view = memoryview(content)
        while view:
            taken = os.write(self._file, view)
            self._size += taken
            view = view[taken:]

    def _sync(self) -> None:
        if self._file >= 0 and (self.unsynced or self.synced != self.cursor):
            os.fdatasync(self._file)
            self._synced_size = self._size
        self.synced = self.cursor

    def _fail(self) -> None:
        if self._file >= 0:
            try:
                os.ftruncate(self._file, self._synced_size)
            except OSError as error:  # whatever is left of it is checked when it is opened again
                log.warning("archive_not_cut", error=str(error))
        self._release()

    def _release(self) -> None:
        self._compressing = iter(())
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1


def _read(descriptor: int, start: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(descriptor, length, start)):
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts)


def _last_cursor(file: DayFile) -> Cursor | None:
    """Find the last entry of a file, by reading it all: needed only where the newest one is empty or was closed."""
    last: Cursor | None = None
    with file.open() as content:
        for raw in content:
            try:
                line = _LINES.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            last = line.cursor if line.id else last
    return last


def _day_after(today: str) -> str:
    return (date.fromisoformat(today) + timedelta(days=1)).isoformat()
