"""Decisions on presence: first heartbeats, losses and returns, snapshots, expiry; and the ttl of commands."""

import pytest

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentSnapshot, Liveness
from aism_engine.domain.agents.liveness import (
    decide_first_heartbeat,
    decide_heartbeat_removed,
    decide_lost,
    decide_returned,
)
from aism_engine.domain.agents.membership import decide_expired_agent
from aism_engine.domain.agents.transitions import decide_snapshot
from aism_engine.domain.commands.deadlines import decide_deadline
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from tests.support.model import NOW, World


def beat(world: World, agent_id: str = "a", score: float = 1.0) -> Decision:
    """Decide on the first heartbeat of an agent."""
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
    """A registered agent `a` with a heartbeat, in deep_work."""
    world = World()
    world.respond("register", type="scribe")
    world.respond("state_transition", target="inbox")
    world.respond("state_transition", target="deep_work")
    beat(world)
    world.facts.clear()
    world.published.clear()
    return world


# --- first heartbeats -------------------------------------------------------------------------------------------------


def test_an_agent_whose_heartbeat_was_removed_is_not_watched_until_its_next_one(world: World) -> None:
    """Without a score the agent can be neither lost nor fresh."""
    for outcome in ("applied", "unchanged"):
        draft = world.draft()
        assert world.commit(draft, decide_heartbeat_removed(draft, world.policy, "a")).outcome == outcome
        assert (world.agent().liveness, world.records["a"]["liveness"]) == (Liveness.UNKNOWN, "unknown")
    beat(world, score=2.0)
    assert world.agent().liveness is Liveness.FRESH


def test_an_agent_that_is_known_only_by_its_heartbeat_is_added() -> None:
    """It is fresh, and watched from then on."""
    world = World()
    assert beat(world).outcome == "applied"
    assert (world.agent().state, world.agent().liveness) == ("unknown", Liveness.FRESH)
    assert world.records["a"]["liveness"] == "fresh"
    assert [fact["event"] for fact in world.facts_of("agent_first_seen")] == ["agent_first_seen"]


def test_the_first_heartbeat_of_a_known_agent_makes_it_watched() -> None:
    """Before, its liveness is unknown and it cannot be lost."""
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
def test_a_heartbeat_adds_no_agent_that_the_settings_exclude(rules: dict[str, int]) -> None:
    """Neither beyond max_agents, nor without auto_register."""
    world = World(**rules)
    assert (beat(world).outcome, world.fleet.agents, world.facts) == ("unchanged", {}, [])


# --- losses and returns -----------------------------------------------------------------------------------------------


def test_a_lost_agent_changes_to_on_lost(world: World) -> None:
    """Its record holds its previous state and the score of its last heartbeat."""
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


def test_no_agent_is_lost_twice_or_after_a_goodbye(world: World) -> None:
    lose(world)
    assert (lose(world).effects, lose(world, "nobody").effects) == ([], [])
    world.respond("goodbye")
    assert lose(world).effects == []


def test_the_commands_of_a_lost_agent_stay_in_its_queue(world: World) -> None:
    """A loss is reversible."""
    world.send("c1")
    lose(world)
    assert (world.status("c1"), len(world.lists["a"])) == ("queued", 1)


@pytest.mark.parametrize("how", ["beats", "speaks"])
def test_a_returning_agent_is_in_its_previous_state(world: World, how: str) -> None:
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


def test_the_response_of_a_returning_agent_is_applied_to_its_previous_state(world: World) -> None:
    """The agent returns first: the transition starts in deep_work, not in offline."""
    lose(world)
    assert world.respond("state_transition", target="distill").outcome == "applied"
    assert world.agent().state == "distill"


def test_on_return_may_name_another_state() -> None:
    """Without `on_lost` a loss changes no state."""
    world = World()
    world.respond("register", type="clerk")
    world.respond("state_transition", target="busy")
    beat(world)
    lose(world)
    assert (world.agent().state, world.records["a"]["liveness"]) == ("busy", "lost")
    mark_returned(world)
    assert (world.agent().state, world.agent().liveness) == ("waiting", Liveness.FRESH)


