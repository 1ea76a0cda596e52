"""The law of the time that decisions are made by: it goes on, whatever becomes of the server's clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.clock import FakeClock
from aism_engine.store.server_time import ServerTime

HOUR_S = 3600.0


def reading(time: ServerTime, clock: FakeClock, server_now: float, took_s: float = 0.0) -> None:
    """Ask the server, whose answer takes so long to arrive."""
    asked_at = clock.monotonic()
    clock.advance(took_s)
    time.observe(server_now, asked_at)


def test_the_first_reading_is_believed_whatever_it_is() -> None:
    """Who has just started knows no other time."""
    clock = FakeClock(0)
    time = ServerTime(clock)
    reading(time, clock, 5 * HOUR_S)
    assert (time.now, time.jumped_s) == (5 * HOUR_S, 0.0)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, 2.0, -2.0])
def test_a_jump_is_told_and_not_followed(jump_s: float) -> None:
    """Forwards, it would expire what is not over; backwards, keep what is. When the clock is set right, all is well."""
    clock = FakeClock(0)
    time = ServerTime(clock)
    for _ in range(3):
        clock.advance(10)
        reading(time, clock, clock.now)
    clock.advance(10)
    reading(time, clock, clock.now + jump_s)
    assert (time.now, time.jumped_s) == (40.0, jump_s)
    clock.advance(10)
    reading(time, clock, clock.now)
    assert (time.now, time.jumped_s) == (50.0, 0.0)


def test_an_answer_that_takes_its_time_is_no_jump() -> None:
    """It was made at some time between the question and the answer, and that is all we can tell."""
    clock = FakeClock(0)
    time = ServerTime(clock)
    reading(time, clock, 0.0)
    reading(time, clock, 0.0, took_s=30.0)
    assert (time.now, time.jumped_s) == (30.0, 0.0)


@given(st.lists(st.tuples(st.floats(0.1, 3600), st.floats(-0.0005, 0.0005), st.floats(0, 3)), max_size=30))
def test_clocks_that_drift_apart_are_followed(status_changes: list[tuple[float, float, float]]) -> None:
    """As fast as NTP slews a clock, and however late the answers come."""
    clock, server = FakeClock(0), 1e9
    time = ServerTime(clock)
    reading(time, clock, server)
    for passed_s, drift, took_s in status_changes:
        clock.advance(passed_s)
        server += passed_s * (1 + drift)
        reading(time, clock, server, took_s)
        assert time.jumped_s == 0
        assert server - 1e-3 <= time.now <= server + took_s + 1e-3
        server += took_s
