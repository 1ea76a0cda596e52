"""Rules that a state imposes, as decisions over a fleet: stays, cooldowns, max_agents, contexts and actors."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.liveness import decide_lost, decide_returned
from aism_engine.domain.agents.transitions import decide_state_repair
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
    """Every expected score matches: this file tests what follows from a loss."""
    write = World._write

    def _write(self: World, effect: Any) -> None:  # noqa: ANN401
        if type(effect).__name__ != "ExpectScore":
            write(self, effect)

    monkeypatch.setattr(World, "_write", _write)


# --- conditions of a transition ---------------------------------------------------------------------------------------


def test_a_transition_without_its_required_context_is_refused(desk: World) -> None:
    """The refusal names the missing keys and their types. A complete context is kept."""
    go(desk, "work", id="m1", reply=True, context={"tokens": 1})
    assert desk.reply("m1", "a")["error"]["details"] == {
        "current": "inbox",
        "requested": "work",
        "allowed": ["work", "rest"],  # to talk is for operators
        "missing": {"branch": "string"},
    }
    assert go(desk, "work").outcome == "applied"
    assert (desk.agent().state, desk.records["a"]["context"]) == ("work", '{"branch":"main"}')


def test_reason_and_context_belong_to_the_last_change_only(desk: World) -> None:
    """Also after a takeover."""
    go(desk, "work", reason="a chapter")
    assert (desk.records["a"]["reason"], desk.records["a"]["context"]) == ("a chapter", '{"branch":"main"}')
    desk.fleet = desk.reloaded()
    go(desk, "inbox", context={})
    assert (desk.records["a"]["reason"], desk.records["a"]["context"]) == ("", "")


def test_a_large_context_is_kept_as_a_digest(desk: World) -> None:
    """So audit and record stay small."""
    go(desk, "work", context={"branch": "x" * 10_000})
    (fact,) = desk.facts_of("state_changed")[-1:]
    assert (set(fact["details"]), desk.records["a"]["context"]) == ({"context_digest", "context_size"}, "")


def test_a_transition_of_operators_needs_a_command(desk: World) -> None:
    """The agent's own declaration is refused; as the answer to a command it is allowed."""
    assert go(desk, "talk").code == "wrong_actor"
    desk.send("c1", kind="state_transition", target="talk")
    desk.poll_list()
    assert go(desk, "talk", command_id="c1").outcome == "applied"
    assert (desk.agent().state, desk.status("c1")) == ("talk", "succeeded")


def test_the_result_of_a_command_is_the_context_of_its_transition(desk: World) -> None:
    """A result without the required keys fails the command."""
    for number, (payload, status) in enumerate([({}, "failed"), ({"branch": "main"}, "succeeded")]):
        desk.send(f"c{number}", kind="state_transition", target="work")
        desk.respond("result", command_id=f"c{number}", payload=payload)
        assert desk.status(f"c{number}") == status
    assert desk.command_records["c0"]["code"] == "context_missing"


def test_min_stay_and_cooldown_refuse_early_transitions(desk: World) -> None:
    """The refusal says when to try again, also after a takeover."""
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


# --- max_agents -------------------------------------------------------------------------------------------------------


def test_max_agents_limits_the_agents_in_a_state(desk: World) -> None:
    """An agent that leaves the state or is lost makes room, also after a takeover."""
    assert [go(desk, "work", agent_id).code for agent_id in "abc"] == ["", "", "state_full"]
    desk.fleet = desk.reloaded()
    assert go(desk, "work", "c").code == "state_full"
    lose(desk, "a")
    assert go(desk, "work", "c").code == ""
    go(desk, "inbox", "b")
    assert go(desk, "work", "b").code == ""


def test_max_agents_holds_within_a_batch(desk: World) -> None:
    """Three requests in one commit are decided like three in a row."""
    draft = desk.draft()
    codes = [
        desk.decide_on(draft, "state_transition", agent_id, target="work", context={"branch": "m"}).code
        for agent_id in "abc"
    ]
    assert codes == ["", "", "state_full"]


def test_a_returning_agent_enters_its_previous_state_only_if_there_is_room(desk: World) -> None:
    """Otherwise it stays in the state after the loss."""
    for agent_id in "ab":
        go(desk, "work", agent_id)
    lose(desk, "a")
    lose(desk, "b")
    go(desk, "work", "c")
    mark_returned(desk, "a")
    mark_returned(desk, "b")
    assert [desk.agent(agent_id).state for agent_id in "abc"] == ["work", "inbox", "work"]


