"""Rules of states: required context, actors, stays, cooldowns, max_agents, and the repair after a reload."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.liveness import decide_lost, decide_returned
from aism_engine.domain.agents.state_changes import decide_state_repair
from aism_engine.domain.decision import Decision
from aism_engine.domain.machines.machine import Machine, Machines, TransitionCase
from tests.support.machines import parse
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


def make_world(desk: str = DESK, other: str = OTHER) -> World:
    """Return a world with the registered agents `a`, `b` and `c` in the inbox of the machine `desk`."""
    machines = {"desk": parse(desk, "desk.toml"), "other": parse(other, "other.toml")}
    world = World(machines=Machines(machines, "desk", "desk", {"stranger": "other"}))
    for agent_id in ("a", "b", "c"):
        world.respond("register", agent_id, type="clerk")
    return world


@pytest.fixture
def world() -> World:
    return make_world()


def transition(world: World, target: str, agent_id: str = "a", **fields: Any) -> Decision:  # noqa: ANN401
    """Decide on a transition that an agent declares, with the context that `work` requires."""
    return world.respond("state_transition", agent_id, target=target, **{"context": {"branch": "main"}} | fields)


def lose(world: World, agent_id: str) -> None:
    world.snapshots[agent_id] = AgentSnapshot(score=1.0)
    world.decide(decide_lost, agent_id, 1.0, 60.0)


# --- conditions of a transition ---------------------------------------------------------------------------------------


def test_transition_without_its_required_context_is_refused(world: World) -> None:
    """The refusal names the missing keys and their types. A complete context is kept."""
    transition(world, "work", id="m1", reply=True, context={"tokens": 1})
    assert world.reply("m1", "a")["error"]["details"] == {
        "current": "inbox",
        "requested": "work",
        "allowed": ["work", "rest"],  # the transition to talk is for operators
        "missing": {"branch": "string"},
    }
    assert transition(world, "work").outcome == "applied"
    assert (world.agent().state, world.record().context) == ("work", {"branch": "main"})


def test_record_has_reason_and_context_of_the_last_change_only(world: World) -> None:
    """A new leader clears what an earlier one wrote."""
    transition(world, "work", reason="a chapter")
    assert (world.record().reason, world.record().context) == ("a chapter", {"branch": "main"})
    world.fleet = world.reloaded()
    transition(world, "inbox", context={})
    assert (world.record().reason, world.record().context) == ("", {})


def test_large_context_is_kept_as_a_digest(world: World) -> None:
    transition(world, "work", context={"branch": "x" * 10_000})
    (fact,) = world.facts_of("state_changed")[-1:]
    assert (set(fact["details"]), world.record().context) == ({"context_digest", "context_size"}, {})


def test_transition_by_operators_needs_a_command(world: World) -> None:
    """An agent may make the transition only as its answer to a command."""
    assert transition(world, "talk").code == "wrong_actor"
    world.send("c1", kind="state_transition", target="talk")
    world.poll_list()
    assert transition(world, "talk", command_id="c1").outcome == "applied"
    assert (world.agent().state, world.status("c1")) == ("talk", "succeeded")


@pytest.mark.parametrize(
    ("payload", "status", "code"), [({}, "failed", "context_missing"), ({"branch": "main"}, "succeeded", "")]
)
def test_result_of_a_command_is_the_context_of_its_transition(
    world: World, payload: dict[str, str], status: str, code: str
) -> None:
    """A result without the required keys fails the command."""
    world.send("c1", kind="state_transition", target="work")
    world.respond("result", command_id="c1", payload=payload)
    assert (world.status("c1"), world.command_records["c1"].get("code", "")) == (status, code)


def test_min_stay_and_cooldown_refuse_early_transitions(world: World) -> None:
    """The refusal says when to try again. A new leader knows the cooldown."""
    transition(world, "rest")
    world.now += 2
    transition(world, "inbox", id="m1", reply=True)
    assert world.reply("m1", "a")["error"]["details"]["retry_after"] == 3.0
    world.now += 3
    assert transition(world, "inbox").outcome == "applied"
    world.now += 40
    world.fleet = world.reloaded()
    transition(world, "rest", id="m2", reply=True)
    error = world.reply("m2", "a")["error"]
    assert (error["code"], error["details"]["retry_after"]) == ("cooling_down", 60.0)
    world.now += 60
    assert transition(world, "rest").outcome == "applied"


# --- max_agents -------------------------------------------------------------------------------------------------------


def test_max_agents_limits_the_agents_in_a_state(world: World) -> None:
    """An agent that is lost or leaves the state makes room. A new leader counts the same."""
    assert [transition(world, "work", agent_id).code for agent_id in "abc"] == ["", "", "state_full"]
    world.fleet = world.reloaded()
    assert transition(world, "work", "c").code == "state_full"
    lose(world, "a")
    assert transition(world, "work", "c").code == ""
    transition(world, "inbox", "b")
    assert transition(world, "work", "b").code == ""


def test_max_agents_holds_within_a_batch(world: World) -> None:
    draft, fields = world.draft(), {"target": "work", "context": {"branch": "main"}}
    decisions = [world.decide_on(draft, "state_transition", agent_id, **fields) for agent_id in "abc"]
    assert [decision.code for decision in decisions] == ["", "", "state_full"]


def test_returning_agent_enters_its_previous_state_only_if_there_is_room(world: World) -> None:
    """Otherwise the agent stays in the state that it was moved to when it was lost."""
    transition(world, "work", "a")
    transition(world, "work", "b")
    lose(world, "a")
    lose(world, "b")
    transition(world, "work", "c")
    world.decide(decide_returned, "a")
    world.decide(decide_returned, "b")
    assert [world.agent(agent_id).state for agent_id in "abc"] == ["work", "inbox", "work"]


def test_max_agents_counts_only_agents_of_the_same_machine() -> None:
    """Two machines may have states of one name."""
    world = make_world(other=OTHER.replace("elsewhere", "work"))
    for agent_id in ("x", "y", "z"):
        world.respond("register", agent_id, type="stranger")
    assert [world.agent(agent_id).state for agent_id in "xyz"] == ["work"] * 3
    assert [transition(world, "work", agent_id).code for agent_id in "abc"] == ["", "", "state_full"]


def test_record_says_who_must_act_in_the_current_state(world: World) -> None:
    """A reload of the machines changes `waits_for` of agents that are in the state."""
    world.send("c1", kind="state_transition", target="talk")
    transition(world, "talk", command_id="c1")
    assert world.record().waits_for == ""
    world.policy = make_world(DESK + 'waits_for = "human"\n').policy
    assert world.decide(decide_state_repair).outcome == "applied"
    assert (world.record().waits_for, world.reloaded().agents["a"].waits_for) == ("human", "human")
    transition(world, "inbox")
    assert world.record().waits_for == ""


# --- stays ------------------------------------------------------------------------------------------------------------


def test_agent_moves_to_after_max_stay(world: World) -> None:
    """The engine records the reason, and sets the deadline of the next stay."""
    transition(world, "work")
    assert world.deadlines == {"stay:a": NOW + 60}
    world.pass_time(59)
    assert world.agent().state == "work"
    world.pass_time(1)
    (change,) = world.facts_of("state_changed")[-1:]
    assert (change["new_state"], change["source"]) == ("rest", "max_stay")
    assert change["reason"] == "in work for longer than 1m"
    assert world.deadlines == {"stay:a": NOW + 90}
    assert [event["code"] for event in world.events("errors")] == ["stay_exceeded"]


def test_stay_without_after_max_stay_is_reported_once(world: World) -> None:
    transition(world, "rest")
    world.pass_time(31)
    assert (world.agent().state, world.deadlines, len(world.facts_of("stay_exceeded"))) == ("rest", {}, 1)
    assert world.decide(decide_state_repair).outcome == "unchanged"


def test_engine_tries_again_after_another_max_stay_if_the_next_state_is_full() -> None:
    world = make_world(DESK.replace("max_stay = 30", "max_agents = 1"))
    transition(world, "rest", "b")
    transition(world, "work")
    world.pass_time(60)
    assert (world.agent().state, world.facts_of("transition_refused")[-1]["code"]) == ("work", "state_full")
    assert world.deadlines == {"stay:a": NOW + 120}
    assert world.decide(decide_state_repair).outcome == "unchanged"
    transition(world, "inbox", "b")
    world.pass_time(60)
    assert world.agent().state == "rest"


@pytest.mark.parametrize(
    "leave",
    [
        lambda world: transition(world, "inbox"),
        lambda world: world.respond("register", type="stranger"),
        lambda world: world.request("forget", "f1"),
    ],
    ids=["transition", "registration as another type", "forget"],
)
def test_deadline_of_a_stay_is_cleared_when_the_agent_leaves_the_state(
    world: World, leave: Callable[[World], Decision]
) -> None:
    transition(world, "work")
    assert set(world.deadlines) == {"stay:a"}
    leave(world)
    assert world.deadlines == {}


def test_lost_deadline_of_a_stay_is_restored_from_the_record(world: World) -> None:
    transition(world, "work")
    world.deadlines.clear()
    world.fleet = world.reloaded()
    assert world.decide(decide_state_repair).outcome == "applied"
    assert world.deadlines == {"stay:a": NOW + 60}
    assert world.decide(decide_state_repair).outcome == "unchanged"


@pytest.mark.parametrize(("limit_s", "waited_s", "state"), [(30, 10, "work"), (10, 40, "rest"), (600, 40, "work")])
def test_changed_max_stay_applies_to_current_stays(world: World, limit_s: int, waited_s: int, state: str) -> None:
    transition(world, "work")
    world.now += waited_s
    world.policy = make_world(DESK.replace("max_stay = 60", f"max_stay = {limit_s}")).policy
    assert world.decide(decide_state_repair).outcome == "applied"
    assert world.deadlines == {"stay:a": NOW + limit_s}
    world.pass_time(0)
    assert world.agent().state == state
    assert world.decide(decide_state_repair).outcome == "unchanged"


def test_deadline_before_the_end_of_a_stay_is_moved(world: World) -> None:
    """A reload of the machines may have extended the stay."""
    transition(world, "work")
    world.deadlines["stay:a"] = NOW + 10
    world.pass_time(10)
    assert (world.agent().state, world.deadlines) == ("work", {"stay:a": NOW + 60})


def test_agent_in_a_state_that_no_longer_exists_moves_to_on_unknown(world: World) -> None:
    transition(world, "rest")
    renamed = DESK.replace('"rest"', '"nap"').replace("[states.rest]", "[states.nap]")
    world.policy = make_world(renamed).policy
    assert world.decide(decide_state_repair).outcome == "applied"
    (change,) = world.facts_of("state_changed")[-1:]
    assert (change["old_state"], change["new_state"], change["source"]) == ("rest", "inbox", "machine")
    assert [event["code"] for event in world.events("errors")] == ["state_unknown"]


# --- property ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["declare", "send", "answer", "lose", "return", "wait"]),
            st.sampled_from("abc"),
            st.sampled_from(["inbox", "work", "rest", "talk", "nowhere"]),
            st.sampled_from([0.0, 1.0, 5.0, 31.0, 61.0, 101.0]),
            st.sampled_from([{}, {"branch": "main"}]),
        ),
        max_size=40,
    )
)
def test_every_agent_is_always_in_a_state_that_its_machine_allows(
    steps: list[tuple[str, str, str, float, dict[str, str]]],
) -> None:
    """Each change is an allowed transition, each refusal has a true reason, `max_agents` holds, and the next leader
    loads the same fleet.
    """
    world = make_world()
    machine = world.policy.machines.for_type("clerk")
    for number, (step, agent_id, target, seconds, context) in enumerate(steps):
        fact_count = len(world.facts)
        if step in {"declare", "answer"}:
            command_id = f"c{number - 1}" if step == "answer" and f"c{number - 1}" in world.command_records else None
            world.respond("state_transition", agent_id, target=target, context=context, command_id=command_id)
        elif step == "send" and target != "nowhere":
            world.send(f"c{number}", agent_id, kind="state_transition", target=target)
        elif step == "lose":
            lose(world, agent_id)
        elif step == "return":
            world.decide(decide_returned, agent_id)
        else:
            world.pass_time(seconds)
        for fact in world.facts[fact_count:]:
            if fact.event == "state_changed" and fact.source in {"agent", "max_stay"}:
                assert machine.check(str(fact.old_state), str(fact.new_state)) is None
            if fact.event == "transition_refused":
                check_reason(machine, str(fact.old_state), str(fact.new_state), str(fact.code))
        states = [each.state for each in world.fleet.agents.values()]
        assert set(states) <= set(machine.states)
        assert states.count("work") <= 2
    assert {each: world.record(each) for each in world.fleet.agents} == world.fleet.agents
    loaded = world.reloaded()
    assert {a: (x.state, x.cooldowns, x.stay_until) for a, x in loaded.agents.items()} == {
        a: (x.state, x.cooldowns, x.stay_until) for a, x in world.fleet.agents.items()
    }
    assert loaded.occupants == world.fleet.occupants
    assert loaded.liveness == world.fleet.liveness
    assert loaded.absent == world.fleet.absent


def check_reason(machine: Machine, current: str, target: str, code: str) -> None:
    """Check that a refusal follows from `to` alone, or from a condition of the transition."""
    refusal = machine.check(current, target)
    if refusal is not None:
        assert code == refusal.code
        return
    conditions = machine.state(current).transitions.get(target)
    reasons = {
        "wrong_actor": conditions is not None and "agent" not in conditions.by,
        "context_missing": conditions is not None and bool(conditions.requires),
        "too_soon": machine.state(current).min_stay > 0,
        "cooling_down": machine.state(target).cooldown > 0,
        "state_full": machine.state(target).max_agents > 0,
    }
    assert reasons[code]
    assert machine.check(current, target, TransitionCase("operator", context={"branch": "x"})) is None
