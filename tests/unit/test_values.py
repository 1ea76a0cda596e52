"""Laws of the values that people write as arguments."""

import pytest

from aism_engine import values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "got '[1]'"),
        ("{", "its end is missing"),
        ("{a:1}", "it is not JSON from character 2: 'a:1}'"),
        ('{"a":NaN}', "NaN is not a finite number"),
        ('{"a":1e999}', "1e999 is not a finite number"),
        ('{"a":18446744073709551616}', "'18446744073709551616' has more than 64 bits"),
        ('{"a":"\\ud800"}', "it has half of a surrogate pair"),
        ('{"a":1,"a":2}', "the name 'a' is given twice"),
        ('{"a":' + "[" * 200 + "]" * 200 + "}", "it is nested deeper than 100"),
        ('{"a":' + "[" * 50_000, "it is nested deeper than 100"),
    ],
)
def test_json_that_the_engine_would_refuse_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the whole message is compared
        values.json_object(text)
    assert str(refused.value) == f"expected a JSON object: {message}"


def test_json_is_parsed_as_it_is() -> None:
    text = '{"a": [1, -9223372036854775808, 18446744073709551615, 0.5, null, "\\ud83d\\ude00"], "b": {}}'
    assert values.json_object(text) == {"a": [1, -(2**63), 2**64 - 1, 0.5, None, "\U0001f600"], "b": {}}


def test_a_value_is_shortened_in_a_message() -> None:
    assert len(values.shown("x" * 1000)) < 100


def test_a_whole_number_may_have_many_digits() -> None:
    """More than a float can hold."""
    assert values.whole_number("9" * 400, 1) == 10**400 - 1
    with pytest.raises(ValueError, match="expected a whole number from 1 to 9, got '999"):
        values.whole_number("9" * 400, 1, 9)
