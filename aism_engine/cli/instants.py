"""Instants and durations, as people give them."""

import re
from datetime import datetime
from typing import Final

import typer

from aism_engine.domain.protocol.messages import MAX_DURATION_S

_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$")
_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read_instant(option: str, text: str, now: float) -> float:
    """Read `2026-11-23T02:00:00Z` (without an offset: the local time) or `90s`, `10m`, `2h`, `1d` ago."""
    ago = _DURATION.match(text)
    if ago and ago[2]:
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        expected = "expected a time like 2026-11-23T02:00:00Z, or like 10m, 2h or 1d ago"
        raise typer.BadParameter(f"{option}: {expected}, got {text!r}") from None


def read_time(option: str, text: str) -> float:
    """Read `2026-11-23T02:00:00Z`; without an offset it is the local time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(f"{option}: expected a time like 2026-11-23T02:00:00Z, got {text!r}") from None


def read_duration(option: str, text: str) -> float:
    """Read `90s`, `10m`, `2h`, `1d` or `500ms`; a number alone is seconds; above 0, at most a year."""
    found = _DURATION.match(text)
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds <= MAX_DURATION_S:
        most = f"more than 0, like 30s, 10m, 2h or 1d, and at most {MAX_DURATION_S // _UNITS['d']}d"
        raise typer.BadParameter(f"{option}: expected {most}, got {text!r}")
    return seconds
