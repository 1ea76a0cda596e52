"""Laws of the backoff: the limit doubles up to its maximum, and a pause is anything up to the limit."""

import pytest

from aism_engine.backoff import Backoff

BACKOFF = Backoff(0.5, 3.0)


def test_the_limit_doubles_with_each_failure_up_to_its_maximum() -> None:
    assert [BACKOFF.limit_s(failures) for failures in range(1, 6)] == [0.5, 1, 2, 3, 3]


def test_the_limit_never_overflows() -> None:
    assert BACKOFF.limit_s(100_000) == 3


def test_a_pause_is_drawn_between_nothing_and_the_limit() -> None:
    pauses = {BACKOFF.pause_s(2) for _ in range(1000)}
    assert len(pauses) > 900
    assert all(0 <= pause_s < 1 for pause_s in pauses)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0.0), (0.25, 0.5), (1.0, 2.0)])
def test_a_given_fraction_replaces_the_draw(fraction: float, expected: float) -> None:
    """A decision that is made again comes to the same pause."""
    assert BACKOFF.pause_s(3, fraction) == expected
