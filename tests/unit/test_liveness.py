"""Decisions on liveness: first heartbeats, losses, goodbyes, returns and expiry."""

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
from aism_engine.domain.decision import Decision
from tests.support.model import NOW, World


def first_heartbeat(world: World, score: float = 1.0) -> Decision:
    """Decide on the first heartbeat of agent `a`."""
    seen = world.snapshots.get("a", AgentSnapshot())
    world.snapshots["a"] = AgentSnapshot(seen.type, seen.labels, seen.state, score)
    return world.decide(decide_first_heartbeat, "a", {"a": score})


def lose(world: World, agent_id: str = "a") -> Decision:
    return world.decide(decide_lost, agent_id, 1.0, 45.0)


@pytest.fixture
def world() -> World:
    """A registered agent `a` with a heartbeat, in deep_work."""
    world = World()
    world.respond("register", type="scribe")
    world.respond("state_transition", target="inbox")
    world.respond("state_transition", target="deep_work")
    first_heartbeat(world)
    world.facts.clear()
    world.published.clear()
    return world


# --- heartbeats -------------------------------------------------------------------------------------------------------


def test_heartbeat_of_unknown_agent_adds_it_as_fresh() -> None:
    world = World()
    assert first_heartbeat(world).outcome == "applied"
    assert (world.agent().state, world.agent().liveness) == ("unknown", Liveness.FRESH)
    assert world.record().liveness == "fresh"
    assert len(world.facts_of("agent_first_seen")) == 1


def test_first_heartbeat_of_known_agent_makes_it_fresh() -> None:
    world = World()
    world.respond("register", type="scribe")
    assert world.agent().liveness is Liveness.UNKNOWN
    assert first_heartbeat(world).outcome == "applied"
    assert (world.agent().liveness, world.record().liveness) == (Liveness.FRESH, "fresh")
    assert first_heartbeat(world).outcome == "unchanged"
    assert len(world.facts_of("agent_first_seen")) == 1


@pytest.mark.parametrize("settings", [{"auto_register": False}, {"max_agents": 0}])
def test_heartbeat_adds_no_agent_that_the_settings_exclude(settings: dict[str, int]) -> None:
    world = World(**settings)
    assert (first_heartbeat(world).outcome, world.fleet.agents, world.facts) == ("unchanged", {}, [])


def test_agent_without_heartbeat_is_unknown_until_the_next_one(world: World) -> None:
    """Somebody has removed the heartbeat, so the silence of the agent cannot be measured."""
    for outcome in ("applied", "unchanged"):
        assert world.decide(decide_heartbeat_removed).outcome == outcome
        assert (world.agent().liveness, world.record().liveness) == (Liveness.UNKNOWN, "unknown")
    first_heartbeat(world, score=2.0)
    assert world.agent().liveness is Liveness.FRESH


# --- losses -----------------------------------------------------------------------------------------------------------


def test_lost_agent_moves_to_on_lost(world: World) -> None:
    """Its record keeps the state before the loss and the score of the last heartbeat."""
    world.now += 45
    assert fx.ExpectScore("a", 1.0) in lose(world).effects
    agent, record = world.agent(), world.record()
    assert (agent.liveness, agent.state, agent.lost_from) == (Liveness.LOST, "offline", "deep_work")
    assert (agent.lost_score, agent.lost_at) == ("1.0", NOW + 45)
    assert (record.liveness, record.lost_from, record.lost_score) == (Liveness.LOST, "deep_work", "1.0")
    assert [fact["event"] for fact in world.facts_of("agent_lost", "state_changed")] == ["agent_lost", "state_changed"]
    assert [event["code"] for event in world.events("errors")] == ["agent_lost"]
    assert [(e["old_state"], e["new_state"]) for e in world.events("state_changes")] == [("deep_work", "offline")]


def test_absent_or_unknown_agent_is_not_lost(world: World) -> None:
    lose(world)
    assert (lose(world).effects, lose(world, "nobody").effects) == ([], [])
    world.respond("goodbye")
    assert lose(world).effects == []


def test_commands_of_lost_agent_stay_in_its_list(world: World) -> None:
    """The agent may return."""
    world.send("c1")
    lose(world)
    assert (world.status("c1"), len(world.lists["a"])) == ("queued", 1)


def test_lost_agent_may_say_goodbye(world: World) -> None:
    """After that, the heartbeat that it was lost with does not bring it back."""
    lose(world)
    world.respond("goodbye")
    assert (world.agent().liveness, world.agent().state, world.agent().lost_from) == (Liveness.LEFT, "offline", None)
    assert world.decide(decide_returned).outcome == "unchanged"


def test_absent_agent_is_forgotten_after_its_ttl(world: World) -> None:
    assert world.decide(decide_expired_agent).outcome == "unchanged"
    lose(world)
    assert (world.decide(decide_expired_agent).outcome, world.fleet.agents) == ("applied", {})
    world.respond("goodbye")
    assert (world.decide(decide_expired_agent).outcome, world.fleet.agents) == ("applied", {})
    assert len(world.facts_of("agent_forgotten")) == 2


# --- returns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign_of_life", ["heartbeat score", "response"])
def test_returned_agent_is_in_the_state_before_its_loss(world: World, sign_of_life: str) -> None:
    lose(world)
    world.facts.clear()
    if sign_of_life == "response":
        world.respond("heartbeat")
    else:
        world.decide(decide_returned)
    agent = world.agent()
    assert (agent.state, agent.liveness, agent.lost_from) == ("deep_work", Liveness.FRESH, None)
    assert (agent.lost_score, agent.lost_at, world.record().lost_at) == (None, 0.0, 0.0)
    facts = [fact["event"] for fact in world.facts_of("agent_returned", "state_changed")]
    assert facts == ["agent_returned", "state_changed"]
    assert world.decide(decide_returned).outcome == "unchanged"


def test_transition_of_lost_agent_starts_in_the_state_before_its_loss(world: World) -> None:
    """`on_lost` is offline, which does not lead to distill."""
    lose(world)
    assert world.respond("state_transition", target="distill").outcome == "applied"
    assert world.agent().state == "distill"


def test_machine_may_name_the_state_of_returned_agents_and_none_for_lost_ones() -> None:
    world = World()
    world.respond("register", type="clerk")
    world.respond("state_transition", target="busy")
    first_heartbeat(world)
    lose(world)
    assert (world.agent().state, world.record().liveness) == ("busy", "lost")
    world.decide(decide_returned)
    assert (world.agent().state, world.agent().liveness) == ("waiting", Liveness.FRESH)
