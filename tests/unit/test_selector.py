"""Selectors: what they mean, how they are written, and how they say no."""

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
    ("selector", "fits"),
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
        ("label.region!=eu", True),  # there is no such label
        ("label.region notin (eu,us)", True),
        ("label.region=eu", False),
        ("label.region in (eu)", False),
        ("label.gpu", True),  # it exists, though it is empty
        ("!label.gpu", False),
        ("! label.region", True),
        ("id=a-1", True),
        ("liveness=fresh", True),
        ("liveness in (lost,silent)", False),
        ("type=architect,state in (inbox,idle),label.team!=a", False),
        ("  type = architect , label.gpu,!label.region ", True),
    ],
)
def test_it_means_what_kubernetes_means(selector: str, *, fits: bool) -> None:
    assert Selector.parse(selector).matches(ARCHITECT) is fits


@pytest.mark.parametrize(
    ("selector", "complaint"),
    [
        ("", "character 1: expected a key"),
        ("type", "every agent has type: say which"),
        ("!state", "every agent has state"),
        ("team=a", "'team' is no key; a label is label.team"),
        ("label.=a", "'label.' is no key"),
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
def test_what_is_no_selector_is_refused_with_the_place(selector: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Selector.parse(selector)


def test_it_says_whether_it_speaks_of_liveness() -> None:
    """Else those that are away are not meant."""
    assert Selector.parse("type=a,liveness!=left").names_liveness
    assert not Selector.parse("type=a").names_liveness


WORDS: Final = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,8}", fullmatch=True)
KEYS: Final = st.sampled_from(["type", "state", "liveness", "id"]) | WORDS.map(lambda word: f"label.{word}")
REQUIREMENTS: Final = st.builds(
    Requirement, KEYS, st.sampled_from(["in", "notin"]), st.frozensets(WORDS, min_size=1, max_size=4)
) | st.builds(Requirement, WORDS.map(lambda word: f"label.{word}"), st.sampled_from(["exists", "absent"]))


@given(st.lists(REQUIREMENTS, min_size=1, max_size=5))
def test_what_it_writes_it_reads(requirements: list[Requirement]) -> None:
    selector = Selector(tuple(requirements))
    assert Selector.parse(selector.text) == selector


@given(st.text(max_size=30))
def test_any_text_is_a_selector_or_is_refused(text: str) -> None:
    try:
        selector = Selector.parse(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either is right
    else:
        assert isinstance(selector.matches(ARCHITECT), bool)


@given(st.lists(REQUIREMENTS, min_size=1, max_size=5), WORDS, WORDS, st.dictionaries(WORDS, WORDS, max_size=3))
def test_all_its_requirements_must_hold(
    requirements: list[Requirement], kind: str, state: str, labels: dict[str, str]
) -> None:
    agent = an_agent(type=kind, state=state, labels=labels)
    expected = all(Selector((each,)).matches(agent) for each in requirements)
    assert Selector(tuple(requirements)).matches(agent) is expected