def test_a_lost_agent_can_say_goodbye(world: World) -> None:
    """Then it has left, and does not return with an unchanged heartbeat."""
    lose(world)
    world.respond("goodbye")
    assert (world.agent().liveness, world.agent().state, world.agent().lost_from) == (Liveness.LEFT, "offline", None)
    assert mark_returned(world).outcome == "unchanged"


def test_an_absent_agent_is_forgotten_after_its_ttl(world: World) -> None:
    """A lost one, or one that left, with a fact in the audit; never a fresh one."""
    beat(world)
    assert expire(world).outcome == "unchanged"
    lose(world)
    assert (expire(world).outcome, world.fleet.agents) == ("applied", {})
    world.respond("goodbye")
    assert (expire(world).outcome, world.fleet.agents) == ("applied", {})
    assert len(world.facts_of("agent_forgotten")) == 2


def expire(world: World) -> Decision:
    draft = world.draft()
    return world.commit(draft, decide_expired_agent(draft, world.policy, "a"))


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_changed_metadata_is_applied() -> None:
    """Type and labels of an agent that never registered. Unchanged metadata changes nothing."""
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


def test_a_registered_agent_keeps_its_type(world: World) -> None:
    """It may change its labels, but its type selects its machine."""
    world.snapshots["a"] = AgentSnapshot(type="emperor", labels={"team": "y"}, state="deep_work")
    look(world)
    assert (world.agent().type, world.agent().labels) == ("scribe", {"team": "y"})


def test_a_state_key_that_an_agent_wrote_is_a_declaration(world: World) -> None:
    """An allowed state is applied. A forbidden one is refused, and the key is overwritten."""
    world.snapshots["a"] = AgentSnapshot(state="distill")
    look(world)
    assert (world.agent().state, world.agent().declared) == ("distill", "distill")
    assert [fact["source"] for fact in world.facts_of("state_changed")] == ["agent"]
    world.states["a"] = "bootstrap"
    world.snapshots["a"] = AgentSnapshot(state="bootstrap")
    look(world)
    assert (world.agent().state, world.agent().declared, world.states["a"]) == ("distill", "bootstrap", "distill")
    assert [fact["code"] for fact in world.facts_of("transition_refused")] == ["not_allowed"]


def test_a_snapshot_from_before_the_latest_change_is_ignored(world: World) -> None:
    """It may be older than what the engine wrote."""
    world.now = NOW + 60
    world.respond("state_transition", target="inbox")
    world.snapshots["a"] = AgentSnapshot(state="deep_work")
    assert look(world, looked_at=NOW + 60).effects == []


def test_a_snapshot_of_an_unknown_agent_is_ignored(world: World) -> None:
    world.snapshots.clear()
    assert (look(world).effects, look(world, "nobody").effects) == ([], [])


# --- the ttl of commands ----------------------------------------------------------------------------------------------


def test_a_command_expires_after_its_ttl(world: World) -> None:
    """Its outcome is recorded, its copy is removed from the agent's list, and an event reports it."""
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


def test_no_command_expires_early(world: World) -> None:
    world.send("c1")
    assert world.pass_time(3599.999) == []
    assert world.status("c1") == "queued"


def test_the_deadline_of_an_ended_or_unknown_command_is_removed(world: World) -> None:
    """Nothing else changes."""
    world.send("c1")
    world.respond("result", command_id="c1")
    before = len(world.facts)
    for member in ("command:c1", "command:c9", "dwell:a", "", "nonsense"):
        world.deadlines[member] = NOW
        decision = world.decide_deadline(member, NOW)
        assert decision.outcome == "late"
    assert (world.deadlines, world.status("c1"), len(world.facts)) == ({}, "succeeded", before)


def test_an_expiry_is_decided_from_the_fleet_and_not_from_a_stale_record(world: World) -> None:
    """A record that was read before the result was committed still says open."""
    world.send("c1")
    stale = world.draft().lookups
    world.respond("result", command_id="c1")
    decision = decide_deadline(Draft(world.fleet, world.now, stale), world.policy, "command:c1", NOW + 3600)
    assert decision.outcome == "late"
