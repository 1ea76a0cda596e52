"""The page on divergences says of each rule what the code does."""

from typing import Final, get_args

from aism_engine.domain.agents import divergence
from aism_engine.domain.agents.activity import Confidence, Via
from aism_engine.domain.policy import DivergenceSettings
from tests.docs.reading import DOCS, calls, fields_of, literals, names, table

PAGE: Final = (DOCS / "divergences.md").read_text(encoding="utf-8")
_SHARED: Final = {"poll_interval", "batch"}


def test_every_rule_is_there() -> None:
    """In the order in which the code has them, and each of them can be turned off."""
    documented = [names(row[0])[0] for row in table("The rules", PAGE)]
    assert documented == list(divergence.RULES) == list(get_args(divergence.Rule))
    assert set(documented) <= fields_of(DivergenceSettings).keys()


def test_every_setting_stands_with_its_rule() -> None:
    """Each setting of the section is one of a rule, or of all."""
    found = [setting.removeprefix("divergence.") for row in table("The rules", PAGE) for setting in names(row[4])]
    assert sorted(found) == sorted(fields_of(DivergenceSettings).keys() - _SHARED)


def test_every_rule_is_as_sure_as_it_says() -> None:
    """The confidence of what a rule finds is that of the page."""
    given: dict[str, set[str]] = {}
    for call, place in calls("Diverged"):
        for keyword in call.keywords:
            if keyword.arg == "confidence":
                given.setdefault(place.name, set()).update(literals(keyword.value, place))  # type: ignore[attr-defined]
    assert {names(row[0])[0]: set(names(row[3])) for row in table("The rules", PAGE)} == given
    assert set.union(*given.values()) == set(get_args(Confidence))


def test_every_way_to_declare_is_there() -> None:
    """The values of `declared_via` are named."""
    assert set(names(table("What is kept", PAGE)[0][2])) >= set(get_args(Via))