def test_max_agents_counts_agents_of_the_same_machine_only() -> None:
    """Two machines may have states of one name."""
    shared = OTHER.replace("elsewhere", "work")
    made = world(other=shared)
    for number in range(3):
        made.respond("register", f"s{number}", type="stranger")
    assert [made.agent(f"s{number}").state for number in range(3)] == ["work"] * 3
    assert [go(made, "work", agent_id).code for agent_id in "abc"] == ["", "", "state_full"]


def test_waits_for_is_part_of_the_record(desk: World) -> None:
    """From entering the state until leaving it, and after a reload as the new machine says."""
    desk.send("c1", kind="state_transition", target="talk")
    go(desk, "talk", command_id="c1")
    assert desk.records["a"]["waits_for"] == ""
    desk.policy = world(DESK + 'waits_for = "human"\n').policy
    assert set_right(desk).outcome == "applied"
    assert (desk.records["a"]["waits_for"], desk.reloaded().agents["a"].waits_for) == ("human", "human")
    go(desk, "inbox")
    assert desk.records["a"]["waits_for"] == ""


# --- stays ------------------------------------------------------------------------------------------------------------


def test_a_stay_that_is_over_ends_in_after_max_stay(desk: World) -> None:
    """The engine moves the agent with a reason, and sets the deadline of the next stay."""
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


def test_a_stay_without_after_max_stay_is_reported_once(desk: World) -> None:
    """Its deadline is not set again."""
    go(desk, "rest")
    desk.pass_time(31)
    assert (desk.agent().state, desk.deadlines, len(desk.facts_of("stay_exceeded"))) == ("rest", {}, 1)
    assert set_right(desk).outcome == "unchanged"


def test_the_engine_tries_again_if_after_max_stay_is_full() -> None:
    """The refusal is recorded, and the agent stays in its state."""
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


def test_the_deadline_of_a_stay_is_cleared_when_the_agent_leaves_the_state(desk: World) -> None:
    """By a declaration, a registration as another type, or a forget."""
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


def test_a_lost_deadline_of_a_stay_is_set_again(desk: World) -> None:
    """The record is authoritative, the deadline is its index."""
    go(desk, "work")
    desk.deadlines.clear()
    desk.fleet = desk.reloaded()
    assert set_right(desk).outcome == "applied"
    assert desk.deadlines == {"stay:a": NOW + 60}
    assert set_right(desk).outcome == "unchanged"


@pytest.mark.parametrize(("limit_s", "waited_s", "state"), [(30, 10, "work"), (10, 40, "rest"), (600, 40, "work")])
def test_a_changed_max_stay_applies_to_current_stays(desk: World, limit_s: int, waited_s: int, state: str) -> None:
    """A stay that is over by the new limit ends after one more max_stay at the latest."""
    go(desk, "work")
    desk.now += waited_s
    desk.policy = world(DESK.replace("max_stay = 60", f"max_stay = {limit_s}")).policy
    assert set_right(desk).outcome == "applied"
    assert desk.deadlines == {"stay:a": NOW + limit_s}
    desk.pass_time(0)
    assert desk.agent().state == state
    assert set_right(desk).outcome == "unchanged"


def test_a_deadline_of_a_stay_that_comes_too_early_is_moved(desk: World) -> None:
    """A reload may have extended the stay."""
    go(desk, "work")
    desk.deadlines["stay:a"] = NOW + 10
    desk.pass_time(10)
    assert (desk.agent().state, desk.deadlines) == ("work", {"stay:a": NOW + 60})


def test_an_agent_in_a_state_that_no_longer_exists_is_moved_to_on_unknown(desk: World) -> None:
    """An error event reports it, and the source of the change is the machine."""
    go(desk, "talk", command_id=None)
    go(desk, "rest")
    shrunk = DESK.replace('"rest"]\n[states.inbox.transitions.work]', '"nap"]\n[states.inbox.transitions.work]')
    shrunk = shrunk.replace('"rest"', '"nap"').replace("[states.rest]", "[states.nap]")
    desk.policy = world(shrunk).policy
    assert set_right(desk).outcome == "applied"
    (change,) = desk.facts_of("state_changed")[-1:]
    assert (change["old_state"], change["new_state"], change["source"]) == ("rest", "inbox", "machine")
    assert [event["code"] for event in desk.events("errors")][-1:] == ["state_unknown"]


# --- property ---------------------------------------------------------------------------------------------------------


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
def test_every_agent_is_always_in_a_state_that_its_machine_allows(
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
    assert {a: (x.state, x.cooldowns, x.stay_until) for a, x in loaded.agents.items()} == {
        a: (x.state, x.cooldowns, x.stay_until) for a, x in made.fleet.agents.items()
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
