"""The laws of where agents stand: stays, cooldowns, room, contexts and parties, as decisions over the fleet."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.presence import decide_lost, decide_returned, decide_state_repair
from aism_engine.domain.decision import Decision
from aism_engine.domain.machines.loader import parse
from aism_engine.domain.machines.machine import Machine, Machines, TransitionCase
from tests.support.model import NOW, World

DESK = """\
[machine]
name = "desk"
initial = "inbox"
on_register = "inbox"
on_lost = "inbox"

[states.inbox]
to = ["work", "talk", "rest"]
[states.inbox.transitions.work]
requires = { branch = "string" }
[states.inbox.transitions.talk]
by = ["operator"]

[states.work]
to = ["inbox", "rest"]
max_stay = 60
after_max_stay = "rest"
max_agents = 2

[states.rest]
to = ["inbox"]
min_stay = 5
max_stay = 30
cooldown = 100

[states.talk]
to = ["inbox"]
"""
OTHER = """\
[machine]
name = "other"
initial = "elsewhere"
[states.elsewhere]
final = true
"""


def world(desk: str = DESK, other: str = OTHER) -> World:
    found = {"desk": parse(desk, "desk.toml"), "other": parse(other, "other.toml")}
    made = World(machines=Machines(found, "desk", "desk", {"stranger": "other"}))
    for agent_id in ("a", "b", "c"):
        made.respond("register", agent_id, type="clerk")
    return made


@pytest.fixture
def desk() -> World:
    return world()


def go(world: World, target: str, agent_id: str = "a", **fields: Any) -> Decision:  # noqa: ANN401
    return world.respond("state_transition", agent_id, target=target, **{"context": {"branch": "main"}} | fields)


def lose(world: World, agent_id: str) -> None:
    draft = world.draft()
    world.commit(draft, decide_lost(draft, world.policy, agent_id, 1.0, 60.0))


def mark_returned(world: World, agent_id: str) -> None:
    draft = world.draft()
    world.commit(draft, decide_returned(draft, world.policy, agent_id))


def set_right(world: World, agent_id: str = "a") -> Decision:
    draft = world.draft()
    return world.commit(draft, decide_state_repair(draft, world.policy, agent_id))


@pytest.fixture(autouse=True)
def _beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are as they are expected: what this file is about is what comes of a loss."""
    write = World._write

    def _write(self: World, effect: Any) -> None:  # noqa: ANN401
        if type(effect).__name__ != "ExpectScore":
            write(self, effect)

    monkeypatch.setattr(World, "_write", _write)


# What a transition asks for


def test_a_context_that_is_required_has_to_be_there(desk: World) -> None:
    """The refusal names what is missing, and of which kind; with it the transition is made, and both are kept."""
    go(desk, "work", id="m1", reply=True, context={"tokens": 1})
    assert desk.reply("m1", "a")["error"]["details"] == {
        "current": "inbox",
        "requested": "work",
        "allowed": ["work", "rest"],  # to talk is for operators
        "missing": {"branch": "string"},
    }
    assert go(desk, "work").outcome == "applied"
    assert (desk.agent().state, desk.records["a"]["context"]) == ("work", '{"branch":"main"}')


def test_what_was_said_of_a_change_is_not_said_of_the_next(desk: World) -> None:
    """Reason and context are those of the last change, or none; a new leader leaves nothing old behind, either."""
    go(desk, "work", reason="a chapter")
    assert (desk.records["a"]["reason"], desk.records["a"]["context"]) == ("a chapter", '{"branch":"main"}')
    desk.fleet = desk.reloaded()
    go(desk, "inbox", context={})
    assert (desk.records["a"]["reason"], desk.records["a"]["context"]) == ("", "")


def test_of_a_large_context_its_digest_is_kept(desk: World) -> None:
    """The audit and the record stay small, whatever an agent says."""
    go(desk, "work", context={"branch": "x" * 10_000})
    (fact,) = desk.facts_of("state_changed")[-1:]
    assert (set(fact["details"]), desk.records["a"]["context"]) == ({"context_digest", "context_size"}, "")


