"""Compare docs/machines.md with the code: examples, keys, codes, types and actors."""

import re
from typing import get_args

from aism_engine.domain.machines.loader import MACHINE_KEYS, STATE_KEYS, TRANSITION_KEYS
from aism_engine.domain.machines.machine import ACTORS, Code, Kind, Machine
from tests.docs.reading import DOCS, first_column, table
from tests.support.machines import parse_all

PAGE = (DOCS / "machines.md").read_text(encoding="utf-8")


def examples() -> dict[str, Machine]:
    """Read all machines of the page together, because some extend others."""
    texts = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    return parse_all({f"example {number}": text for number, text in enumerate(texts)})


def test_every_example_is_a_valid_machine() -> None:
    found = examples()
    assert sorted(found) == ["patient-review", "review", "sleeper"]
    assert (found["patient-review"].states["reviewing"].max_stay, found["review"].states["reviewing"].max_stay) == (
        7200,
        1800,
    )


def test_every_key_is_documented() -> None:
    for heading, keys in (
        ("Keys of a machine", MACHINE_KEYS),
        ("Keys of a state", STATE_KEYS),
        ("Keys of a transition", TRANSITION_KEYS),
    ):
        assert set(first_column(heading, PAGE)) == set(keys)


def test_every_code_type_and_actor_is_documented() -> None:
    transition = " ".join(" ".join(row) for row in table("Keys of a transition", PAGE))
    assert {word for word in (*get_args(Kind), *ACTORS) if f"`{word}`" not in transition} == set()
    assert {code for code in get_args(Code) if f"`{code}`" not in PAGE} == set()
