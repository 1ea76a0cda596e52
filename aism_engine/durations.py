"""Durations as people write them: `500ms`, `90s`, `10m`, `2h` or `1d`, or a number of seconds."""

import re
from typing import Final

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)(ms|s|m|h|d)?", re.ASCII)
_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}

MAX_DURATION_S: Final = 31_536_000
"""Largest duration in a request or an option: a year."""
EXPECTED_DURATION: Final = "a duration like 500ms, 30s, 10m, 2h or 1d, or a number of seconds"


def parse_duration(text: str) -> float:
    """Return the seconds that a text stands for. Raises ValueError for any other text."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"expected {EXPECTED_DURATION}, got {text!r}")
    number, unit = float(found[1]), found[2] or "s"
    return number / 1000 if unit == "ms" else number * _UNITS[unit]


def format_duration(seconds: float) -> str:
    """Write a duration so that `parse_duration` returns the same number.

    A whole number of seconds is written in the largest unit that needs no fraction: `90s`, `2m`, `1h`. Other durations
    are written in seconds, or in milliseconds if they are shorter than a second and that is exact.
    """
    if seconds == 0:
        return "0s"
    for unit, length in _UNITS.items():
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    milliseconds = f"{seconds * 1000:.6g}ms"
    return milliseconds if seconds < 1 and parse_duration(milliseconds) == seconds else f"{seconds!r}s"


def format_age(seconds: float) -> str:
    """Write an age with one unit: `4.0s`, `2m`, `3h`, `5d`; with a minus if it lies in the future."""
    if seconds < 0:
        return f"-{format_age(-seconds)}"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.1f}s"


def check_duration(name: str, seconds: float | None, *, may_be_zero: bool) -> None:
    """Check a duration that a person wrote. Raises ValueError with the name of the field."""
    if seconds is None or 0 < seconds <= MAX_DURATION_S or (may_be_zero and seconds == 0):
        return
    minimum = "at least 0" if may_be_zero else "more than 0"
    raise ValueError(f"`{name}`: expected {minimum} and at most {format_duration(MAX_DURATION_S)}")