def test_what_an_operator_alone_may_cause_needs_a_command(desk: World) -> None:
    """By its own word the agent may not go there; by the same word as the answer to a command, it does."""
    assert go(desk, "talk").code == "wrong_actor"
    desk.send("c1", kind="state_transition", target="talk")
    desk.poll_list()
    assert go(desk, "talk", command_id="c1").outcome == "applied"
    assert (desk.agent().state, desk.status("c1")) == ("talk", "succeeded")


def test_the_result_of_a_command_is_the_context_of_its_transition(desk: World) -> None:
    """One that lacks what is required fails the command, with that reason."""
    for number, (payload, status) in enumerate([({}, "failed"), ({"branch": "main"}, "succeeded")]):
        desk.send(f"c{number}", kind="state_transition", target="work")
        desk.respond("result", command_id=f"c{number}", payload=payload)
        assert desk.status(f"c{number}") == status
    assert desk.command_records["c0"]["code"] == "context_missing"


def test_a_state_is_not_left_before_its_time_nor_entered_again_too_soon(desk: World) -> None:
    """The refusal says how long it will be; a new leader knows it as well."""
    go(desk, "rest")
    desk.now += 2
    go(desk, "inbox", id="m1", reply=True)
    assert desk.reply("m1", "a")["error"]["details"]["retry_after"] == 3.0
    desk.now += 3
    assert go(desk, "inbox").outcome == "applied"
    desk.now += 40
    desk.fleet = desk.reloaded()
    go(desk, "rest", id="m2", reply=True)
    refusal = desk.reply("m2", "a")["error"]
    assert (refusal["code"], refusal["details"]["retry_after"]) == ("cooling_down", 60.0)
    desk.now += 60
    assert go(desk, "rest").outcome == "applied"


# Room


def test_no_more_are_in_a_state_than_it_has_room_for(desk: World) -> None:
    """Whoever leaves, or is lost, makes room; the next leader counts the same."""
    assert [go(desk, "work", agent_id).code for agent_id in "abc"] == ["", "", "state_full"]
    desk.fleet = desk.reloaded()
    assert go(desk, "work", "c").code == "state_full"
    lose(desk, "a")
    assert go(desk, "work", "c").code == ""
    go(desk, "inbox", "b")
    assert go(desk, "work", "b").code == ""


def test_the_second_of_a_batch_sees_that_the_first_has_taken_the_room(desk: World) -> None:
    """Three that ask within one commit are as three that ask one after the other."""
    draft = desk.draft()
    codes = [
        desk.decide_on(draft, "state_transition", agent_id, target="work", context={"branch": "m"}).code
        for agent_id in "abc"
    ]
    assert codes == ["", "", "state_full"]


def test_who_returns_finds_its_place_only_if_it_is_free(desk: World) -> None:
    """Otherwise it stays where its loss had put it, and may ask."""
    for agent_id in "ab":
        go(desk, "work", agent_id)
    lose(desk, "a")
    lose(desk, "b")
    go(desk, "work", "c")
    mark_returned(desk, "a")
    mark_returned(desk, "b")
    assert [desk.agent(agent_id).state for agent_id in "abc"] == ["work", "inbox", "work"]


def test_only_those_of_the_same_machine_share_the_room() -> None:
    """Two machines may both have a state of that name."""
    shared = OTHER.replace("elsewhere", "work")
    made = world(other=shared)
    for number in range(3):
        made.respond("register", f"s{number}", type="stranger")
    assert [made.agent(f"s{number}").state for number in range(3)] == ["work"] * 3
    assert [go(made, "work", agent_id).code for agent_id in "abc"] == ["", "", "state_full"]


