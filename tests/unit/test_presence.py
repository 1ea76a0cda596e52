"""The laws of what nobody says: a heartbeat seen, missed, seen again; what agents write themselves; a deadline."""

import pytest

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentSnapshot, Liveness
from aism_engine.domain.agents.presence import (
    decide_expired_agent,
    decide_first_heartbeat,
    decide_heartbeat_removed,
    decide_lost,
    decide_returned,
    decide_snapshot,
)
from aism_engine.domain.commands.deadlines import decide_deadline
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from tests.support.model import NOW, World


def beat(world: World, agent_id: str = "a", score: float = 1.0) -> Decision:
    """A heartbeat is seen of an agent that is not watched yet."""
    seen = world.snapshots.get(agent_id, AgentSnapshot())
    world.snapshots[agent_id] = AgentSnapshot(seen.type, seen.labels, seen.state, score)
    draft = world.draft()
    return world.commit(draft, decide_first_heartbeat(draft, world.policy, agent_id, {agent_id: score}))


def lose(world: World, agent_id: str = "a", score: float = 1.0) -> Decision:
    draft = world.draft()
    return world.commit(draft, decide_lost(draft, world.policy, agent_id, score, 45.0))


def mark_returned(world: World, agent_id: str = "a") -> Decision:
    draft = world.draft()
    return world.commit(draft, decide_returned(draft, world.policy, agent_id))


def look(world: World, agent_id: str = "a", looked_at: float = NOW + 60) -> Decision:
    draft = world.draft()
    return world.commit(draft, decide_snapshot(draft, world.policy, agent_id, looked_at))


@pytest.fixture
def world() -> World:
    """A registered agent `a` that beats, in deep work."""
    world = World()
    world.respond("register", type="scribe")
    world.respond("state_transition", target="inbox")
    world.respond("state_transition", target="deep_work")
    beat(world)
    world.facts.clear()
    world.published.clear()
    return world


# Met


def test_one_whose_heartbeat_was_removed_is_watched_no_more_until_it_beats_again(world: World) -> None:
    """It cannot be lost by what is not there, and it is not called fresh for ever."""
    for outcome in ("applied", "unchanged"):
        draft = world.draft()
        assert world.commit(draft, decide_heartbeat_removed(draft, world.policy, "a")).outcome == outcome
        assert (world.agent().liveness, world.records["a"]["liveness"]) == (Liveness.UNKNOWN, "unknown")
    beat(world, score=2.0)
    assert world.agent().liveness is Liveness.FRESH


def test_an_agent_known_by_nothing_but_a_heartbeat_is_taken_in() -> None:
    """It is fresh, and watched from now on."""
    world = World()
    assert beat(world).outcome == "applied"
    assert (world.agent().state, world.agent().liveness) == ("unknown", Liveness.FRESH)
    assert world.records["a"]["liveness"] == "fresh"
    assert [fact["event"] for fact in world.facts_of("agent_first_seen")] == ["agent_first_seen"]


def test_the_first_beat_of_one_that_has_spoken_makes_it_watched() -> None:
    """Before, it was unknown, and so could not be lost."""
    world = World()
    world.respond("register", type="scribe")
    assert world.agent().liveness == Liveness.UNKNOWN
    assert (beat(world).outcome, world.agent().liveness, world.records["a"]["liveness"]) == (
        "applied",
        Liveness.FRESH,
        "fresh",
    )
    assert (beat(world).outcome, world.facts_of("agent_first_seen")[1:]) == ("unchanged", [])


@pytest.mark.parametrize("rules", [{"auto_register": False}, {"max_agents": 0}])
def test_a_heartbeat_opens_no_door_that_is_closed(rules: dict[str, int]) -> None:
    """Not past max_agents, and not without auto_register."""
    world = World(**rules)
    assert (beat(world).outcome, world.fleet.agents, world.facts) == ("unchanged", {}, [])


# Lost, and back


