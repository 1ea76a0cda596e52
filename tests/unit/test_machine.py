"""The laws of state machines: the two that are shipped, how a file is checked, and the one check of a transition."""

from importlib.resources import files
from itertools import pairwise, product, starmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.machines.loader import parse
from aism_engine.domain.machines.machine import ANY, NAME_RULE, Machine, Machines, State
from aism_engine.errors import ConfigError

JOURNEY_ARROWS = {
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


# What is shipped


def test_the_journey_has_the_transitions_of_the_design_and_no_others(journey: Machine) -> None:
    """Of all pairs of states, exactly those of the table above are allowed."""
    pairs = {(a, b) for a, b in product(JOURNEY_ARROWS, repeat=2) if a != b and journey.check(a, b) is None}
    assert pairs == {(state, target) for state, targets in JOURNEY_ARROWS.items() for target in targets}
    assert {name: set(journey.allowed(name)) for name in journey.states} == JOURNEY_ARROWS


def test_the_journey_says_what_the_engine_does_on_its_own_account(journey: Machine) -> None:
    """Registering boots, loss and goodbye lead offline, and who returns goes on where it was."""
    assert (journey.name, journey.initial, journey.on_register) == ("journey", "offline", "bootstrap")
    assert (journey.on_lost, journey.on_return, journey.on_goodbye) == ("offline", "previous", "offline")
    assert journey.on_unknown == "offline"
    assert all(state.description for state in journey.states.values())


def test_the_open_machine_allows_any_name_and_nothing_else() -> None:
    """An agent that never registers may be in any state that can be named."""
    machine = shipped("open")
    assert machine.check("anything", "reviewing.the-7th_draft") is None
    assert machine.allowed("anything") == (ANY,)
    for target in ("", "7up", "a b", "a:b", "x" * 65, "naïve", "inbox\n", "../x"):
        refusal = machine.check("anything", target)
        assert refusal is not None
        assert (refusal.code, refusal.suggestions) == ("unknown_state", ())


# How a file is checked


def test_what_is_left_out_has_its_default() -> None:
    """Nobody is moved unless the file says so; who returns goes on where it was; `on_unknown` is as `initial`."""
    machine = parse(SMALL, "m.toml")
    assert machine == Machine(
        name="small",
        initial="inbox",
        on_unknown="inbox",
        states={"inbox": State("reads", ("deep_work",)), "deep_work": State("works", ("inbox",))},
    )
    assert (machine.on_register, machine.on_lost, machine.on_goodbye) == (None, None, None)
    assert machine.on_return == "previous"


def test_a_star_means_any_other_state() -> None:
    """`to = ["*"]` is every state of the machine but the one that says it."""
    machine = parse(SMALL.replace('["deep_work"]', '["*"]') + '[states.idle]\nto = ["*"]\n', "m.toml")
    assert machine.allowed("inbox") == ("deep_work", "idle")
    assert machine.allowed("idle") == ("inbox", "deep_work")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('to = ["inbox"]', 'to = ["inbox"', "m.toml:11: not TOML: Unclosed array (at end of document)"),
        ('name = "small"', "name = small", "m.toml:2: not TOML: Invalid value (at line 2, column 8)"),
        ("[machine]", "[machinery]", "m.toml:1: [machinery]: unknown; a machine is written in [machine] and [states."),
        ('name = "small"\n', "", 'm.toml:1: [machine]: "name" is missing'),
        ('initial = "inbox"\n', "", 'm.toml:1: [machine]: "initial" is missing'),
        ('to = ["inbox"]\n', "", 'm.toml:9: [states.deep_work]: "to" is missing'),
        ('name = "small"', 'name = "small"\nnam = 1', 'm.toml:3: [machine] nam: unknown key (did you mean "name"?)'),
        ('description = "works"', "max_stey = 5", "m.toml:10: [states.deep_work] max_stey: unknown key (did you mean"),
        ('name = "small"', "name = 7", "m.toml:2: [machine] name: Expected `str`, got `int`"),
        (
            'name = "small"',
            'name = "a small one"',
            "m.toml:2: [machine] name: not a name: expected a letter, then at most 63",
        ),
        ('["inbox"]', '"inbox"', "m.toml:11: [states.deep_work] to: Expected `array`, got `str`"),
        ('["inbox"]', '["inbox", 1]', "m.toml:11: [states.deep_work] to: Expected `str`, got `int` - at `$[1]`"),
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
def test_each_mistake_is_named_with_its_file_and_line(old: str, new: str, expected: str) -> None:
    """Whoever wrote the file can go straight to the line, and reads what was expected there."""
    text = SMALL.replace(old, new, 1) if old else new
    found = problems(text)
    assert [problem for problem in found if problem.startswith(expected)], found


@pytest.mark.parametrize("name", ["a b", "7up", "", "x" * 65, "a:b", "é", "previous"])
def test_a_name_that_cannot_be_one_is_a_mistake(name: str) -> None:
    """A state's name becomes part of events and metrics; `previous` has a meaning of its own in `on_return`."""
    text = SMALL.replace('["deep_work"]', '["*"]') + f'\n[states."{name}"]\nto = ["inbox"]\n'
    assert [problem.partition(" not a name: ")[0] for problem in problems(text)] == [f"m.toml:13: [states.{name}]:"]


def test_a_state_that_cannot_be_reached_is_a_mistake_unless_the_engine_leads_there() -> None:
    """What counts is a way from `initial` or from where the engine itself moves agents."""
    text = SMALL + '[states.attic]\nto = ["cellar"]\n[states.cellar]\nto = ["attic", "inbox"]\n'
    reason = "cannot be reached from initial or an on_... entry"
    assert problems(text) == (f"m.toml:12: [states.attic]: {reason}", f"m.toml:14: [states.cellar]: {reason}")
    assert parse(text.replace("\n\n", '\non_lost = "cellar"\n', 1), "m.toml").on_lost == "cellar"


def test_a_machine_without_states_has_to_be_open() -> None:
    """An empty machine is a mistake, and so is an empty file."""
    text = '[machine]\nname = "none"\ninitial = "here"\n'
    assert "m.toml:1: [machine]: a machine needs states, or open = true" in problems(text)
    assert parse(text + "open = true\n", "m.toml").open
    assert 'm.toml:1: [machine]: "initial" is missing' in problems("")
    assert problems(text.replace('"here"', '"no where"') + "open = true\n")[0].startswith(
        "m.toml:3: [machine] initial: "
    )


def test_all_mistakes_are_named_at_once_in_the_order_of_the_file() -> None:
    """One run of the check is enough to mend a file; text that only looks like a key leads nobody astray."""
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


# The one check of a transition


def test_staying_is_no_transition(journey: Machine) -> None:
    """No state is refused to an agent that is in it already; nothing changes."""
    assert [journey.check(state, state) for state in journey.states] == [None] * 8


def test_a_refusal_says_what_is_allowed_and_how_to_get_there(journey: Machine) -> None:
    """An agent that asks for a leap is told the current state, its transitions and a shortest path."""
    refusal = journey.check("offline", "deep_work")
    assert refusal is not None
    assert (refusal.code, refusal.current, refusal.requested) == ("not_allowed", "offline", "deep_work")
    assert refusal.allowed == ("bootstrap",)
    assert refusal.suggestions == ("bootstrap, then inbox, then deep_work",)
    assert refusal.message == "offline does not lead to deep_work; it leads to: bootstrap"


@pytest.mark.parametrize(("typed", "meant"), [("inbx", "inbox"), ("deepwork", "deep_work"), ("IDLE", "idle")])
def test_a_misspelt_state_is_answered_with_the_one_that_was_meant(journey: Machine, typed: str, meant: str) -> None:
    """The refusal of an unknown name suggests those that are near."""
    refusal = journey.check("inbox", typed)
    assert refusal is not None
    assert (refusal.code, refusal.requested) == ("unknown_state", typed)
    assert refusal.suggestions == (f"did you mean {meant}",)


def test_a_huge_name_is_refused_in_few_words(journey: Machine) -> None:
    """A hostile target costs no more than a plain one, and does not come back whole."""
    refusal = journey.check("inbox", "x" * 1_000_000)
    assert refusal is not None
    assert refusal.requested == "x" * 64 + "…"
    assert len(refusal.message) < 300


def test_out_of_an_unknown_state_the_only_way_is_on_unknown(journey: Machine) -> None:
    """An agent whose state the machine does not know (any more) is never trapped in it."""
    assert journey.allowed("gone") == ("offline",)
    assert journey.check("gone", "offline") is None
    refusal = journey.check("gone", "inbox")
    assert refusal is not None
    assert refusal.suggestions == ("offline, then bootstrap, then inbox",)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", fullmatch=True).filter(lambda name: name != "previous")


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Any closed machine, as its file has it; not all states need be within reach here."""
    names = draw(st.lists(NAMES, min_size=2, max_size=6, unique=True))
    targets = [draw(st.just((ANY,)) | st.sets(st.sampled_from(names)).map(lambda s: tuple(sorted(s)))) for _ in names]
    states = {n: State("", tuple(t for t in to if t != n)) for n, to in zip(names, targets, strict=True)}
    return Machine(name="any", initial=names[0], on_unknown=draw(st.sampled_from(names)), states=states)


@given(st.data())
def test_whatever_is_declared_the_state_is_one_of_the_machine_and_each_step_a_transition(data: st.DataObject) -> None:
    """Only what `check` lets through is applied; each refusal names a true reason and true ways out."""
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
                status_changes = [state, *path.split(", then ")]
                assert status_changes[-1] == target
                assert set(starmap(machine.check, pairwise(status_changes))) == {None}
        else:
            assert {suggestion.removeprefix("did you mean ") for suggestion in refusal.suggestions} <= set(
                machine.states
            )
    assert state in machine.states


@given(st.text() | st.text().map(lambda text: SMALL + text) | st.text('[]"=.# \n*ax').map(lambda text: text + SMALL))
def test_no_text_is_too_odd_for_the_parser(text: str) -> None:
    """It gives a machine, or says what is wrong with the file, line by line."""
    try:
        found = [parse(text, "m.toml").initial]
    except ConfigError as error:
        found = [problem.partition(":")[0] for problem in error.problems]
    assert set(found) in ({"inbox"}, {"m.toml"})


# The machines in use


def test_each_agent_lives_by_the_machine_of_its_type(journey: Machine) -> None:
    """A type may have a machine of its own; who never registered has another than who did."""
    small = parse(SMALL, "m.toml")
    machines = Machines(
        {"journey": journey, "open": shipped("open"), "small": small}, "journey", "open", {"scout": "small"}
    )
    assert machines.for_type("scout").name == "small"
    assert machines.for_type("architect").name == "journey"
    assert machines.for_type(None).name == "open"


def test_a_set_that_names_a_machine_in_vain_cannot_be_made(journey: Machine) -> None:
    """All such names are told at once, each with its key."""
    with pytest.raises(ConfigError) as caught:
        Machines({"journey": journey}, "jorney", "open", {"scout": "small", "critic": "journey"})
    assert caught.value.problems == (
        'machines.default: no machine "jorney" (did you mean "journey"?)',
        'machines.unregistered: no machine "open"',
        'machines.by_type.scout: no machine "small"',
    )
