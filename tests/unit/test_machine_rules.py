"""Conditions of a transition: stays, cooldowns, `max_agents`, context, actors; and inheritance between machines."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.machines.machine import ACTORS, Kind, Machine, State, Transition, TransitionCase
from aism_engine.domain.protocol.names import is_cached_state_name
from aism_engine.errors import ConfigError
from tests.support.machines import parse, parse_all

FULL = """\
[machine]
name = "full"
version = 3
initial = "inbox"

[states.inbox]
to = ["work", "talk"]
min_stay = 5
[states.inbox.transitions.work]
requires = { branch = "string", tokens = "integer" }
[states.inbox.transitions.talk]
by = ["operator"]

[states.work]
description = "Works."
to = ["inbox", "done"]
accepts_messages = "later"
max_stay = 600
after_max_stay = "inbox"
cooldown = 30
max_agents = 2

[states.talk]
to = ["inbox"]
accepts_messages = false
waits_for = "human"

[states.done]
final = true
"""
CHILD = """\
[machine]
name = "child"
extends = "full"

[states.work]
max_stay = 60

[states.inbox]
to = ["work", "talk", "rest"]

[states.rest]
to = ["inbox"]
"""


@pytest.fixture
def machine() -> Machine:
    return parse(FULL, "full.toml")


def code(machine: Machine, current: str, target: str, case: TransitionCase) -> str | None:
    refusal = machine.check(current, target, case)
    return None if refusal is None else refusal.code


def problems(**texts: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_all({f"{name}.toml": text for name, text in texts.items()})
    return caught.value.problems


def test_every_key_is_read(machine: Machine) -> None:
    """Keys that are missing have their defaults."""
    assert (machine.name, machine.version) == ("full", 3)
    assert machine.states["work"] == State(
        description="Works.",
        to=("inbox", "done"),
        accepts_messages="later",
        max_stay=600,
        after_max_stay="inbox",
        cooldown=30,
        max_agents=2,
    )
    assert machine.states["talk"] == State(to=("inbox",), accepts_messages=False, waits_for="human")
    assert machine.states["inbox"].transitions == {
        "work": Transition({"branch": "string", "tokens": "integer"}, ACTORS),
        "talk": Transition({}, ("operator",)),
    }
    assert machine.allowed("done") == ()


# --- conditions of a transition ---------------------------------------------------------------------------------------

GOOD = {"branch": "main", "tokens": 7}


@pytest.mark.parametrize(
    ("case", "target", "expected"),
    [
        (TransitionCase("agent", context=GOOD), "work", None),
        (TransitionCase("agent"), "work", None),
        (TransitionCase("agent", context={}), "work", "context_missing"),
        (TransitionCase("agent", context=GOOD | {"tokens": "7"}), "work", "context_missing"),
        (TransitionCase("agent", context=GOOD | {"tokens": True}), "work", "context_missing"),
        (TransitionCase("agent", context=GOOD, stayed_s=4.9), "work", "too_soon"),
        (TransitionCase("agent", context=GOOD, stayed_s=5.0), "work", None),
        (TransitionCase("agent", context=GOOD, cooldown_left_s=lambda _: 0.1), "work", "cooling_down"),
        (TransitionCase("agent", context=GOOD, occupants=lambda _: 2), "work", "state_full"),
        (TransitionCase("agent", context=GOOD, occupants=lambda _: 1), "work", None),
        (TransitionCase("agent"), "talk", "wrong_actor"),
        (TransitionCase("engine"), "talk", "wrong_actor"),
        (TransitionCase("operator", cooldown_left_s=lambda _: 9.0, occupants=lambda _: 9), "talk", None),
    ],
)
def test_transition_is_allowed_only_if_all_its_conditions_hold(
    machine: Machine, case: TransitionCase, target: str, expected: str | None
) -> None:
    assert code(machine, "inbox", target, case) == expected


def test_refusal_says_what_is_missing_and_when_to_try_again(machine: Machine) -> None:
    missing = machine.check("inbox", "work", TransitionCase("agent", context={"branch": "main"}))
    soon = machine.check("inbox", "work", TransitionCase("agent", stayed_s=2.0))
    cooling = machine.check("inbox", "work", TransitionCase("agent", cooldown_left_s=lambda _: 12.0))
    assert missing is not None
    assert missing.missing == {"tokens": "integer"}
    assert missing.allowed == ("work",)  # the transition to talk is for operators
    assert missing.message == "the transition from inbox to work requires in its context: tokens (integer)"
    assert soon is not None
    assert soon.retry_after_s == 3.0
    assert cooling is not None
    assert cooling.retry_after_s == 12.0


def test_no_transition_leaves_a_final_state(machine: Machine) -> None:
    refusal = machine.check("done", "inbox", TransitionCase("agent"))
    assert refusal is not None
    assert (refusal.code, refusal.message) == ("not_allowed", "done does not lead to inbox; it is final")


# --- problems of a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version = 3", "version = 0", "full.toml:3: [machine] version: expected 1 or more"),
        ("min_stay = 5", "min_stay = -1", "full.toml:8: [states.inbox] min_stay: expected 0 (none) to 1000000000"),
        ("max_stay = 600", "max_stay = nan", "full.toml:18: [states.work] max_stay: expected 0 (none) to"),
        (
            "max_agents = 2",
            "max_agents = 2.5",
            "full.toml:21: [states.work] max_agents: expected a whole number",
        ),
        ("max_stay = 600", "max_stay = 6\nmin_stay = 7", "full.toml:18: [states.work] max_stay: less than min_stay"),
        ("max_stay = 600\n", "", "full.toml:18: [states.work] after_max_stay: max_stay is missing"),
        (
            '= "inbox"\ncool',
            '= "talk"\ncool',
            'full.toml:19: [states.work] after_max_stay: work does not lead to "talk"',
        ),
        ('"human"', '"nobody"', "full.toml:26: [states.talk] waits_for: 'nobody' is not one of the values"),
        ('= "later"', '= "never"', "full.toml:17: [states.work] accepts_messages: 'never' is not one of the values"),
        (
            '"integer"',
            '"int"',
            'full.toml:10: [states.inbox] transitions.work.requires: unknown "int" (did you mean "integer"?)',
        ),
        (
            '["operator"]',
            '["boss"]',
            'full.toml:12: [states.inbox] transitions.talk.by: unknown "boss"; expected one of: agent',
        ),
        (
            '["operator"]',
            "[]",
            "full.toml:12: [states.inbox] transitions.talk.by: expected at least one actor",
        ),
        (
            "transitions.talk]",
            "transitions.tolk]",
            'full.toml:11: [states.inbox] transitions.tolk: inbox does not lead to "tolk"',
        ),
        ('initial = "inbox"', 'initial = "work"', 'full.toml:4: [machine] initial: "work" has max_agents'),
        ("final = true", "final = false", "full.toml:28: [states.done] to: no way out: expected at least one target"),
    ],
)
def test_every_problem_of_a_condition_is_reported_with_its_file_and_line(old: str, new: str, expected: str) -> None:
    found = problems(full=FULL.replace(old, new, 1))
    assert [problem for problem in found if problem.startswith(expected)], found


def test_transition_to_after_max_stay_must_be_open_to_the_engine(machine: Machine) -> None:
    """Its `by` must include the engine, and it must not require a context, because the engine has none."""
    assert machine.states["work"].after_max_stay == "inbox"
    transition = '[states.work.transitions.inbox]\nby = ["agent"]\nrequires = { x = "string" }\n'
    assert problems(full=FULL + transition) == (
        'full.toml:19: [states.work] after_max_stay: "by" of the transition to "inbox" does not include the engine',
        (
            'full.toml:19: [states.work] after_max_stay: the transition to "inbox" requires a context,'
            " and the engine has none"
        ),
    )


# --- inheritance ------------------------------------------------------------------------------------------------------


def test_machine_inherits_every_key_that_it_does_not_write() -> None:
    """The machine that it extends may extend another. The order of the files does not matter."""
    grandchild = '[machine]\nname = "grandchild"\nextends = "child"\nversion = 9\n[states.rest]\nmin_stay = 1\n'
    found = parse_all({"g.toml": grandchild, "c.toml": CHILD, "f.toml": FULL})
    child, grandchild_machine = found["child"], found["grandchild"]
    assert (child.initial, child.version, child.extends) == ("inbox", 3, "full")
    assert (child.states["work"].max_stay, child.states["work"].cooldown) == (60, 30)
    assert child.allowed("inbox") == ("work", "talk", "rest")
    assert child.states["inbox"].transitions == found["full"].states["inbox"].transitions
    assert (grandchild_machine.version, grandchild_machine.states["rest"]) == (9, State(to=("inbox",), min_stay=1))


def test_inherited_conditions_can_be_removed() -> None:
    """A condition is removed by 0, an empty text or an empty table."""
    free = '[machine]\nname = "free"\nextends = "full"\n'
    free += '[states.work]\nmax_stay = 0\nafter_max_stay = ""\ncooldown = 0\nmax_agents = 0\n'
    free += '[states.inbox]\nmin_stay = 0\ntransitions = {}\n[states.talk]\nwaits_for = ""\n'
    found = parse_all({"f.toml": FULL, "free.toml": free})["free"]
    assert found.states["work"] == State("Works.", ("inbox", "done"), accepts_messages="later")
    assert (found.states["inbox"].min_stay, found.states["inbox"].transitions, found.states["talk"].waits_for) == (
        0,
        {},
        "",
    )


def test_transitions_are_inherited_one_by_one() -> None:
    """Each key of a transition is inherited by itself. A transition that `to` no longer names is dropped."""
    head = '[machine]\nname = "{}"\nextends = "{}"\n'
    base = '[machine]\nname = "base"\ninitial = "a"\n[states.a]\nto = ["b", "c"]\n'
    base += '[states.a.transitions.b]\nrequires = { plan = "string" }\nby = ["agent"]\n'
    base += '[states.a.transitions.c]\nby = ["operator"]\n[states.b]\nto = ["a"]\n[states.c]\nto = ["a"]\n'
    one = head.format("one", "base") + '[states.a.transitions.b]\nby = ["engine"]\n'
    two = head.format("two", "one") + '[states.a]\nto = ["b"]\n[states.b]\nto = ["a", "c"]\n'
    found = parse_all({"base.toml": base, "one.toml": one, "two.toml": two})
    b, c = Transition(requires={"plan": "string"}, by=("engine",)), Transition(by=("operator",))
    assert found["one"].states["a"].transitions == {"b": b, "c": c}
    assert found["two"].states["a"].transitions == {"b": b}


def test_problem_in_an_inherited_part_is_reported_in_the_file_that_extends_it() -> None:
    """It is reported at the line that causes it, or else at `extends`."""
    child = CHILD.replace('to = ["work", "talk", "rest"]', 'to = ["work", "rest"]')
    child = child.replace("max_stay = 60", 'to = ["done"]')
    reason = "cannot be reached from initial or an on_... entry"
    assert problems(child=child, full=FULL) == (
        f"child.toml:3: [states.talk]: {reason}",
        'child.toml:5: [states.work] after_max_stay: work does not lead to "inbox"',
    )


def test_cycles_and_unknown_names_in_extends_are_reported() -> None:
    """Each machine of a cycle reports the cycle."""
    assert problems(full=FULL, child=CHILD.replace('"full"', '"fall"')) == (
        'child.toml:3: [machine] extends: no machine "fall" (did you mean "full"?)',
    )
    cycle = {
        name: f'[machine]\nname = "{name}"\nextends = "{other}"\ninitial = "x"\n[states.x]\nfinal = true\n'
        for name, other in (("a", "b"), ("b", "c"), ("c", "a"))
    }
    assert problems(**cycle) == (
        "a.toml:3: [machine] extends: a machine cannot extend itself: a extends b extends c extends a",
        "b.toml:3: [machine] extends: a machine cannot extend itself: b extends c extends a extends b",
        "c.toml:3: [machine] extends: a machine cannot extend itself: c extends a extends b extends c",
    )


# --- property ---------------------------------------------------------------------------------------------------------


_names = st.sampled_from(["a", "b", "c", "d"])
_seconds = st.sampled_from([0.0, 1.0, 5.0])
_contexts: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["x", "y"]), st.sampled_from([1, 1.5, "1", True, None, [], {}])
)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Any machine of a few states with any conditions."""
    names = draw(st.lists(_names, min_size=2, max_size=4, unique=True))
    states = {}
    for name in names:
        to = tuple(draw(st.lists(st.sampled_from([each for each in names if each != name]), unique=True)))
        kinds = st.sampled_from(get_args(Kind))
        transitions = {
            target: Transition(
                draw(st.dictionaries(st.sampled_from(["x", "y"]), kinds, max_size=2)),
                tuple(draw(st.lists(st.sampled_from(ACTORS), min_size=1, unique=True))),
            )
            for target in to
            if draw(st.booleans())
        }
        states[name] = State(
            to=to,
            final=not to,
            min_stay=draw(_seconds),
            cooldown=draw(_seconds),
            max_agents=draw(st.integers(0, 2)),
            transitions=transitions,
        )
    return Machine(name="any", initial=names[0], states=states)


