"""Measures the lag of the event loop, and notifies the watchdog of systemd."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import structlog

from aism_engine.clock import Clock
from aism_engine.runtime.sd_notify import Notifier

log = structlog.get_logger(component="loop")


class LoopMonitor:
    """Measures how late timers fire, in seconds, and notifies the watchdog while `has_progress` returns true.

    If a timer of the monitor is late, all other tasks of the process are late as well. A blocked loop cannot notify the
    watchdog. `has_progress` must count waiting for Redis as progress: otherwise an outage would cause restarts.
    """

    name = "loop"

    def __init__(
        self,
        *,
        clock: Clock,
        notifier: Notifier,
        has_progress: Callable[[], bool],
        on_lag: Callable[[float], None],
        interval_s: float = 0.25,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._notifier = notifier
        self._has_progress = has_progress
        self._on_lag = on_lag
        self._watchdog_interval_s = notifier.watchdog_interval_s or math.inf
        self._interval_s = min(interval_s, self._watchdog_interval_s)
        self._sleep = sleep
        self._notify_at = -math.inf
        self._is_withholding = False
        self._max_lag_s = 0.0

    async def run(self) -> None:
        while True:
            await self.run_once()

    async def run_once(self) -> float:
        """Sleep for one interval and return by how many seconds the timer was late."""
        due_at = self._clock.monotonic() + self._interval_s
        await self._sleep(self._interval_s)
        now = self._clock.monotonic()
        lag_s = max(0.0, now - due_at)
        self._max_lag_s = max(self._max_lag_s, lag_s)
        self._on_lag(lag_s)
        if now >= self._notify_at:
            self._notify(now)
        return lag_s

    def take_max_lag_s(self) -> float:
        """Return the largest lag since the last call."""
        largest, self._max_lag_s = self._max_lag_s, 0.0
        return largest

    def _notify(self, now: float) -> None:
        if not self._has_progress():
            if not self._is_withholding:
                log.error("watchdog_withheld", reason="no progress")
            self._is_withholding = True
            return
        self._is_withholding = False
        self._notify_at = now + self._watchdog_interval_s
        self._notifier.send("WATCHDOG")
