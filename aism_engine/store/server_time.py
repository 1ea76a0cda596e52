"""The time of the server, as we hold it: Redis `TIME`, carried on by our monotonic clock.

Deadlines are instants of the server, and a server may be replaced by one with another clock (a failover), or have its
clock set. Were we to believe it, an hour's jump would expire every command of that hour. So the time that decisions are
made by goes on as before: a reading that agrees with it corrects it, one that does not is a jump, and is told of.

What is not guaranteed. An engine that has just started knows no time but the server's.
"""

from typing import Final

from aism_engine.clock import Clock

_TOLERANCE_S: Final = 1.0
"""An arbitrary number: far more than a clock is set by in passing, far less than any time to live."""
_DRIFT: Final = 0.001
"""Seconds in a second by which two clocks may part: NTP slews each by 500 ppm at most."""


class ServerTime:
    """Instants are unix seconds by the server's clock, as it was when we first asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.wall() - clock.monotonic()
        self._read_at: float | None = None
        self._open_s = 0.0
        """How long the last reading took, and so how much drift it could not show."""
        self.jumped_s = 0.0
        """By how much the clock of the server is ahead of ours since it has jumped; 0 while they agree."""

    @property
    def now(self) -> float:
        return self._offset + self._clock.monotonic()

    def observe(self, server_now: float, asked_at: float) -> None:
        """Take a reading, which the server has made between `asked_at`, of the monotonic clock, and now."""
        at = self._clock.monotonic()
        least, most = server_now - at, server_now - asked_at
        agreed = min(max(self._offset, least), most)
        off_s, since, tolerated_s = agreed - self._offset, self._read_at, _TOLERANCE_S + self._open_s
        self._read_at, self._open_s = at, most - least
        if since is None or abs(off_s) <= tolerated_s + _DRIFT * (at - since):
            self._offset, self.jumped_s = agreed, 0.0
        else:
            self.jumped_s = off_s
