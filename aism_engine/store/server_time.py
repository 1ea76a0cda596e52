"""The time of the server as the engine sees it: Redis `TIME`, continued by the local monotonic clock.

Deadlines are instants of the server. Its clock may be set, and a failover leads to a server with another clock. A jump
of an hour must not expire every command of that hour. So a reading that agrees with our time corrects it; a reading
that does not agree is a jump, which is reported and not followed.

Not guaranteed: that an engine notices a wrong clock at its start. It follows the first reading, whatever it is.
"""

from typing import Final

from aism_engine.clock import Clock

_TOLERANCE_S: Final = 1.0
"""An arbitrary number: more than a small correction of a clock, less than any time to live."""
_DRIFT: Final = 0.001
"""Seconds per second by which two clocks may drift apart: NTP slews each by 500 ppm at most."""


class ServerTime:
    """Unix seconds by the server's clock. A jump of that clock after the first reading is not followed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.wall() - clock.monotonic()
        self._read_at: float | None = None
        self._uncertainty_s = 0.0
        """Duration of the last reading. The offset can be wrong by as much."""
        self.jumped_s = 0.0
        """How far the server's clock is ahead of our time since it jumped; 0 while they agree."""

    @property
    def now(self) -> float:
        return self._offset + self._clock.monotonic()

    def observe(self, server_now: float, asked_at: float) -> None:
        """Add a reading, which the server made between `asked_at` on the monotonic clock and now."""
        at = self._clock.monotonic()
        lowest, highest = server_now - at, server_now - asked_at
        nearest = min(max(self._offset, lowest), highest)
        difference_s = nearest - self._offset
        tolerance_s = _TOLERANCE_S + self._uncertainty_s
        previous_at, self._read_at, self._uncertainty_s = self._read_at, at, highest - lowest
        if previous_at is None or abs(difference_s) <= tolerance_s + _DRIFT * (at - previous_at):
            self._offset, self.jumped_s = nearest, 0.0
        else:
            self.jumped_s = difference_s
