"""Laws of the loop monitor, on a fake clock."""

from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from aism_engine.runtime.loop_monitor import LoopMonitor
from aism_engine.runtime.sd_notify import Notifier
from tests.support.clock import FakeClock


class Watchdog(Notifier):
    """A notifier that counts the notifications of the watchdog."""

    def __init__(self, watchdog_s: float | None) -> None:
        super().__init__(None, watchdog_s)
        self.notifications = 0

    def send(self, field: str, value: str = "1") -> None:
        self.notifications += (field, value) == ("WATCHDOG", "1")


class MonitoredLoop:
    """A monitor in an event loop whose timers are late by `late_s`."""

    def __init__(self, watchdog_s: float | None = None) -> None:
        self.clock = FakeClock(0)
        self.watchdog = Watchdog(watchdog_s)
        self.late_s = 0.0
        self.progress = True
        self.lags: list[float] = []
        self.monitor = LoopMonitor(
            clock=self.clock,
            notifier=self.watchdog,
            has_progress=lambda: self.progress,
            on_lag=self.lags.append,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds + self.late_s)

    async def turn(self, times: int = 1, *, late_s: float = 0.0) -> None:
        self.late_s = late_s
        for _ in range(times):
            await self.monitor.run_once()


async def test_lag_is_how_late_the_timer_fires() -> None:
    loop = MonitoredLoop()
    await loop.turn(late_s=0.5)
    await loop.turn()
    assert loop.lags == [0.5, 0]


async def test_largest_lag_is_returned_once() -> None:
    """It is the largest one since the last call, so that no peak is missed or seen twice."""
    loop = MonitoredLoop()
    for late_s in (0.5, 2, 0.25):
        await loop.turn(late_s=late_s)
    assert loop.monitor.take_max_lag_s() == 2
    await loop.turn(late_s=0.25)
    assert loop.monitor.take_max_lag_s() == 0.25
    assert loop.monitor.take_max_lag_s() == 0


async def test_early_timer_is_no_lag() -> None:
    """The resolution of a timer may make it early."""
    loop = MonitoredLoop()
    await loop.turn(late_s=-0.001)
    assert loop.lags == [0]


async def test_watchdog_is_notified_once_per_watchdog_interval() -> None:
    """The first measurement notifies it as well."""
    loop = MonitoredLoop(watchdog_s=4)
    await loop.turn(times=1 + 5 * 8)
    assert loop.watchdog.notifications == 1 + 5


@pytest.mark.parametrize("watchdog_s", [0.25, 0.5, 1, 30])
async def test_healthy_loop_never_notifies_too_late(watchdog_s: float) -> None:
    """Two notifications are closer together than the timeout of the watchdog, even if that is very short."""
    loop = MonitoredLoop(watchdog_s)
    notified_at = [0.0]
    while loop.clock.now < 4 * watchdog_s:
        before = loop.watchdog.notifications
        await loop.turn()
        if loop.watchdog.notifications > before:
            notified_at.append(loop.clock.now)
    assert max(b - a for a, b in pairwise(notified_at)) < watchdog_s


async def test_without_progress_the_watchdog_is_not_notified() -> None:
    """It is logged once. With progress the notifications resume."""
    loop = MonitoredLoop(watchdog_s=0.5)
    loop.progress = False
    with capture_logs() as logs:
        await loop.turn(times=10)
    assert loop.watchdog.notifications == 0
    assert [line["event"] for line in logs] == ["watchdog_withheld"]
    loop.progress = True
    await loop.turn()
    assert loop.watchdog.notifications == 1


async def test_lag_is_measured_without_a_watchdog() -> None:
    loop = MonitoredLoop()
    await loop.turn(times=4)
    assert loop.clock.now == 1
    assert len(loop.lags) == 4
