"""Reads an archive while an engine may be writing it. Takes no lock, changes nothing, and blocks on the disk."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from aism_engine.ops.archive.directory import DayFile, day_files
from aism_engine.ops.audit_log import DECODE_ERRORS, AuditLine, Cursor, EntryKey, entry_day

_LINES: Final = msgspec.json.Decoder(AuditLine)
_NOTES: Final = (b'{"gap"', b'{"rollback"')
_ENTRY: Final = b'{"id"'
_REPORT_EVERY_LINES: Final = 20_000
"""Lines between two progress reports: an arbitrary number. Reading them takes a few hundredths of a second."""


class ArchiveReader:
    """One archive, read from its beginning or from a given day.

    After reading, `cursor` is the last entry of the archive, and `first` the id of its first entry.
    """

    def __init__(self, path: Path, report: Callable[[str], None] = lambda _: None) -> None:
        """`report` is called now and then with a description of the progress."""
        self.path = path
        self.cursor = Cursor()
        self.first = ""
        self._report = report

    def lines(self, needle: str = "", since: str = "", until: str = "9999-12-31") -> Iterator[AuditLine]:
        """Yield the lines that contain `needle` anywhere, and all notes of missing entries.

        Reads the files of the days from `since` to `until`, both inclusive, and in any case the newest file, for the
        cursor.
        """
        wanted, last = needle.encode(), b""
        found = day_files(self.path)
        self.first = _first_id(found[0]) if found else ""
        # The newest file may also hold entries of earlier days: see the package's docstring.
        for file in [file for file in found[:-1] if since <= file.day <= until] + found[-1:]:
            with file.open() as content:
                for number, raw in enumerate(content, 1):
                    if number % _REPORT_EVERY_LINES == 1:
                        self._report(f"{file.path.name}, line {number}")
                    if not raw.endswith(b"\n"):
                        break  # the engine is writing this line now
                    if raw.startswith(_ENTRY):
                        last = raw
                    if raw.startswith(_NOTES) or wanted in raw:
                        with suppress(*DECODE_ERRORS):  # a damaged line; the others can still be read
                            yield _LINES.decode(raw)
        if last:
            self.cursor = _entry(last)

    def known(self, entries: Collection[EntryKey]) -> set[EntryKey]:
        """Return which of these entries, each given by its id and commit, are in the archive.

        Stops at the newest day that holds any of them.
        """
        wanted, found = set(entries), set[EntryKey]()
        since = min((entry_day(entry_id) for entry_id, _ in wanted), default="")
        for file in reversed([file for file in day_files(self.path) if file.day >= since]):
            with file.open() as content:
                found = wanted.intersection((entry.id, entry.commit) for entry in map(_entry, content))
            if found:
                break
        return found


def _first_id(file: DayFile) -> str:
    with file.open() as content:
        return next((_entry(raw).id for raw in content if raw.startswith(_ENTRY)), "")


def last_entry(file: DayFile) -> Cursor | None:
    """Return the last entry of a file, by reading all of it. Needed if the newest file is compressed or empty."""
    last = None
    with file.open() as content:
        for entry in map(_entry, content):
            last = entry if entry.commit else last
    return last


def _entry(raw: bytes) -> Cursor:
    """Return the entry in a line; the beginning of the audit if the line is damaged or a note."""
    try:
        line = _LINES.decode(raw)
    except DECODE_ERRORS:
        return Cursor()
    return line.cursor if line.id else Cursor()
