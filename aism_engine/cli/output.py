"""What commands print: results on standard output, for people or for programs."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import typer


def print_json(value: object) -> None:
    """Print a result as one line of JSON."""
    typer.echo(msgspec.json.encode(value))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns that line up, and nothing that a pipe would trip over."""
    lines = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one thing, a field a line."""
    pairs = [(name, _cell(value)) for name, value in fields]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name.ljust(width)}  {value}".rstrip())


def age(seconds: float | None) -> str:
    """Write an age as people say it: `4s`, `2m`, `3h`, `5d`."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.1f}s"


def pairs(values: Mapping[str, object]) -> str:
    """Write a small mapping on one line: `team=a, tier=2`."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else str(value)
