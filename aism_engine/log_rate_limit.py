"""Rate limit of the log: suppresses and counts the repetitions of an event, so that they hide no other line."""

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

WINDOW_S: Final = 10.0
_EVENTS_MAX: Final = 1000
"""Distinct events counted in one window: libraries may log any text. A new window begins when there are more."""


class LoggedEvent(NamedTuple):
    event: str
    component: str
    level: str


class LogRateLimit:
    """Allows `limit` lines of each event in a window of ten seconds, and reports how many it suppressed."""

    def __init__(
        self, limit: int, report: Callable[[LoggedEvent, int], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._report = report
        self._now = now
        self._counts: dict[LoggedEvent, int] = {}
        self._window_ends_at = now() + WINDOW_S
        self._lock = threading.RLock()  # re-entrant: the garbage collector may run a finalizer here that logs

    def allows(self, event: LoggedEvent) -> bool:
        """Count one line of an event and return whether it may be written."""
        self.report_if_due()
        with self._lock:
            count = self._counts[event] = self._counts.get(event, 0) + 1
        return count <= self._limit

    def report_if_due(self) -> None:
        if self._now() >= self._window_ends_at or len(self._counts) >= _EVENTS_MAX:
            self.report()

    def report(self) -> None:
        """Report the suppressed lines, and begin a new window."""
        with self._lock:
            counts, self._counts, self._window_ends_at = self._counts, {}, self._now() + WINDOW_S
        for event, count in counts.items():  # without the lock, so that other threads need not wait
            if count > self._limit:
                self._report(event, count - self._limit)
