"""Laws of the time that decisions use: it advances steadily, even when the server's clock jumps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.store.server_time import ServerTime
from tests.support.clock import FakeClock

HOUR_S = 3600.0


def observe(time: ServerTime, clock: FakeClock, server_now: float, took_s: float = 0.0) -> None:
    """Observe a server time whose reply takes `took_s` to arrive."""
    asked_at = clock.monotonic()
    clock.advance(took_s)
    time.observe(server_now, asked_at)


def test_the_first_observation_is_always_accepted() -> None:
    """An engine that has just started has no other time to compare with."""
    clock = FakeClock(0)
    time = ServerTime(clock)
    observe(time, clock, 5 * HOUR_S)
    assert (time.now, time.jumped_s) == (5 * HOUR_S, 0.0)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, 2.0, -2.0])
def test_a_jump_is_reported_and_not_followed(jump_s: float) -> None:
    """A jump forwards would expire commands early, one backwards would keep expired ones. A correction ends it."""
    clock = FakeClock(0)
    time = ServerTime(clock)
    for _ in range(3):
        clock.advance(10)
        observe(time, clock, clock.now)
    clock.advance(10)
    observe(time, clock, clock.now + jump_s)
    assert (time.now, time.jumped_s) == (40.0, jump_s)
    clock.advance(10)
    observe(time, clock, clock.now)
    assert (time.now, time.jumped_s) == (50.0, 0.0)


def test_a_slow_reply_is_not_a_jump() -> None:
    """The server read its clock at an unknown instant between the request and the reply."""
    clock = FakeClock(0)
    time = ServerTime(clock)
    observe(time, clock, 0.0)
    observe(time, clock, 0.0, took_s=30.0)
    assert (time.now, time.jumped_s) == (30.0, 0.0)


@given(st.lists(st.tuples(st.floats(0.1, 3600), st.floats(-0.0005, 0.0005), st.floats(0, 3)), max_size=30))
def test_clocks_that_drift_apart_are_followed(steps: list[tuple[float, float, float]]) -> None:
    """This holds up to the rate at which NTP slews a clock, and for any delay of the replies."""
    clock, server = FakeClock(0), 1e9
    time = ServerTime(clock)
    observe(time, clock, server)
    for passed_s, drift, took_s in steps:
        clock.advance(passed_s)
        server += passed_s * (1 + drift)
        observe(time, clock, server, took_s)
        assert time.jumped_s == 0
        assert server - 1e-3 <= time.now <= server + took_s + 1e-3
        server += took_s
