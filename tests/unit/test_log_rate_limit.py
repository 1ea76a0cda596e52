"""The log rate limit reports repetitions of an event as a count, and hides no other event."""

import pytest

from aism_engine.log_rate_limit import WINDOW_S, LoggedEvent, LogRateLimit
from tests.support.clock import FakeClock


class Log:
    """A log with a rate limit and a fake clock."""

    def __init__(self, limit: int) -> None:
        self.clock = FakeClock(0)
        self.lines: list[str] = []
        self.rate_limit = LogRateLimit(limit, self._report, self.clock.monotonic)

    def write(self, event: str, times: int = 1) -> None:
        for _ in range(times):
            if self.rate_limit.allows(LoggedEvent(event, "c", "warning")):
                self.lines.append(event)

    def _report(self, event: LoggedEvent, count: int) -> None:
        assert event[1:] == ("c", "warning")
        self.lines.append(f"{event.event} x{count}")


@pytest.fixture
def log() -> Log:
    return Log(3)


def test_events_within_the_limit_are_written(log: Log) -> None:
    log.write("a", 3)
    log.write("b", 3)
    assert log.lines == ["a"] * 3 + ["b"] * 3


def test_repetitions_are_reported_when_their_window_ends(log: Log) -> None:
    """The next line of any event ends the window, or a call from outside; then the event may be written again."""
    log.write("a", 1000)
    log.write("b")
    assert log.lines == ["a", "a", "a", "b"]
    log.clock.advance(WINDOW_S)
    log.write("a")
    assert log.lines[4:] == ["a x997", "a"]
    log.write("a", 5)
    log.clock.advance(WINDOW_S)
    log.rate_limit.report_if_due()
    log.rate_limit.report_if_due()
    assert log.lines[6:] == ["a", "a", "a x3"]


def test_a_final_report_loses_no_count(log: Log) -> None:
    log.write("a", 5)
    log.rate_limit.report()
    log.rate_limit.report()
    assert log.lines[3:] == ["a x2"]


def test_the_number_of_counted_events_is_bounded() -> None:
    """Libraries may log any text: the counts of many different events do not fill the memory."""
    log = Log(1)
    for number in range(5000):
        log.write(f"event {number}", 2)
    log.rate_limit.report()
    assert len(log.rate_limit._counts) <= 1000
    reported = sum(int(line.rpartition("x")[2]) for line in log.lines if " x" in line)
    assert reported + sum(" x" not in line for line in log.lines) == 10_000