def test_an_agent_that_is_lost_goes_where_its_machine_says(world: World) -> None:
    """Where it was, and the heartbeat it was lost with, are part of its record."""
    world.now += 45
    decision = lose(world)
    assert fx.ExpectScore("a", 1.0) in decision.effects
    agent = world.agent()
    assert (agent.liveness, agent.state, agent.lost_from) == (Liveness.LOST, "offline", "deep_work")
    assert (agent.lost_score, agent.lost_at) == (1.0, NOW + 45)
    record = world.records["a"]
    assert (record["liveness"], record["lost_from"], record["lost_score"]) == ("lost", "deep_work", "1.0")
    assert [fact["event"] for fact in world.facts_of("agent_lost", "state_changed")] == ["agent_lost", "state_changed"]
    assert [event["code"] for event in world.events("errors")] == ["agent_lost"]
    assert [(e["old_state"], e["new_state"]) for e in world.events("state_changes")] == [("deep_work", "offline")]


def test_nobody_is_lost_twice_nor_after_a_goodbye(world: World) -> None:
    """Lost, gone in order, or never met: there is nothing to lose."""
    lose(world)
    assert (lose(world).effects, lose(world, "nobody").effects) == ([], [])
    world.respond("goodbye")
    assert lose(world).effects == []


def test_the_commands_of_one_that_is_lost_wait_for_it(world: World) -> None:
    """Lost is reversible: its queue is as it was."""
    world.send("c1")
    lose(world)
    assert (world.status("c1"), len(world.lists["a"])) == ("queued", 1)


@pytest.mark.parametrize("how", ["beats", "speaks"])
def test_one_that_returns_is_where_it_was(world: World, how: str) -> None:
    """Lost by mistake, it goes on where it stopped."""
    lose(world)
    world.facts.clear()
    if how == "beats":
        mark_returned(world)
    else:
        world.respond("heartbeat")
    agent = world.agent()
    assert (agent.state, agent.liveness, agent.lost_from) == ("deep_work", Liveness.FRESH, None)
    assert (agent.lost_score, agent.lost_at, world.records["a"]["lost_at"]) == (None, 0.0, "")
    assert [fact["event"] for fact in world.facts_of("agent_returned", "state_changed")] == [
        "agent_returned",
        "state_changed",
    ]
    assert mark_returned(world).outcome == "unchanged"


def test_what_one_that_returns_says_counts_from_where_it_was(world: World) -> None:
    """It is back first, and judged then: from deep_work, not from offline."""
    lose(world)
    assert world.respond("state_transition", target="distill").outcome == "applied"
    assert world.agent().state == "distill"


def test_a_machine_may_send_one_that_returns_elsewhere() -> None:
    """`on_return` names the state; without `on_lost` a loss moves nobody."""
    world = World()
    world.respond("register", type="clerk")
    world.respond("state_transition", target="busy")
    beat(world)
    lose(world)
    assert (world.agent().state, world.records["a"]["liveness"]) == ("busy", "lost")
    mark_returned(world)
    assert (world.agent().state, world.agent().liveness) == ("waiting", Liveness.FRESH)


def test_one_that_is_lost_can_still_say_goodbye(world: World) -> None:
    """Then it has left in order, and does not come back with its next heartbeat."""
    lose(world)
    world.respond("goodbye")
    assert (world.agent().liveness, world.agent().state, world.agent().lost_from) == (Liveness.LEFT, "offline", None)
    assert mark_returned(world).outcome == "unchanged"


def test_one_that_is_away_for_long_is_forgotten(world: World) -> None:
    """Lost, or gone in order, with a line in the audit; never one that is there."""
    beat(world)
    assert oblivion(world).outcome == "unchanged"
    lose(world)
    assert (oblivion(world).outcome, world.fleet.agents) == ("applied", {})
    world.respond("goodbye")
    assert (oblivion(world).outcome, world.fleet.agents) == ("applied", {})
    assert len(world.facts_of("agent_forgotten")) == 2


def oblivion(world: World) -> Decision:
    draft = world.draft()
    return world.commit(draft, decide_expired_agent(draft, world.policy, "a"))


# What agents write themselves


