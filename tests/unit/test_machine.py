"""State machines: the shipped machines, the problems of a file, and which transitions are allowed."""

from importlib.resources import files
from itertools import pairwise, product, starmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.machines.machine import ANY, NAME_RULE, Machine, Machines, State
from aism_engine.errors import ConfigError
from tests.support.machines import parse

JOURNEY = {
    "offline": {"bootstrap"},
    "bootstrap": {"inbox", "direct_io"},
    "inbox": {"deep_work", "distill", "idle", "logout", "direct_io"},
    "distill": {"inbox", "deep_work", "idle", "logout", "direct_io"},
    "deep_work": {"inbox", "distill", "direct_io"},
    "idle": {"inbox", "logout", "direct_io"},
    "logout": {"offline", "direct_io"},
    "direct_io": {"bootstrap", "inbox", "distill", "deep_work", "idle", "logout"},
}

SMALL = """\
[machine]
name = "small"
initial = "inbox"

[states.inbox]
description = "reads"
to = ["deep_work"]

[states.deep_work]
description = "works"
to = ["inbox"]
"""


def shipped(name: str) -> Machine:
    file = files("aism_engine") / "machines" / f"{name}.toml"
    return parse(file.read_text(), file.name)


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "m.toml")
    return caught.value.problems


@pytest.fixture(scope="module")
def journey() -> Machine:
    return shipped("journey")


# --- shipped machines -------------------------------------------------------------------------------------------------


def test_journey_allows_exactly_the_transitions_of_the_table(journey: Machine) -> None:
    pairs = {(a, b) for a, b in product(JOURNEY, repeat=2) if a != b and journey.check(a, b) is None}
    assert pairs == {(state, target) for state, targets in JOURNEY.items() for target in targets}
    assert {name: set(journey.allowed(name)) for name in journey.states} == JOURNEY


def test_entries_of_the_journey(journey: Machine) -> None:
    """A registration leads to bootstrap, a loss or goodbye to offline, a return to the state before the loss."""
    assert (journey.name, journey.initial, journey.on_register) == ("journey", "offline", "bootstrap")
    assert (journey.on_lost, journey.on_return, journey.on_goodbye) == ("offline", "previous", "offline")
    assert journey.on_unknown == "offline"
    assert all(state.description for state in journey.states.values())


def test_open_machine_allows_any_valid_state_name() -> None:
    machine = shipped("open")
    assert machine.check("anything", "reviewing.the-7th_draft") is None
    assert machine.allowed("anything") == (ANY,)
    for target in ("", "7up", "a b", "a:b", "x" * 65, "naïve", "inbox\n", "../x"):
        refusal = machine.check("anything", target)
        assert refusal is not None
        assert (refusal.code, refusal.suggestions) == ("unknown_state", ())


# --- problems of a file -----------------------------------------------------------------------------------------------


def test_missing_keys_have_their_defaults() -> None:
    """By default no entry changes the state, a lost agent returns to its previous state, and unknown means initial."""
    machine = parse(SMALL, "m.toml")
    assert machine == Machine(
        name="small",
        initial="inbox",
        on_unknown="inbox",
        states={"inbox": State("reads", ("deep_work",)), "deep_work": State("works", ("inbox",))},
    )
    assert (machine.on_register, machine.on_lost, machine.on_goodbye) == (None, None, None)
    assert machine.on_return == "previous"


