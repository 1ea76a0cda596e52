"""Selectors: matching, text form, and errors."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.commands.selector import Requirement, Selector


def an_agent(**fields: Any) -> AgentRecord:  # noqa: ANN401 - the fields of Agent
    return AgentRecord(agent_id="a-1", since=0.0, first_seen_at=0.0, liveness=Liveness.FRESH, **fields)


ARCHITECT: Final = an_agent(type="architect", state="idle", labels={"team": "a", "gpu": ""})


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("type=architect", True),
        ("type==architect", True),
        ("type!=architect", False),
        ("type=scribe", False),
        ("state in (inbox,idle)", True),
        ("state in ( inbox , deep_work )", False),
        ("state notin (inbox)", True),
        ("label.team=a", True),
        ("label.team!=a", False),
        ("label.region!=eu", True),  # the agent has no such label
        ("label.region notin (eu,us)", True),
        ("label.region=eu", False),
        ("label.region in (eu)", False),
        ("label.gpu", True),  # the label exists, with an empty value
        ("!label.gpu", False),
        ("! label.region", True),
        ("id=a-1", True),
        ("liveness=fresh", True),
        ("liveness in (lost,silent)", False),
        ("type=architect,state in (inbox,idle),label.team!=a", False),
        ("  type = architect , label.gpu,!label.region ", True),
    ],
)
def test_selector_matches_as_in_kubernetes(selector: str, *, matches: bool) -> None:
    assert Selector.parse(selector).matches(ARCHITECT) is matches


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("", "character 1: expected a key"),
        ("type", "every agent has a type, so it needs a value"),
        ("!state", "every agent has a state"),
        ("team=a", "unknown key 'team'; for a label use label.team"),
        ("label.=a", "unknown key 'label.'; for a label use label.NAME"),
        ("type=", "character 6: expected a value"),
        ("type=a,", "character 8: expected a key"),
        ("type=a b", "character 8: expected a comma or the end"),
        ("type in a", "expected \\("),
        ("type in (", "expected a value"),
        ("type in (a", "expected , or \\)"),
        ("type within (a)", "expected =, !=, in, notin"),
        ("type=a;state=b", "character 7: expected a name"),
        ("type=ä", "character 6: expected a name"),
        (",".join(["label.a"] * 33), "at most 32 requirements"),
        (f"id in ({','.join(map(str, range(257)))})", "at most 256 values"),
    ],
)
def test_invalid_selector_is_refused_with_the_position(selector: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selector.parse(selector)


def test_selector_knows_whether_it_names_liveness() -> None:
    """Lost and left agents match only a selector that names liveness."""
    assert Selector.parse("type=a,liveness!=left").names_liveness
    assert not Selector.parse("type=a").names_liveness


WORDS: Final = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,8}", fullmatch=True)
KEYS: Final = st.sampled_from(["type", "state", "liveness", "id"]) | WORDS.map(lambda word: f"label.{word}")
REQUIREMENTS: Final = st.builds(
    Requirement, KEYS, st.booleans(), st.frozensets(WORDS, min_size=1, max_size=4)
) | st.builds(Requirement, WORDS.map(lambda word: f"label.{word}"), st.booleans())


def _text(requirement: Requirement) -> str:
    key, negated, values = requirement.key, requirement.negated, sorted(map(str, requirement.values))
    if requirement.values == {None}:
        return key if negated else f"!{key}"
    if len(values) == 1:
        return f"{key}{'!=' if negated else '='}{values[0]}"
    return f"{key} {'notin' if negated else 'in'} ({','.join(values)})"


@given(st.lists(REQUIREMENTS, min_size=1, max_size=5))
def test_text_of_a_selector_parses_to_the_same_selector(requirements: list[Requirement]) -> None:
    text = ",".join(map(_text, requirements))
    assert Selector.parse(text) == Selector(tuple(requirements))


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        selector = Selector.parse(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either is right
    else:
        assert isinstance(selector.matches(ARCHITECT), bool)


@given(st.lists(REQUIREMENTS, min_size=1, max_size=5), WORDS, WORDS, st.dictionaries(WORDS, WORDS, max_size=3))
def test_selector_matches_if_all_requirements_hold(
    requirements: list[Requirement], kind: str, state: str, labels: dict[str, str]
) -> None:
    agent = an_agent(type=kind, state=state, labels=labels)
    expected = all(Selector((each,)).matches(agent) for each in requirements)
    assert Selector(tuple(requirements)).matches(agent) is expected
