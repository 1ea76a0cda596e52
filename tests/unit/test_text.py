"""Laws of texts."""

import random

from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.text import natural_key


def test_names_are_sorted_by_their_numbers() -> None:
    names = [
        "builder",
        "builder-2",
        "builder-02.1",
        "builder-2.9",
        "builder-2.10",
        "builder-10",
        "scribe-1",
        "scribe-a",
    ]
    shuffled = random.Random(7).sample(names, len(names))
    assert sorted(shuffled, key=natural_key) == names


@given(st.lists(st.text(alphabet="ab-019", max_size=6), unique=True))
def test_any_names_have_one_order(names: list[str]) -> None:
    """Also names that differ only in leading zeros."""
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