def test_star_means_all_other_states() -> None:
    machine = parse(SMALL.replace('["deep_work"]', '["*"]') + '[states.idle]\nto = ["*"]\n', "m.toml")
    assert machine.allowed("inbox") == ("deep_work", "idle")
    assert machine.allowed("idle") == ("inbox", "deep_work")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('to = ["inbox"]', 'to = ["inbox"', "m.toml:11: not TOML: Unclosed array (at end of document)"),
        ('name = "small"', "name = small", "m.toml:2: not TOML: Invalid value (at line 2, column 8)"),
        ("[machine]", "[machinery]", "m.toml:1: [machinery]: unknown; a machine is written in [machine] and [states."),
        ('name = "small"\n', "", "m.toml:1: [machine] name: missing"),
        ('initial = "inbox"\n', "", "m.toml:1: [machine] initial: missing"),
        ('to = ["inbox"]\n', "", "m.toml:9: [states.deep_work] to: no way out: expected at least one target"),
        ('name = "small"', 'name = "small"\nnam = 1', 'm.toml:3: [machine] nam: unknown key (did you mean "name"?)'),
        ('description = "works"', "max_stey = 5", "m.toml:10: [states.deep_work] max_stey: unknown key (did you mean"),
        ('name = "small"', "name = 7", "m.toml:2: [machine] name: expected text, got a whole number"),
        (
            'name = "small"',
            'name = "a small one"',
            "m.toml:2: [machine] name: not a name: expected a letter, then at most 63",
        ),
        ('["inbox"]', '"inbox"', "m.toml:11: [states.deep_work] to: expected a list, got text"),
        ('["inbox"]', '["inbox", 1]', "m.toml:11: [states.deep_work] to: entry 2: expected text, got a whole number"),
        ('["inbox"]', '["inbx"]', 'm.toml:11: [states.deep_work] to: unknown state "inbx" (did you mean "inbox"?)'),
        ('["inbox"]', '["inbox", "zzz"]', 'm.toml:11: [states.deep_work] to: unknown state "zzz"'),
        ('["inbox"]', '[\n  "inbox",\n  "zzz",\n]', 'm.toml:13: [states.deep_work] to: unknown state "zzz"'),
        ('["inbox"]', '["inbox", "inbox"]', 'm.toml:11: [states.deep_work] to: "inbox" is listed twice'),
        ('["inbox"]', '["inbox", "deep_work"]', "m.toml:11: [states.deep_work] to: a state cannot be its own target"),
        (
            '["inbox"]',
            '["inbox", "*"]',
            'm.toml:11: [states.deep_work] to: "*" means all other states, so it must be the only target',
        ),
        ('["inbox"]', "[]", "m.toml:11: [states.deep_work] to: no way out: expected at least one target"),
        ('["inbox"]', '["deep_work"]', "m.toml:11: [states.deep_work] to: no way out: expected at least one target"),
        ('initial = "inbox"', 'initial = "x"', 'm.toml:3: [machine] initial: unknown state "x"'),
        *[
            (
                "\n\n",
                f'\n{entry} = "Inbox"\n',
                f'm.toml:4: [machine] {entry}: unknown state "Inbox" (did you mean "inbox"?)',
            )
            for entry in ("on_register", "on_lost", "on_return", "on_goodbye", "on_unknown")
        ],
        ("\n\n", "\nopen = true\n", "m.toml:5: [states]: an open machine allows any state and has none of its own"),
        ("", "states = 1\n", "m.toml:1: [states]: expected a table [states.NAME] for each state"),
        ("", "machine = 1\n", "m.toml:1: [machine]: expected a table"),
    ],
)
def test_every_problem_is_reported_with_its_file_and_line(old: str, new: str, expected: str) -> None:
    text = SMALL.replace(old, new, 1) if old else new
    found = problems(text)
    assert [problem for problem in found if problem.startswith(expected)], found


@pytest.mark.parametrize("name", ["a b", "7up", "", "x" * 65, "a:b", "é", "previous"])
def test_invalid_state_name_is_reported(name: str) -> None:
    """State names are part of events and metrics. The name `previous` is reserved for `on_return`."""
    text = SMALL.replace('["deep_work"]', '["*"]') + f'\n[states."{name}"]\nto = ["inbox"]\n'
    assert [problem.partition(" not a name: ")[0] for problem in problems(text)] == [f"m.toml:13: [states.{name}]:"]


def test_state_that_cannot_be_reached_is_reported() -> None:
    text = SMALL + '[states.attic]\nto = ["cellar"]\n[states.cellar]\nto = ["attic", "inbox"]\n'
    reason = "cannot be reached from initial or an on_... entry"
    assert problems(text) == (f"m.toml:12: [states.attic]: {reason}", f"m.toml:14: [states.cellar]: {reason}")
    assert parse(text.replace("\n\n", '\non_lost = "cellar"\n', 1), "m.toml").on_lost == "cellar"


def test_machine_without_states_must_be_open() -> None:
    """An empty file is reported as well."""
    text = '[machine]\nname = "none"\ninitial = "here"\n'
    assert "m.toml:1: [machine]: a machine needs states, or open = true" in problems(text)
    assert parse(text + "open = true\n", "m.toml").open
    assert "m.toml:1: [machine] initial: missing" in problems("")
    assert problems(text.replace('"here"', '"no where"') + "open = true\n")[0].startswith(
        "m.toml:3: [machine] initial: "
    )


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    """A long string may contain a line that looks like a key."""
    text = '''\
[machine]
name = "bad"
initial = "inbox"
on_lost = "ofline"
[states.offline]
description = """
to = "this is prose"
[states.inbox] is prose as well
"""
to = ["inbx"]
[states]
inbox.to = ["offline", "inbox"]
"spare room" = { to = [] }
'''
    assert [problem.partition(";")[0] for problem in problems(text)] == [
        'm.toml:4: [machine] on_lost: unknown state "ofline" (did you mean "offline"?)',
        'm.toml:10: [states.offline] to: unknown state "inbx" (did you mean "inbox"?)',
        "m.toml:12: [states.inbox] to: a state cannot be its own target",
        "m.toml:13: [states.spare room] to: no way out: expected at least one target, or final = true",
        "m.toml:13: [states.spare room]: cannot be reached from initial or an on_... entry",
        f"m.toml:13: [states.spare room]: not a name: expected {NAME_RULE}",
    ]


# --- transitions ------------------------------------------------------------------------------------------------------