def test_for_whom_an_agent_waits_stands_in_its_record(desk: World) -> None:
    """From when it comes there to when it leaves; a machine that says otherwise later is followed."""
    desk.send("c1", kind="state_transition", target="talk")
    go(desk, "talk", command_id="c1")
    assert desk.records["a"]["waits_for"] == ""
    desk.policy = world(DESK + 'waits_for = "human"\n').policy
    assert set_right(desk).outcome == "applied"
    assert (desk.records["a"]["waits_for"], desk.reloaded().agents["a"].waits_for) == ("human", "human")
    go(desk, "inbox")
    assert desk.records["a"]["waits_for"] == ""


# Stays


def test_a_stay_that_is_over_ends_where_the_machine_says(desk: World) -> None:
    """By the engine, with its reason; the deadline of the next state takes the place of the last."""
    go(desk, "work")
    assert desk.deadlines == {"stay:a": NOW + 60}
    desk.pass_time(59)
    assert desk.agent().state == "work"
    desk.pass_time(1)
    (change,) = desk.facts_of("state_changed")[-1:]
    assert (change["new_state"], change["source"], change["reason"]) == (
        "rest",
        "max_stay",
        "in work for longer than 60 s",
    )
    assert desk.deadlines == {"stay:a": NOW + 90}
    assert [event["code"] for event in desk.events("errors")] == ["stay_exceeded"]


def test_a_stay_that_is_only_told_of_is_told_once(desk: World) -> None:
    """And what is over is not set again."""
    go(desk, "rest")
    desk.pass_time(31)
    assert (desk.agent().state, desk.deadlines, len(desk.facts_of("stay_exceeded"))) == ("rest", {}, 1)
    assert set_right(desk).outcome == "unchanged"


def test_where_the_engine_finds_no_room_it_tries_again_later() -> None:
    """The refusal is recorded, and the agent stays where it is."""
    full = DESK.replace("max_stay = 30", "max_agents = 1")
    made = world(full)
    go(made, "rest", "b")
    go(made, "work")
    made.pass_time(60)
    assert (made.agent().state, made.facts_of("transition_refused")[-1]["code"]) == ("work", "state_full")
    assert made.deadlines == {"stay:a": NOW + 120}
    assert set_right(made).outcome == "unchanged"
    go(made, "inbox", "b")
    made.pass_time(60)
    assert made.agent().state == "rest"


def test_whoever_leaves_is_not_waited_for_any_more(desk: World) -> None:
    """Be it by its own word, by registering as something else, or by being forgotten."""
    ways: tuple[Callable[[], Decision], ...] = (
        lambda: go(desk, "inbox"),
        lambda: desk.respond("register", type="stranger"),
        lambda: desk.request("forget", "f1"),
    )
    for leave in ways:
        desk.respond("register", type="clerk")
        go(desk, "work")
        assert set(desk.deadlines) == {"stay:a"}
        leave()
        assert desk.deadlines == {}


def test_a_deadline_that_was_lost_is_set_again(desk: World) -> None:
    """From the record: it is the truth, and the deadline its index."""
    go(desk, "work")
    desk.deadlines.clear()
    desk.fleet = desk.reloaded()
    assert set_right(desk).outcome == "applied"
    assert desk.deadlines == {"stay:a": NOW + 60}
    assert set_right(desk).outcome == "unchanged"


@pytest.mark.parametrize(("limit_s", "waited_s", "state"), [(30, 10, "work"), (10, 40, "rest"), (600, 40, "work")])
def test_a_limit_that_was_changed_holds_for_who_is_there_already(
    desk: World, limit_s: int, waited_s: int, state: str
) -> None:
    """Shorter or longer, from when it came; what is over by the new one is over soon: at the latest after one more."""
    go(desk, "work")
    desk.now += waited_s
    desk.policy = world(DESK.replace("max_stay = 60", f"max_stay = {limit_s}")).policy
    assert set_right(desk).outcome == "applied"
    assert desk.deadlines == {"stay:a": NOW + limit_s}
    desk.pass_time(0)
    assert desk.agent().state == state
    assert set_right(desk).outcome == "unchanged"


def test_a_deadline_that_comes_too_early_is_moved(desk: World) -> None:
    """The machine may have been changed since: what counts is what it says now."""
    go(desk, "work")
    desk.deadlines["stay:a"] = NOW + 10
    desk.pass_time(10)
    assert (desk.agent().state, desk.deadlines) == ("work", {"stay:a": NOW + 60})


