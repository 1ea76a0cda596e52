"""The pulse of the process: how late the loop is, and whether systemd may go on believing in us."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import structlog

from aism_engine.clock import Clock
from aism_engine.runtime.sd_notify import Notifier

log = structlog.get_logger(component="loop")


class LoopMonitor:
    """Measures the lag of the event loop, and feeds the watchdog of systemd while the engine makes progress.

    The lag is how late a timer fires, in seconds: what everything else in this process had to wait, too. A loop that
    stands still feeds nobody. Nor does one that turns while `progress` says no; what counts as progress is for the
    engine to say, and to wait for Redis must count, or an outage would become a restart storm.
    """

    name = "loop"

    def __init__(
        self,
        *,
        clock: Clock,
        notifier: Notifier,
        progress: Callable[[], bool],
        on_lag: Callable[[float], None],
        interval_s: float = 0.25,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._notifier = notifier
        self._progress = progress
        self._on_lag = on_lag
        self._feed_every_s = notifier.watchdog_interval_s or math.inf
        self._interval_s = min(interval_s, self._feed_every_s)
        self._sleep = sleep
        self._feed_at = -math.inf
        self._withheld = False
        self._max_lag_s = 0.0
        self.lag_s = 0.0

    async def run(self) -> None:
        while True:
            await self.run_once()

    async def run_once(self) -> float:
        """Wait one interval and return by how many seconds the loop missed its end."""
        due_at = self._clock.monotonic() + self._interval_s
        await self._sleep(self._interval_s)
        now = self._clock.monotonic()
        self.lag_s = max(0.0, now - due_at)
        self._max_lag_s = max(self._max_lag_s, self.lag_s)
        self._on_lag(self.lag_s)
        if now >= self._feed_at:
            self._feed(now)
        return self.lag_s

    def take_max_lag_s(self) -> float:
        """Return the largest lag since the last call."""
        largest, self._max_lag_s = self._max_lag_s, 0.0
        return largest

    def _feed(self, now: float) -> None:
        if not self._progress():
            if not self._withheld:
                log.error("watchdog_withheld", reason="no progress")
            self._withheld = True
            return
        self._withheld = False
        self._feed_at = now + self._feed_every_s
        self._notifier.watchdog()
