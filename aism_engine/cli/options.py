"""Options that commands share, and the parsing of addresses, times and durations."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from aism_engine.cli.exit_codes import EXIT_CODES
from aism_engine.domain.protocol.messages import MAX_DURATION_S

Redis: TypeAlias = Annotated[
    str | None,
    typer.Option("--redis", metavar="URL", help="Redis server. Default: AISM_REDIS_URL, then localhost."),
]
Prefix: TypeAlias = Annotated[
    str | None,
    typer.Option("--prefix", metavar="NAME", help="Prefix of every key: names the fleet. Default: aism."),
]
Config: TypeAlias = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in TOML; see config/engine.toml.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Reason: TypeAlias = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Recorded in the audit.")]
ReplyTimeout: TypeAlias = Annotated[
    str, typer.Option("--timeout", metavar="DURATION", help="Longest wait for the engine's reply.")
]

_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$")
_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class CommandGroup(typer.Typer):
    """A group of commands whose help lists the exit codes."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  as in typer
        # Bugs print a plain traceback: it stays readable in logs and shows no local variables.
        options |= {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
        super().__init__(epilog=EXIT_CODES, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        return super().command(name, epilog=EXIT_CODES, **options)


def parse_address(text: str) -> tuple[str, str]:
    """Split HOST:PORT or [IPV6]:PORT. The settings validate both parts."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise typer.BadParameter(f"--http: expected HOST:PORT, got {text!r}")
    return host.strip("[]"), port


def parse_time_or_age(option: str, text: str, now: float) -> float:
    """Parse an ISO time like `2026-11-23T02:00:00Z`, or an age like `90s`, `10m`, `2h` or `1d`; return unix seconds."""
    age = _DURATION.match(text)
    if age and age[2]:
        return now - float(age[1]) * _UNITS[age[2]]
    return parse_time(option, text, or_age=", or an age like 10m, 2h or 1d")


def parse_time(option: str, text: str, *, or_age: str = "") -> float:
    """Parse an ISO time; without an offset it is local time. Returns unix seconds."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        message = f"{option}: expected a time like 2026-11-23T02:00:00Z{or_age}, got {text!r}"
        raise typer.BadParameter(message) from None


def parse_duration(option: str, text: str) -> float:
    """Parse `500ms`, `90s`, `10m`, `2h` or `1d` into seconds; a bare number is seconds. Above 0, at most a year."""
    found = _DURATION.match(text)
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds <= MAX_DURATION_S:
        expected = f"a duration like 30s, 10m, 2h or 1d, more than 0 and at most {MAX_DURATION_S // _UNITS['d']}d"
        raise typer.BadParameter(f"{option}: expected {expected}, got {text!r}")
    return seconds
