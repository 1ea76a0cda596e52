"""Clocks that can be injected: durations come from the monotonic clock, instants are unix seconds.

Decisions read no clock: the instant of a decision is the server's time, see store/server_time.py.
"""

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Protocol


class Clock(Protocol):
    """The local clocks: `monotonic` for durations, `wall` only for what people read."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The clocks of this machine."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


ROUNDING_S: Final = 0.002
"""Tolerance for comparing an instant with its text: `iso` truncates it to milliseconds."""


_FIRST: Final = -62_135_596_800.0
_LAST: Final = 253_402_300_799.0
"""The first and the last second that ISO 8601 can express: those of the years 1 and 9999."""


@lru_cache(maxsize=1024)  # the decisions of a batch format few distinct instants
def iso(instant: float) -> str:
    """Format an instant (unix seconds) as ISO 8601 in UTC with milliseconds: `2026-11-22T22:01:34.125Z`.

    An instant outside the years 1 to 9999 becomes the first or the last second of these years, so that no decision
    fails on what a client wrote.
    """
    at = datetime.fromtimestamp(min(max(instant, _FIRST), _LAST), UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_iso(text: str) -> float:
    """Parse an instant in ISO 8601 with an offset into unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def check_iso(name: str, text: str) -> None:
    """Check an instant that a person wrote. Raises ValueError with the name of the field."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"`{name}`: expected a time like 2026-11-23T02:00:00Z, got {text!r:.80}") from None
    if instant.tzinfo is None:
        raise ValueError(f"`{name}` needs an offset from UTC, such as a final Z")
