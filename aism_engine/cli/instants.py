"""Instants, as people give them: an ISO time, or how long ago."""

import re
from datetime import datetime
from typing import Final

import typer

_AGO: Final = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)$")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def read_instant(option: str, text: str, now: float) -> float:
    """Read `2026-11-23T02:00:00Z` (without an offset: the local time) or `90s`, `10m`, `2h`, `1d` ago."""
    if ago := _AGO.match(text):
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        expected = "expected a time like 2026-11-23T02:00:00Z, or like 10m, 2h or 1d ago"
        raise typer.BadParameter(f"{option}: {expected}, got {text!r}") from None
