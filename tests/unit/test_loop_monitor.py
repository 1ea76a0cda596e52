"""Laws of the loop monitor, on a clock that moves only when it is told to."""

from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from aism_engine.clock import FakeClock
from aism_engine.runtime.loop_monitor import LoopMonitor
from aism_engine.runtime.sd_notify import Notifier


class Watchdog(Notifier):
    """A notifier that counts what it is fed."""

    def __init__(self, watchdog_s: float | None) -> None:
        super().__init__(None, watchdog_s)
        self.fed = 0

    def watchdog(self) -> None:
        self.fed += 1


class Loop:
    """A loop that is late by what it is told; all that a monitor needs around it."""

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


async def test_lag_is_how_late_the_timer_fired() -> None:
    """Each interval reports by how much the loop missed its end: to the callback, and as the latest lag."""
    loop = Loop()
    await loop.turn(late_s=0.5)
    await loop.turn()
    assert loop.lags == [0.5, 0]


async def test_the_largest_lag_is_given_once() -> None:
    """The largest lag is that since it was last taken, so that no reader misses a peak and none sees it twice."""
    loop = Loop()
    for late_s in (0.5, 2, 0.25):
        await loop.turn(late_s=late_s)
    assert loop.monitor.take_max_lag_s() == 2
    await loop.turn(late_s=0.25)
    assert loop.monitor.take_max_lag_s() == 0.25
    assert loop.monitor.take_max_lag_s() == 0


async def test_a_timer_that_fires_early_is_no_lag() -> None:
    """Lag is never negative, whatever the resolution of the timer."""
    loop = Loop()
    await loop.turn(late_s=-0.001)
    assert loop.lags == [0]


async def test_the_watchdog_is_fed_as_often_as_it_asks() -> None:
    """The first turn feeds, then one in each interval of the watchdog, whatever the interval of the measurement."""
    loop = Loop(watchdog_s=4)
    await loop.turn(times=1 + 5 * 8)
    assert loop.watchdog.fed == 1 + 5


@pytest.mark.parametrize("watchdog_s", [0.25, 0.5, 1, 30])
async def test_a_healthy_loop_is_never_too_late_to_feed(watchdog_s: float) -> None:
    """Between two feeds less than the whole patience of the watchdog goes by, also where that is very short."""
    loop = Loop(watchdog_s)
    fed_at = [0.0]
    while loop.clock.now < 4 * watchdog_s:
        before = loop.watchdog.fed
        await loop.turn()
        if loop.watchdog.fed > before:
            fed_at.append(loop.clock.now)
    assert max(b - a for a, b in pairwise(fed_at)) < watchdog_s


async def test_without_progress_the_watchdog_starves() -> None:
    """A loop that turns without progress feeds nobody and says so once; with the progress the feeding comes back."""
    loop = Loop(watchdog_s=0.5)
    loop.progress = False
    with capture_logs() as logs:
        await loop.turn(times=10)
    assert loop.watchdog.fed == 0
    assert [line["event"] for line in logs] == ["watchdog_withheld"]
    loop.progress = True
    await loop.turn()
    assert loop.watchdog.fed == 1


async def test_without_a_watchdog_the_lag_is_measured_all_the_same() -> None:
    """Where systemd asks for nothing, the interval is the monitor's own."""
    loop = Loop()
    await loop.turn(times=4)
    assert loop.clock.now == 1
    assert len(loop.lags) == 4
