"""The directory of an archive: what lies in it, whose it is, and who may write there."""

import errno
import fcntl
import gzip
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

import msgspec
import uuid_utils
from msgspec import Struct

from aism_engine.errors import AismError

_NAME: Final = re.compile(r"^audit-(\d{4}-\d\d-\d\d)\.jsonl(\.gz)?$")
_BUFFER: Final = 1 << 20


class ArchiveError(AismError):
    """The archive cannot be used now. `trouble` names why: one of TROUBLES."""

    def __init__(self, trouble: str, detail: str) -> None:
        super().__init__(f"{trouble}: {detail}")
        self.trouble = trouble
        self.detail = detail


_TROUBLES: Final = {
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "no_space",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EROFS: "denied",
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.EEXIST: "missing",
}
TROUBLES: Final = (*sorted({*_TROUBLES.values(), "foreign", "locked", "io_error"}), "internal_error")


def named(error: OSError) -> ArchiveError:
    """Name what the file system says."""
    where = f"{error.filename}: " if error.filename else ""
    return ArchiveError(_TROUBLES.get(error.errno or 0, "io_error"), f"{where}{error.strerror or error}")


class Identity(Struct, frozen=True):
    """Which archive it is: a name of its own, not the host's, so that it stays itself wherever it is mounted."""

    archive: str
    prefix: str


class DayFile(NamedTuple):
    """The file of a day, as it lies there: compressed or not."""

    path: Path
    day: str

    @property
    def closed(self) -> bool:
        return self.path.suffix == ".gz"

    def open(self) -> IO[bytes]:
        """Open it to read. One that has been compressed since it was listed is read so."""
        if not self.closed:
            with suppress(FileNotFoundError):
                return self.path.open("rb", buffering=_BUFFER)
        return cast("IO[bytes]", gzip.open(plain(self.path.parent, self.day).with_suffix(".jsonl.gz"), "rb"))


def plain(folder: Path, day: str) -> Path:
    return folder / f"audit-{day}.jsonl"


def day_files(folder: Path) -> list[DayFile]:
    """List the files of all days, the oldest first.

    Where a day has both, its compressed one is left out: it was made when the engine was killed, and is made again.
    """
    found: dict[str, DayFile] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # `.jsonl.gz` before `.jsonl`, which thus takes its place
        if match := _NAME.match(path.name):
            found[match[1]] = DayFile(path, match[1])
    return [found[day] for day in sorted(found)]


def identity(folder: Path) -> Identity:
    """Read which archive it is. Raises OSError, or ArchiveError where that is unreadable."""
    try:
        return msgspec.json.decode((folder / "archive.json").read_bytes(), type=Identity)
    except msgspec.DecodeError as error:
        raise ArchiveError("foreign", f"{folder / 'archive.json'} is none of ours: {error}") from None


def claim(folder: Path, prefix: str) -> tuple[int, Identity]:
    """Take a directory to write in: gives its lock, to be closed in the end, and its identity.

    Raises ArchiveError: `locked` where another engine writes there, `foreign` where it is the archive of another fleet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 200, 0).decode(errors="replace") or "another engine"
            detail = f"{holder} writes to {folder}: give each engine a directory of its own, archive.directory"
            raise ArchiveError("locked", detail) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        try:
            found = identity(folder)
        except FileNotFoundError:
            found = Identity(uuid_utils.uuid7().hex, prefix)
            write_whole(folder / "archive.json", msgspec.json.encode(found) + b"\n")
        _check(folder, found, prefix)
    except BaseException:
        os.close(lock)
        raise
    return lock, found


def _check(folder: Path, found: Identity, prefix: str) -> None:
    if found.prefix != prefix:
        raise ArchiveError("foreign", f"{folder} is the archive of the fleet {found.prefix!r}, not of {prefix!r}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make it last that a file is there, or has another name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compress(source: Path, chunk: int) -> Iterator[None]:
    """Compress a file in steps of so many bytes; the plain one goes when the other lies on the disk for good."""
    target, part = source.with_suffix(".jsonl.gz"), source.with_suffix(".part")
    try:
        with source.open("rb") as plain_file, part.open("wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", filename=source.name, compresslevel=6) as packed:
                while content := plain_file.read(chunk):
                    packed.write(content)
                    yield
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(target)
        sync_folder(source.parent)
        source.unlink()
    finally:
        part.unlink(missing_ok=True)