@given(machines(), st.data())
def test_every_refusal_has_the_first_condition_that_fails(machine: Machine, data: st.DataObject) -> None:
    """The expected code comes from a second implementation of docs/machines.md."""
    current = data.draw(st.sampled_from(sorted(machine.states)))
    target = data.draw(_names)
    left_s, occupants = data.draw(_seconds), data.draw(st.integers(0, 3))
    case = TransitionCase(
        data.draw(st.sampled_from(ACTORS)),
        stayed_s=data.draw(_seconds),
        context=data.draw(_contexts),
        cooldown_left_s=lambda _: left_s,
        occupants=lambda _: occupants,
    )
    refusal = machine.check(current, target, case)
    assert not machine.allows(current, target) or refusal is None
    expected, missing, retry_after_s = reason(machine, current, target, case)
    if expected is None:
        assert refusal is None
        return
    assert refusal is not None
    assert (refusal.code, refusal.missing, refusal.retry_after_s) == (expected, missing, retry_after_s)
    assert set(refusal.allowed) == {
        way
        for way in machine.states[current].to
        if case.by in machine.states[current].transitions.get(way, Transition()).by
    }


def reason(
    machine: Machine, current: str, target: str, case: TransitionCase
) -> tuple[str | None, dict[str, Any], float | None]:
    """Return the expected code, the missing context, and when to try again."""
    start, goal = machine.states[current], machine.states.get(target)
    transition = start.transitions.get(target, Transition())
    missing = {
        key: kind for key, kind in transition.requires.items() if kind not in kinds_of((case.context or {}).get(key))
    }
    found: tuple[str | None, dict[str, Any], float | None] = (None, {}, None)
    if target == current:
        pass
    elif goal is None:
        found = ("unknown_state", {}, None)
    elif target not in start.to:
        found = ("not_allowed", {}, None)
    elif case.by not in transition.by:
        found = ("wrong_actor", {}, None)
    elif missing:
        found = ("context_missing", missing, None)
    elif case.stayed_s < start.min_stay:
        found = ("too_soon", {}, start.min_stay - case.stayed_s)
    elif goal.cooldown > 0 and case.cooldown_left_s(target) > 0:
        found = ("cooling_down", {}, case.cooldown_left_s(target))
    elif goal.max_agents > 0 and case.occupants(target) >= goal.max_agents:
        found = ("state_full", {}, None)
    return found


def kinds_of(value: object) -> set[str]:
    """Return the types that JSON Schema gives a value."""
    kinds: dict[type, set[str]] = {
        bool: {"boolean"},
        int: {"integer", "number"},
        float: {"number"},
        str: {"string"},
        list: {"array"},
        dict: {"object"},
    }
    return kinds.get(type(value), set())


@pytest.mark.parametrize("open_", [False, True])
def test_texts_that_are_no_names_are_not_remembered(*, open_: bool) -> None:
    """Operators can send any text as a target, so a cache of such texts would not be bounded in bytes."""
    machine = Machine(name="m", states={"idle": State()}, initial="idle", open=open_)
    refusals: Any = machine._refusals
    kept = is_cached_state_name.cache_info().currsize
    for number in range(10):
        target = f"{number}" * 1000
        assert not machine.allows("idle", target)
        assert getattr(machine.check("idle", target), "code", None) == "unknown_state"
    assert (is_cached_state_name.cache_info().currsize, refusals.cache_info().currsize) == (kept, 0)
