"""Laws of the flood: a line that comes again and again is summed up, and hides no other."""

import pytest
import structlog
from structlog.typing import EventDict

from aism_engine.clock import FakeClock
from aism_engine.log_rate_limit import WINDOW_S, LogRateLimit


class Log:
    """A log on a clock that moves only when it is told to."""

    def __init__(self, most: int) -> None:
        self.clock = FakeClock(0)
        self.lines: list[str] = []
        self.flood = LogRateLimit(most, self._told, self.clock.monotonic)

    def say(self, event: str, times: int = 1) -> None:
        for _ in range(times):
            try:
                self.flood(None, "", {"event": event, "level": "warning", "component": "c"})
            except structlog.DropEvent:
                continue
            self.lines.append(event)

    def _told(self, event: EventDict) -> None:
        assert (event["event"], event["where"], event["level"]) == ("event_repeated", "c", "warning")
        self.lines.append(f"{event['of']} x{event['count']}")


@pytest.fixture
def log() -> Log:
    return Log(3)


def test_what_is_no_flood_passes(log: Log) -> None:
    log.say("a", 3)
    log.say("b", 3)
    assert log.lines == ["a"] * 3 + ["b"] * 3


def test_a_flood_is_summed_up_when_its_window_ends(log: Log) -> None:
    """By whatever is logged next, or by the writer's own turn; then it may be said again."""
    log.say("a", 1000)
    log.say("b")
    assert log.lines == ["a", "a", "a", "b"]
    log.clock.advance(WINDOW_S)
    log.say("a")
    assert log.lines[4:] == ["a x997", "a"]
    log.say("a", 5)
    log.clock.advance(WINDOW_S)
    log.flood.turn()
    log.flood.turn()
    assert log.lines[6:] == ["a", "a", "a x3"]


def test_nothing_is_lost_at_the_end(log: Log) -> None:
    log.say("a", 5)
    log.flood.finish()
    log.flood.finish()
    assert log.lines[3:] == ["a x2"]


def test_what_is_counted_is_bounded() -> None:
    """Libraries may write any text: a million of them are not kept in mind."""
    log = Log(1)
    for number in range(5000):
        log.say(f"event {number}", 2)
    log.flood.finish()
    assert len(log.flood._counts) <= 1000
    summed = sum(int(line.rpartition("x")[2]) for line in log.lines if " x" in line)
    assert summed + sum(" x" not in line for line in log.lines) == 10_000
