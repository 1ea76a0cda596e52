"""The options that commands share, and what they are made into."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from aism_engine.cli.exit_codes import EXIT_CODES
from aism_engine.domain.protocol.messages import MAX_DURATION_S

_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$")
_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
Redis: TypeAlias = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="The server; else AISM_REDIS_URL, else localhost.")
]
Prefix: TypeAlias = Annotated[
    str | None, typer.Option("--prefix", metavar="NAME", help="First part of every key: the fleet's name.")
]
Config: TypeAlias = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in TOML; see config/engine.toml.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]


class CommandGroup(typer.Typer):
    """A group of commands, each of which tells its exit codes in its help."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  as typer has it
        # A bug of ours shall be a plain traceback, that can be read where logs are read.
        options |= {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
        super().__init__(epilog=EXIT_CODES, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        return super().command(name, epilog=EXIT_CODES, **options)


def address(text: str) -> tuple[str, str]:
    """Split HOST:PORT; `[::1]:80` is one too. Whether they are good is for the settings to say."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise typer.BadParameter(f"expected HOST:PORT, got {text!r}")
    return host.strip("[]"), port


def parse_time_or_age(option: str, text: str, now: float) -> float:
    """Read `2026-11-23T02:00:00Z` (without an offset: the local time) or `90s`, `10m`, `2h`, `1d` ago."""
    ago = _DURATION.match(text)
    if ago and ago[2]:
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        expected = "expected a time like 2026-11-23T02:00:00Z, or like 10m, 2h or 1d ago"
        raise typer.BadParameter(f"{option}: {expected}, got {text!r}") from None


def parse_time(option: str, text: str) -> float:
    """Read `2026-11-23T02:00:00Z`; without an offset it is the local time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(f"{option}: expected a time like 2026-11-23T02:00:00Z, got {text!r}") from None


def parse_duration(option: str, text: str) -> float:
    """Read `90s`, `10m`, `2h`, `1d` or `500ms`; a number alone is seconds; above 0, at most a year."""
    found = _DURATION.match(text)
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds <= MAX_DURATION_S:
        most = f"more than 0, like 30s, 10m, 2h or 1d, and at most {MAX_DURATION_S // _UNITS['d']}d"
        raise typer.BadParameter(f"{option}: expected {most}, got {text!r}")
    return seconds
