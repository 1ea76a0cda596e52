"""What commands print: results on standard output, progress on standard error."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TextIO

import msgspec
import typer

_PROGRESS_AFTER_S: Final = 1.0
_PROGRESS_INTERVAL_S: Final = 0.2
_PROGRESS_WIDTH: Final = 79


def print_json(value: object) -> None:
    """Print a result as one line of JSON."""
    typer.echo(msgspec.json.encode(value))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns as plain text."""
    lines = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one object, one field a line."""
    pairs = [(name, _cell(value)) for name, value in fields]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name.ljust(width)}  {value}".rstrip())


def format_age(seconds: float | None) -> str:
    """Write an age with one unit: `4.0s`, `2m`, `3h`, `5d`."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.1f}s"


def format_pairs(values: Mapping[str, object]) -> str:
    """Write a small mapping on one line: `team=a, tier=2`."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


class ProgressLine:
    """One line on standard error, rewritten while a command works. Starts after a second, and only on a terminal."""

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._now = now
        self._next_at = now() + _PROGRESS_AFTER_S
        self._shown = False

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
            self._stream.write(f"\r{'':<{_PROGRESS_WIDTH}}\r")
            self._stream.flush()