def test_metadata_is_taken_over_where_it_has_changed() -> None:
    """Of one that never registered both type and labels; that is no news twice."""
    world = World()
    world.respond("heartbeat")
    world.snapshots["a"] = AgentSnapshot(type="architect", labels={"team": "x"}, state="unknown")
    assert look(world).outcome == "applied"
    assert (world.agent().type, world.agent().labels) == ("architect", {"team": "x"})
    assert (world.records["a"]["type"], world.records["a"]["labels"]) == ("architect", '{"team":"x"}')
    assert look(world).effects == []
    assert world.facts_of("metadata_changed") == [
        {"event": "metadata_changed", "agent_id": "a", "type": "architect", "details": {"labels": {"team": "x"}}}
    ]


def test_who_registered_stays_what_it_registered_as(world: World) -> None:
    """Its labels it may change; its machine hangs on its type."""
    world.snapshots["a"] = AgentSnapshot(type="emperor", labels={"team": "y"}, state="deep_work")
    look(world)
    assert (world.agent().type, world.agent().labels) == ("scribe", {"team": "y"})


def test_a_state_key_that_an_agent_has_set_is_a_declaration(world: World) -> None:
    """Allowed, it holds; not allowed, it is refused and the key is put back. It is noticed, and never a conflict."""
    world.snapshots["a"] = AgentSnapshot(state="distill")
    look(world)
    assert (world.agent().state, world.agent().declared) == ("distill", "distill")
    assert [fact["source"] for fact in world.facts_of("state_changed")] == ["agent"]
    world.states["a"] = "bootstrap"
    world.snapshots["a"] = AgentSnapshot(state="bootstrap")
    look(world)
    assert (world.agent().state, world.agent().declared, world.states["a"]) == ("distill", "bootstrap", "distill")
    assert [fact["code"] for fact in world.facts_of("transition_refused")] == ["not_allowed"]


def test_a_state_that_the_engine_has_changed_since_the_look_proves_nothing(world: World) -> None:
    """What was read may be older than what we wrote."""
    world.now = NOW + 60
    world.respond("state_transition", target="inbox")
    world.snapshots["a"] = AgentSnapshot(state="deep_work")
    assert look(world, looked_at=NOW + 60).effects == []


def test_a_look_at_a_stranger_or_without_a_finding_is_nothing(world: World) -> None:
    """There is nobody to compare with."""
    world.snapshots.clear()
    assert (look(world).effects, look(world, "nobody").effects) == ([], [])


# Deadlines


def test_a_command_that_is_not_done_in_time_expires(world: World) -> None:
    """It ends on record, its copy is taken out of the agent's list, and an event says so."""
    world.send("c1")
    world.send("c2")
    world.pop()
    world.respond("ack", command_id="c1")
    (first, _) = world.pass_time(3600)
    assert fx.ExpectDeadline("command:c1", NOW + 3600) in first.effects
    record = world.command_records["c1"]
    assert (record["status"], record["code"], record["ended_at"]) == ("expired", "expired", "2027-01-15T09:00:00.000Z")
    assert (world.lists["a"], world.deadlines, world.agent().open_commands) == ([], {}, [])
    assert [(event["code"], event["command_id"]) for event in world.events("errors")] == [
        ("expired", "c1"),
        ("expired", "c2"),
    ]
    assert [fact["cause"] for fact in world.facts_of("command_expired")] == ["command:c1", "command:c2"]


def test_nothing_expires_before_its_time(world: World) -> None:
    """Not a moment before."""
    world.send("c1")
    assert world.pass_time(3599.999) == []
    assert world.status("c1") == "queued"


def test_a_deadline_of_what_has_ended_or_never_was_is_removed(world: World) -> None:
    """And nothing else is done: who ended it has recorded that."""
    world.send("c1")
    world.respond("result", command_id="c1")
    before = len(world.facts)
    for member in ("command:c1", "command:c9", "dwell:a", "", "nonsense"):
        world.deadlines[member] = NOW
        decision = world.fall_due(member, NOW)
        assert decision.outcome == "late"
    assert (world.deadlines, world.status("c1"), len(world.facts)) == ({}, "succeeded", before)


def test_an_expiry_is_decided_from_the_fleet_and_not_from_the_record(world: World) -> None:
    """A record that was read before the result was committed says open; the fleet knows better."""
    world.send("c1")
    stale = world.draft().lookups
    world.respond("result", command_id="c1")
    decision = decide_deadline(Draft(world.fleet, world.now, stale), world.policy, "command:c1", NOW + 3600)
    assert decision.outcome == "late"