def test_a_state_that_does_not_exist_any_more_is_left_for_on_unknown(desk: World) -> None:
    """It is told of, as a trouble, and recorded as the doing of the machine."""
    go(desk, "talk", command_id=None)
    go(desk, "rest")
    shrunk = DESK.replace('"rest"]\n[states.inbox.transitions.work]', '"nap"]\n[states.inbox.transitions.work]')
    shrunk = shrunk.replace('"rest"', '"nap"').replace("[states.rest]", "[states.nap]")
    desk.policy = world(shrunk).policy
    assert set_right(desk).outcome == "applied"
    (change,) = desk.facts_of("state_changed")[-1:]
    assert (change["old_state"], change["new_state"], change["source"]) == ("rest", "inbox", "machine")
    assert [event["code"] for event in desk.events("errors")][-1:] == ["state_unknown"]


# The law


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["go", "send", "answer", "lose", "return", "wait"]),
            st.sampled_from("abc"),
            st.sampled_from(["inbox", "work", "rest", "talk", "nowhere"]),
            st.sampled_from([0.0, 1.0, 5.0, 31.0, 61.0, 101.0]),
            st.sampled_from([{}, {"branch": "main"}]),
        ),
        max_size=40,
    )
)
def test_whatever_happens_each_agent_is_where_its_machine_allows(
    status_changes: list[tuple[str, str, str, float, dict[str, str]]],
) -> None:
    """Each change was an allowed transition, each refusal has a true reason, `max_agents` holds, and the next leader
    would load the same fleet.
    """
    made = world()
    machine = made.policy.machines.for_type("clerk")
    for number, (what, agent_id, target, seconds, context) in enumerate(status_changes):
        facts = len(made.facts)
        if what in {"go", "answer"}:
            command_id = f"c{number - 1}" if what == "answer" and f"c{number - 1}" in made.command_records else None
            made.respond("state_transition", agent_id, target=target, context=context, command_id=command_id)
        elif what == "send" and target != "nowhere":
            made.send(f"c{number}", agent_id, kind="state_transition", target=target)
        elif what in {"lose", "return"}:
            (lose if what == "lose" else mark_returned)(made, agent_id)
        else:
            made.pass_time(seconds)
        for fact in made.facts[facts:]:
            if fact.event == "state_changed" and fact.source in {"agent", "max_stay"}:
                assert machine.check(str(fact.old_state), str(fact.new_state)) is None
            if fact.event == "transition_refused":  # a lost agent that asks has returned first, to where it was
                check_reason(machine, str(fact.old_state), str(fact.new_state), str(fact.code))
        states = [each.state for each in made.fleet.agents.values()]
        assert set(states) <= set(machine.states)
        assert states.count("work") <= 2
    loaded = made.reloaded()
    assert {a: (x.state, x.cooling, x.stay_until) for a, x in loaded.agents.items()} == {
        a: (x.state, x.cooling, x.stay_until) for a, x in made.fleet.agents.items()
    }
    assert loaded.occupants == made.fleet.occupants
    assert loaded.liveness == made.fleet.liveness
    assert loaded.absent == made.fleet.absent


def check_reason(machine: Machine, current: str, target: str, code: str) -> None:
    """Check a refusal: by `to` alone, or by a condition of a transition that exists."""
    alone = machine.check(current, target)
    if alone is not None:
        assert code == alone.code
    else:
        asked = machine.state(current).transitions.get(target)
        reasons = {
            "wrong_actor": asked is not None and "agent" not in asked.by,
            "context_missing": asked is not None and bool(asked.requires),
            "too_soon": machine.state(current).min_stay > 0,
            "cooling_down": machine.state(target).cooldown > 0,
            "state_full": machine.state(target).max_agents > 0,
        }
        assert reasons[code]
        assert machine.check(current, target, TransitionCase("operator", context={"branch": "x"})) is None