def test_current_state_is_never_refused(journey: Machine) -> None:
    assert [journey.check(state, state) for state in journey.states] == [None] * 8


def test_refusal_lists_the_allowed_states_and_a_shortest_path(journey: Machine) -> None:
    refusal = journey.check("offline", "deep_work")
    assert refusal is not None
    assert (refusal.code, refusal.current, refusal.requested) == ("not_allowed", "offline", "deep_work")
    assert refusal.allowed == ("bootstrap",)
    assert refusal.suggestions == ("bootstrap, then inbox, then deep_work",)
    assert refusal.message == "offline does not lead to deep_work; it leads to: bootstrap"


@pytest.mark.parametrize(("typed", "meant"), [("inbx", "inbox"), ("deepwork", "deep_work"), ("IDLE", "idle")])
def test_refusal_of_a_misspelt_state_suggests_similar_names(journey: Machine, typed: str, meant: str) -> None:
    refusal = journey.check("inbox", typed)
    assert refusal is not None
    assert (refusal.code, refusal.requested) == ("unknown_state", typed)
    assert refusal.suggestions == (f"did you mean {meant}",)


def test_huge_state_name_is_truncated_in_the_refusal(journey: Machine) -> None:
    refusal = journey.check("inbox", "x" * 1_000_000)
    assert refusal is not None
    assert refusal.requested == "x" * 64 + "…"
    assert len(refusal.message) < 300


def test_on_unknown_is_the_only_target_of_an_unknown_state(journey: Machine) -> None:
    """An agent whose state no longer exists can always leave it."""
    assert journey.allowed("gone") == ("offline",)
    assert journey.check("gone", "offline") is None
    refusal = journey.check("gone", "inbox")
    assert refusal is not None
    assert refusal.suggestions == ("offline, then bootstrap, then inbox",)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", fullmatch=True).filter(lambda name: name != "previous")


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Any closed machine; its states need not be reachable."""
    names = draw(st.lists(NAMES, min_size=2, max_size=6, unique=True))
    targets = [draw(st.just((ANY,)) | st.sets(st.sampled_from(names)).map(lambda s: tuple(sorted(s)))) for _ in names]
    states = {n: State("", tuple(t for t in to if t != n)) for n, to in zip(names, targets, strict=True)}
    return Machine(name="any", initial=names[0], on_unknown=draw(st.sampled_from(names)), states=states)


@given(st.data())
def test_any_sequence_of_declarations_follows_the_transitions(data: st.DataObject) -> None:
    """Each refusal has a true reason and lists the actual targets."""
    machine = data.draw(machines())
    declared = data.draw(st.lists(st.sampled_from(sorted(machine.states)) | NAMES | st.text(max_size=70), max_size=20))
    state = machine.initial
    for target in declared:
        refusal = machine.check(state, target)
        to = machine.states[state].to
        transitions = set(machine.states) - {state} if to == (ANY,) else set(to)
        if refusal is None:
            assert target in transitions | {state}
            state = target
            continue
        assert target not in transitions | {state}
        assert refusal.code == ("not_allowed" if target in machine.states else "unknown_state")
        assert (refusal.current, set(refusal.allowed)) == (state, transitions)
        if refusal.code == "not_allowed":
            for path in refusal.suggestions:
                states = [state, *path.split(", then ")]
                assert states[-1] == target
                assert set(starmap(machine.check, pairwise(states))) == {None}
        else:
            assert {suggestion.removeprefix("did you mean ") for suggestion in refusal.suggestions} <= set(
                machine.states
            )
    assert state in machine.states


@given(st.text() | st.text().map(lambda text: SMALL + text) | st.text('[]"=.# \n*ax').map(lambda text: text + SMALL))
def test_any_text_is_a_machine_or_a_list_of_problems(text: str) -> None:
    try:
        found = [parse(text, "m.toml").initial]
    except ConfigError as error:
        found = [problem.partition(":")[0] for problem in error.problems]
    assert set(found) in ({"inbox"}, {"m.toml"})


# --- machines by agent type -------------------------------------------------------------------------------------------


def test_each_agent_type_has_its_machine_and_so_have_unregistered_agents(journey: Machine) -> None:
    small = parse(SMALL, "m.toml")
    machines = Machines(
        {"journey": journey, "open": shipped("open"), "small": small}, "journey", "open", {"scout": "small"}
    )
    assert machines.for_type("scout").name == "small"
    assert machines.for_type("architect").name == "journey"
    assert machines.for_type(None).name == "open"


def test_every_machine_that_does_not_exist_is_reported_with_its_key(journey: Machine) -> None:
    with pytest.raises(ConfigError) as caught:
        Machines({"journey": journey}, "jorney", "open", {"scout": "small", "critic": "journey"})
    assert caught.value.problems == (
        'machines.default: no machine "jorney" (did you mean "journey"?)',
        'machines.unregistered: no machine "open"',
        'machines.by_type.scout: no machine "small"',
    )
