"""Laws of the one grammar of durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.durations import check_duration, format_age, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("1s", 1.0, "1s"),
        ("500ms", 0.5, "500ms"),
        ("2h", 7200.0, "2h"),
        ("90m", 5400.0, "90m"),
        ("1d", 86400.0, "1d"),
        ("45", 45.0, "45s"),
        ("1.5", 1.5, "1.5s"),
        ("0", 0.0, "0s"),
        ("1e3", 1000.0, "1000s"),
    ],
)
def test_a_duration_is_a_number_with_a_unit_or_a_number_of_seconds(text: str, seconds: float, shown: str) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0s"), (119, "119.0s"), (240, "4m"), (18_000, "5h"), (432_000, "5d"), (-240, "-4m")]
)
def test_an_age_has_one_unit(seconds: float, shown: str) -> None:
    assert format_age(seconds) == shown


@pytest.mark.parametrize("text", ["", "s", "1 s", "-1s", "1w", "1S", "nan", "inf", "1h30m", "\u0661s", "1s\n"])
def test_any_other_text_is_refused_and_the_message_says_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration like 500ms, 30s, 10m, 2h or 1d, or a number of seconds"):
        parse_duration(text)


@given(st.floats(min_value=0, max_value=1e12, allow_subnormal=False))
def test_what_is_printed_can_be_parsed_again(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(("may_be_zero", "minimum"), [(True, "at least 0"), (False, "more than 0")])
def test_problem_of_a_field_names_its_minimum(*, may_be_zero: bool, minimum: str) -> None:
    with pytest.raises(ValueError, match=f"`ttl`: expected {minimum} and at most 365d"):
        check_duration("ttl", -1.0, may_be_zero=may_be_zero)
