"""What commands print: results on standard output, as text or as JSON, and progress on standard error."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self, TextIO, TypeAlias

import msgspec
import typer
from msgspec import Struct

from aism_engine import terminal
from aism_engine.cli import options
from aism_engine.clock import from_iso, iso
from aism_engine.durations import format_age, format_duration
from aism_engine.terminal import print_error_line, print_line, printable

_PROGRESS_AFTER_S: Final = 1.0
_PROGRESS_INTERVAL_S: Final = 0.2
_PROGRESS_WIDTH: Final = 79
_NO_VALUE: Final = "-"
_CLEARED: Final = f"\r{'':<{_PROGRESS_WIDTH}}\r"
"""What clears a progress line."""
_LARGE: Final = 1e15
_SUFFIX: Final = re.compile("_(id|at|s)$")

Fields: TypeAlias = Mapping[str, Any]
"""A result as it is printed in JSON. The names are a published interface."""
Columns: TypeAlias = Sequence[str]
"""The fields that a table shows."""


class Output(options.OptionSet, frozen=True, kw_only=True):
    """Prints the result of a command: JSON for programs, text for people."""

    json: options.Json = False

    def print(self, value: object, text: str) -> None:
        """Print a result: `value` as JSON, or `text`, if there is any."""
        if self.json:
            print_json(value)
        elif text:
            print_line(text)

    def print_fields(
        self, value: object, tables: Mapping[str, Columns] = {}, *, changed: Mapping[str, object] = {}
    ) -> None:
        """Print an object, one field a line, and then each of its lists that `tables` names.

        `changed` replaces fields in the text, but not in the JSON.
        """
        self.print(value, "\n".join(field_lines(msgspec.to_builtins(value) | changed, tables)))

    def print_table(self, rows: Sequence[Fields], columns: Columns, *, of: int = 0) -> None:
        """Print a list of objects. `of` is the number of all objects, if `rows` are only the newest of them."""
        self.print(rows, "\n".join(table_lines(rows, columns)))
        if len(rows) < of and not self.json:
            typer.echo(f"showing the newest {len(rows)} of {of}; --limit N shows more", err=True)


def print_json(value: object) -> None:
    """Print a result as one line of JSON."""
    terminal.print_json(as_json_text(value))


def print_notice(message: str) -> None:
    """Print a notice for people on standard error, over a progress line if one is shown."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(_CLEARED)
    print_error_line(message)


def as_json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def fields_as_json(record: Struct, *names: str) -> dict[str, Any]:
    """Return fields of a record for JSON. Instants are written in ISO 8601; unknown ones and empty texts are null."""
    found = {name: getattr(record, name) for name in names}
    instants = {name: iso(value) if value else None for name, value in found.items() if _is_instant(name)}
    return {name: None if value == "" else value for name, value in found.items()} | instants


def field_lines(fields: Fields, tables: Mapping[str, Columns] = {}) -> list[str]:
    """Return an object as lines of text: one for each field, then a table for each of its lists that `tables` names."""
    width = max(map(len, fields))
    shown = {name: _format(name, field) for name, field in fields.items()}
    shown |= {name: f"{fields[name]} ({text})" for name, text in shown.items() if _is_instant(name) and fields[name]}
    lines = [f"{name:<{width}}  {text}" for name, text in shown.items()]
    for name, columns in tables.items():
        lines += ["", *table_lines(fields[name], columns)] if fields[name] else []
    return lines


def table_lines(rows: Sequence[Fields], columns: Columns) -> list[str]:
    """Return a table as lines of text, without the columns that are empty in all rows.

    A heading is the name of its field in capitals, without a suffix `_id`, `_at` or `_s`.
    """
    headings = [_SUFFIX.sub("", name).replace("_", " ").upper() for name in columns]
    named = zip(headings, columns, strict=True)
    cells = [[heading, *(_format(name, row[name]) for row in rows)] for heading, name in named]
    shown = [column for column in cells if not rows or any(text != _NO_VALUE for text in column[1:])]
    widths = [max(map(len, column)) for column in shown]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in zip(*shown, strict=True)]


def _is_instant(name: str) -> bool:
    return name.endswith(("_at", "since"))


def format_distance(instant: str) -> str:
    """Return how far an instant is from now: `2m ago`, `in 3h`. An instant that is not valid is returned unchanged."""
    try:
        passed_s = time.time() - from_iso(instant)
    except ValueError:
        return instant
    return f"{format_age(passed_s)} ago" if passed_s >= 0 else f"in {format_age(-passed_s)}"


def _format(name: str, value: object) -> str:
    """Return a field as one line of text: an instant as its distance from now, a timeout as a duration."""
    text = str(value)
    match value:
        case None | "" | () | []:
            text = _NO_VALUE
        case str() if _is_instant(name):
            text = format_distance(value)
        case str() if name.endswith("timeout") and value.replace(".", "", 1).isdecimal():
            text = format_duration(float(value))
        case bool():
            text = "yes" if value else "no"
        case float():
            text = format_age(value) if name.endswith("_age_s") else _format_number(value)
        case dict():
            text = ", ".join(f"{key}={_format('', each)}" for key, each in value.items()) or _NO_VALUE
        case list() | tuple():
            text = str(len(value)) if isinstance(value[0], dict) else ", ".join(map(str, value))
    return printable(text)


def _format_number(value: float) -> str:
    """Return a number as text with at most three decimals, or with an exponent if it is too long for a column."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < _LARGE else f"{value:g}"


class ProgressLine:
    """One line on standard error, rewritten while a command works. Starts after a second, and only on a terminal."""

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._now = now
        self._next_at = now() + _PROGRESS_AFTER_S
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def update(self, text: str) -> None:
        if self._now() < self._next_at or not self._stream.isatty():
            return
        self._next_at = self._now() + _PROGRESS_INTERVAL_S
        self._shown = True
        self._stream.write(f"\r{text[:_PROGRESS_WIDTH]:<{_PROGRESS_WIDTH}}")
        self._stream.flush()

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            self._stream.write(_CLEARED)
            self._stream.flush()
