"""The archive as people read it, beside the engine that writes it. Takes no lock and changes nothing. It blocks."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from aism_engine.ops.archive import directory as files
from aism_engine.ops.audit_log import BEGINNING, Cursor, Line, day

_LINES: Final = msgspec.json.Decoder(Line)
_MARKS: Final = (b'{"gap"', b'{"rewound"')
_ENTRY: Final = b'{"id"'
_TELL_EVERY: Final = 20_000
"""Lines: an arbitrary number, a few hundredths of a second."""


class _Head(Struct, frozen=True):
    """Of a line, what names the entry: the rest is skipped, at some gigabytes a second."""

    id: str = BEGINNING
    n: int | None = None
    commit: str = ""


_HEADS: Final = msgspec.json.Decoder(_Head)


class ArchiveReader:
    """One archive, read from the beginning or from a day on.

    `cursor` is the last entry that was read, `first` the id of the first one: what there is to tell begins with it.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        """Nothing is read yet. `tell` hears which file is read, now and then."""
        self.path = path
        self.cursor = Cursor()
        self.first = ""
        self._tell = tell

    def lines(self, needle: str = "", since: str = "", until: str = "9999-12-31") -> Iterator[Line]:
        """Read the lines that name `needle` anywhere, and all that tell of something missing.

        Of the days between two, both inclusive; and the newest file in any case, for the cursor stands at its end.
        """
        sought, last = needle.encode(), b""
        found = files.day_files(self.path)
        wanted = [file for file in found[:-1] if since <= file.day <= until] + found[-1:]
        self.first = _first(found[0]) if found else ""
        for file in wanted:
            # A day whose file had to begin later, see the package, makes an entry stand in the file behind it.
            with file.open() as content:
                for number, raw in enumerate(content):
                    if number % _TELL_EVERY == 0:
                        self._tell(f"{file.path.name}, line {number + 1}")
                    if not raw.endswith(b"\n"):
                        break  # it is being written at this moment
                    if raw.startswith(_MARKS):
                        yield from _line(raw)
                        continue
                    if raw.startswith(_ENTRY):
                        last = raw
                    if sought in raw:
                        yield from _line(raw)
        if last:
            head = _head(last)
            self.cursor = Cursor(head.id, head.commit, head.n)

    def known(self, entries: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Tell which of these entries, each its id and its commit, are archived."""
        wanted, found = set(entries), set()
        since = min(map(day, (entry_id for entry_id, _ in wanted)), default="")
        for file in reversed([file for file in files.day_files(self.path) if file.day >= since]):
            with file.open() as content:
                for raw in content:
                    head = _head(raw)
                    if (head.id, head.commit) in wanted:
                        found.add((head.id, head.commit))
            if found:
                break  # those of an earlier day are older, and only the newest counts
        return found


def _first(file: files.DayFile) -> str:
    with file.open() as content:
        return next((_head(raw).id for raw in content if raw.startswith(_ENTRY)), "")


def _line(raw: bytes) -> Iterator[Line]:
    try:
        yield _LINES.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # damaged by some hand: the others can be read


def _head(raw: bytes) -> _Head:
    try:
        return _HEADS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Head()
