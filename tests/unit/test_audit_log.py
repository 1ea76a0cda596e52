"""The laws of audit lines and cursors."""

from typing import Final

import msgspec
import pytest

from aism_engine.clock import from_iso
from aism_engine.ops.audit_log import AuditLine, Cursor, check_continuity, entry_day, line_from_entry

CURSOR: Final = Cursor("5-0", "c5", 5)


@pytest.mark.parametrize(
    ("commit_at_cursor", "first", "first_number", "expected"),
    [
        ("c5", "1-0", 1, ("intact", 0)),
        ("c5", "5-0", 5, ("intact", 0)),
        (None, "6-0", 6, ("intact", 0)),
        (None, "9-0", 9, ("gap", 3)),
        (None, "9-0", None, ("gap", None)),
        (None, "9-0", 2, ("gap", None)),
        (None, "1-0", 1, ("rollback", None)),
        ("other", "5-0", 5, ("rollback", None)),
    ],
)
def test_continuity_is_judged_by_the_entry_at_the_cursor(
    commit_at_cursor: str | None, first: str, first_number: int | None, expected: tuple[str, int | None]
) -> None:
    """If it is gone, entries were trimmed if all that remain are younger; otherwise the server was rolled back."""
    assert check_continuity(CURSOR, commit_at_cursor, first, first_number) == expected


def test_cursor_without_a_commit_misses_nothing() -> None:
    assert check_continuity(Cursor("5-0"), None, "9-0", 9) == ("intact", 0)


def test_line_of_a_file_equals_its_entry() -> None:
    """It is one line, whatever whitespace the facts contain, and empty fields are left out."""
    fields = {b"commit": b"c", b"epoch": b"3", b"facts": b'[{"event":\n"x"}]', b"message_ids": b'[["a","m1"]]'}
    written = msgspec.json.encode(line_from_entry(b"1-0", fields, 7))
    assert written == b'{"id":"1-0","n":7,"commit":"c","epoch":"3","facts":[{"event":"x"}],"message_ids":[["a","m1"]]}'
    assert msgspec.json.encode(msgspec.json.decode(written, type=AuditLine)) == written
    assert msgspec.json.encode(line_from_entry(b"1-0", {b"commit": b"c"})) == b'{"id":"1-0","commit":"c","facts":[]}'


def test_foreign_entry_is_kept_as_text() -> None:
    """With all of its fields, no facts, and a placeholder for the commit."""
    line = line_from_entry(b"1-0", {b"who": b"\xff\n"})
    assert (line.foreign, line.commit, line.decoded_facts()) == ({"who": "\\xff\n"}, "-", [])
    assert msgspec.json.encode(line) == b'{"id":"1-0","commit":"-","foreign":{"who":"\\\\xff\\n"}}'


def test_day_of_an_entry_is_that_of_its_id_in_utc() -> None:
    """A time outside the calendar has the first day of the calendar."""
    at = from_iso("2026-11-22T23:59:59.999Z")
    assert (entry_day(f"{at * 1000:.0f}-0"), entry_day(f"{at * 1000 + 1:.0f}-0")) == ("2026-11-22", "2026-11-23")
    assert entry_day("18446744073709551615-0") == "0001-01-01"
