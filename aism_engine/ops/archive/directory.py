"""The directory of an archive: its files, its identity and its lock."""

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

from aism_engine.domain.plain_words import explain
from aism_engine.errors import AismError

_NAME: Final = re.compile(r"^audit-(\d{4}-\d\d-\d\d)\.jsonl(\.gz)?$")
_BUFFER_BYTES: Final = 1 << 20
_CAUSES: Final = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "no_space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "denied"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EEXIST), "missing"),
}
CAUSES: Final = (*sorted({*_CAUSES.values(), "foreign", "locked", "io_error"}), "internal_error")


class ArchiveError(AismError):
    """The archive cannot be used now. `cause` is one of CAUSES."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail

    @classmethod
    def from_os_error(cls, error: OSError) -> "ArchiveError":
        path = f"{error.filename}: " if error.filename else ""
        return cls(_CAUSES.get(error.errno or 0, "io_error"), f"{path}{error.strerror or error}")


class Identity(Struct, frozen=True):
    """Name of an archive, and prefix of its fleet. The name is not the host's, so that the archive can be moved."""

    archive: str
    prefix: str


class DayFile(NamedTuple):
    """The file of one day, compressed or not."""

    path: Path
    day: str

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix == ".gz"

    def open(self) -> IO[bytes]:
        """Open the file for reading, even if it was compressed after the listing."""
        if not self.is_compressed:
            with suppress(FileNotFoundError):
                return self.path.open("rb", buffering=_BUFFER_BYTES)
        return cast("IO[bytes]", gzip.open(plain_path(self.path.parent, self.day).with_suffix(".jsonl.gz"), "rb"))


def plain_path(folder: Path, day: str) -> Path:
    return folder / f"audit-{day}.jsonl"


def day_files(folder: Path) -> list[DayFile]:
    """Return the files of all days, oldest first.

    If a day has both files, the compressed one is left out: the engine was killed before it deleted the plain one.
    """
    found: dict[str, DayFile] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # the plain file sorts last, and so replaces the other
        if match := _NAME.match(path.name):
            found[match[1]] = DayFile(path, match[1])
    return [found[day] for day in sorted(found)]


def read_identity(folder: Path, prefix: str) -> Identity:
    """Read the identity of a fleet's archive.

    Raises OSError if the directory has none, and ArchiveError if it is malformed or of another fleet.
    """
    path = folder / "archive.json"
    try:
        identity = msgspec.json.decode(path.read_bytes(), type=Identity)
    except msgspec.DecodeError as error:
        raise ArchiveError("foreign", f"{path} does not identify an archive: {explain(error)}") from None
    if identity.prefix != prefix:
        fleets = f"the fleet {identity.prefix!r}, not of {prefix!r}"
        raise ArchiveError("foreign", f"{folder} is the archive of {fleets}; use another directory or prefix")
    return identity


def acquire(folder: Path, prefix: str) -> tuple[int, Identity]:
    """Lock a directory for writing, and create it if necessary.

    Returns the file descriptor of the lock, which the caller must close, and the identity. Raises ArchiveError:
    `locked` if another engine writes there, `foreign` if it is the archive of another fleet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 200, 0).decode(errors="replace") or "another engine"
            detail = f"{holder} writes to {folder}; set a different archive.directory for each engine"
            raise ArchiveError("locked", detail) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        try:
            identity = read_identity(folder, prefix)
        except FileNotFoundError:
            identity = Identity(uuid_utils.uuid7().hex, prefix)
            write_atomically(folder / "archive.json", msgspec.json.encode(identity) + b"\n")
    except BaseException:
        os.close(lock)
        raise
    return lock, identity


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that it exists complete or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Sync the entries of a directory, so that new and renamed files survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compress(source: Path, chunk_bytes: int) -> Iterator[None]:
    """Compress a file in steps, then delete the plain file once the compressed one is synced."""
    target, part = source.with_suffix(".jsonl.gz"), source.with_suffix(".part")
    try:
        with source.open("rb") as plain_file, part.open("wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", filename=source.name, compresslevel=6) as compressed:
                while content := plain_file.read(chunk_bytes):
                    compressed.write(content)
                    yield
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(target)
        sync_directory(source.parent)
        source.unlink()
    finally:
        part.unlink(missing_ok=True)
