"""A flood of the same event is summed up, not repeated: whoever reads the log shall find the other lines, too."""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from structlog.typing import EventDict

WINDOW_S: Final = 10.0
_EVENTS: Final = 1000
"""Events that are counted at a time: libraries may write anything."""


class LogRateLimit:
    """A processor of structlog. Of each event, by its component and level, `most` lines pass in ten seconds; the others
    are counted, and a line `event_repeated` says how many there were.
    """

    def __init__(self, most: int, tell: Callable[[EventDict], None], now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._tell = tell
        self._now = now
        self._counts: dict[tuple[str, str, str], int] = {}
        self._until = now() + WINDOW_S
        self._lock = threading.Lock()

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        key = (str(event["event"]), str(event.get("component", "unknown")), event["level"])
        with self._lock:
            self._turn()
            count = self._counts[key] = self._counts.get(key, 0) + 1
        if count > self._most:
            raise structlog.DropEvent
        return event

    def turn(self) -> None:
        """Say what there is to say, if it is time."""
        with self._lock:
            self._turn()

    def finish(self) -> None:
        """Say what there is to say."""
        with self._lock:
            self._sum_up()

    def _turn(self) -> None:
        if self._now() >= self._until or len(self._counts) >= _EVENTS:
            self._sum_up()

    def _sum_up(self) -> None:
        counts, self._counts, self._until = self._counts, {}, self._now() + WINDOW_S
        for (event, component, level), count in counts.items():
            if count > self._most:
                told = {"of": event, "where": component, "count": count - self._most, "seconds": WINDOW_S}
                self._tell({"level": level, "event": "event_repeated", "component": "logs", **told})
