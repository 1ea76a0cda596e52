"""Compare docs/divergences.md with the code: rules, settings, confidences and ways to declare."""

import inspect
import re
from typing import Final, get_args

from aism_engine.domain.agents import divergence
from aism_engine.domain.agents.agent import Confidence, Via
from aism_engine.domain.policy import DivergenceSettings
from tests.docs.reading import DOCS, fields_of, names, table

PAGE: Final = (DOCS / "divergences.md").read_text(encoding="utf-8")
_SHARED: Final = {"poll_interval", "batch"}


def test_every_rule_is_documented_and_has_a_switch() -> None:
    documented = [names(row[0])[0] for row in table("Rules", PAGE)]
    assert documented == list(divergence.RULES)
    assert set(documented) <= fields_of(DivergenceSettings).keys()


def test_every_setting_is_documented_with_its_rule() -> None:
    found = [setting.removeprefix("divergence.") for row in table("Rules", PAGE) for setting in names(row[4])]
    assert sorted(found) == sorted(fields_of(DivergenceSettings).keys() - _SHARED)


def test_the_confidence_of_every_rule_is_documented() -> None:
    given = {
        name: set(re.findall(r'confidence="(\w+)"', inspect.getsource(rule))) for name, rule in divergence.RULES.items()
    }
    assert {names(row[0])[0]: set(names(row[3])) for row in table("Rules", PAGE)} == given
    assert set.union(*given.values()) == set(get_args(Confidence))


def test_every_value_of_declared_via_is_documented() -> None:
    assert set(names(table("What is recorded", PAGE)[0][2])) >= set(get_args(Via))
