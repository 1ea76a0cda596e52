"""Admission of agents, register and goodbye."""

import json
from collections.abc import Callable

import pytest

from aism_engine.domain.agents.agent import AgentSnapshot, Liveness
from aism_engine.domain.agents.liveness import decide_first_heartbeat
from aism_engine.domain.protocol.codec import decode_request
from aism_engine.domain.requests import decide_request
from tests.support.model import AT, NOW, World, registered_world


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def scribe() -> World:
    """A registered agent `a` in its inbox."""
    return registered_world()


def test_unknown_agent_is_admitted_by_any_response(world: World) -> None:
    """Its type is `unknown`, its machine `open`, its state `unknown`."""
    assert world.respond("measurement", tokens=7).outcome == "applied"
    agent = world.agent()
    assert (agent.type, agent.registered, agent.state, agent.liveness) == ("unknown", False, "unknown", "unknown")
    assert (world.index, world.states) == ({"a"}, {"a": "unknown"})
    assert world.facts_of("agent_first_seen") == [
        {"event": "agent_first_seen", "agent_id": "a", "type": "unknown", "new_state": "unknown"}
    ]


def test_admitted_agent_keeps_its_own_metadata_and_state(world: World) -> None:
    world.snapshots["a"] = AgentSnapshot(type="architect", labels={"team": "x"}, state="thinking", score=17.0)
    world.respond("heartbeat")
    agent = world.agent()
    assert (agent.type, agent.labels, agent.state) == ("architect", {"team": "x"}, "thinking")
    assert (agent.liveness, agent.registered) == (Liveness.FRESH, False)
    assert world.states == {}


def test_without_auto_register_only_register_admits_an_agent() -> None:
    """Other responses of unknown agents are dead-lettered."""
    world = World(auto_register=False)
    decision = world.respond("heartbeat")
    assert (decision.outcome, decision.code) == ("dead_lettered", "unknown_agent")
    assert (world.index, [letter.agent_id for letter in world.dead_letters]) == (set(), ["a"])


WAYS: dict[str, Callable[[World], object]] = {
    "heartbeat": lambda world: world.decide(decide_first_heartbeat, "a", {"a": 1.0}),
    "response": lambda world: world.respond("state_transition", target="merging"),
    "channel": lambda world: world.respond("state_transition", target="merging", via="channel"),
    "request": lambda world: world.send(f"c{len(world.replies)}"),
}


@pytest.mark.parametrize("allowed", WAYS)
@pytest.mark.parametrize("way", WAYS)
def test_auto_register_may_name_the_ways_in(way: str, allowed: str) -> None:
    """An agent that has sent a heartbeat may come in by any way if that one is allowed."""
    world = World(auto_register=(allowed,))
    world.snapshots["a"] = AgentSnapshot(state="merging")
    WAYS[way](world)
    assert ("a" in world.fleet.agents) == (way == allowed)
    world.snapshots["a"] = AgentSnapshot(score=1.0)
    WAYS[way](world)
    assert ("a" in world.fleet.agents) == (allowed in {way, "heartbeat"})
    assert world.respond("register", type="scribe").outcome == "applied"


def test_published_measurement_of_an_unknown_agent_is_refused_and_not_dead_lettered() -> None:
    """A pushed measurement and a published state are dead-lettered."""
    world = World(auto_register=False)
    decision = world.respond("measurement", tokens=1, via="channel")
    assert (decision.outcome, decision.code) == ("refused", "unknown_agent")
    assert (world.index, world.dead_letters) == (set(), [])
    decisions = [
        world.respond("measurement", tokens=1),
        world.respond("state_transition", target="calm", via="channel"),
    ]
    assert [decision.outcome for decision in decisions] == ["dead_lettered"] * 2
    assert world.respond("register", type="scribe").outcome == "applied"
    assert world.respond("heartbeat").outcome == "applied"


def test_full_fleet_admits_no_agent() -> None:
    """Not even one that registers. Known agents are served, and the bound holds within a batch."""
    world = World(max_agents=1)
    world.respond("heartbeat", "a")
    for kind, fields in (("heartbeat", {}), ("register", {"type": "scribe"})):
        assert world.respond(kind, "b", **fields).code == "fleet_full"
    assert world.respond("register", "a", type="scribe").outcome == "applied"
    assert set(world.fleet.agents) == {"a"}

    world = World(max_agents=1)
    draft = world.draft()
    assert [world.decide_on(draft, "heartbeat", each).code for each in "abc"] == ["", "fleet_full", "fleet_full"]


def test_register_moves_the_agent_from_initial_to_on_register(world: World) -> None:
    """The event, the fact, the record and the state key agree."""
    world.respond("register", id="m1", type="architect", labels={"team": "x"}, capabilities=["ack"], codec="msgpack")
    agent = world.agent()
    assert (agent.type, agent.registered, agent.labels) == ("architect", True, {"team": "x"})
    assert (agent.capabilities, agent.codec, agent.state, agent.since) == (("ack",), "msgpack", "bootstrap", NOW)
    expected = {"agent_id": "a", "old_state": "offline", "new_state": "bootstrap", "cause": "m1"}
    assert world.events("state_changes") == [{**expected, "source": "engine", "timestamp": AT}]
    assert world.facts_of("state_changed") == [{"event": "state_changed", "source": "register", **expected}]
    assert (world.states["a"], world.record().state) == ("bootstrap", "bootstrap")
    assert world.metadata["a"] == {
        "type": "architect",
        "labels": '{"team":"x"}',
        "capabilities": '["ack"]',
        "codec": "msgpack",
        "registered_at": AT,
    }


@pytest.mark.parametrize("said_before", [False, True])
def test_register_without_on_register_leads_to_the_initial_state(world: World, *, said_before: bool) -> None:
    """Also for an agent in a state of another machine, which this one does not know."""
    if said_before:
        world.respond("state_transition", target="dreaming")
    world.respond("register", type="clerk")
    assert (world.agent().state, world.record().state, world.states["a"]) == ("waiting",) * 3
    changes = [(fact["old_state"], fact["new_state"]) for fact in world.facts_of("state_changed")]
    assert changes[-1:] == ([("dreaming", "waiting")] if said_before else [])


def test_register_again_starts_afresh(scribe: World) -> None:
    """A restarted agent is in no state that an earlier process declared."""
    scribe.respond("state_transition", target="deep_work")
    scribe.respond("register", type="architect")
    assert (scribe.agent().state, scribe.agent().type, scribe.agent().capabilities) == ("bootstrap", "architect", ())


def test_register_ends_an_absence(scribe: World) -> None:
    """A lost or left agent is present again, in the state of a new registration."""
    for away in (Liveness.LOST, Liveness.LEFT):
        agent = scribe.agent()
        agent.liveness, agent.lost_from, agent.lost_score, agent.state = away, "inbox", "5.0", "offline"
        scribe.respond("register", type="scribe")
        assert (scribe.agent().state, scribe.agent().lost_from, scribe.agent().lost_score) == ("bootstrap", None, None)
        assert scribe.agent().liveness not in {Liveness.LOST, Liveness.LEFT}


def test_goodbye_marks_the_agent_as_left(scribe: World) -> None:
    """Its commands wait for it."""
    scribe.send("c1")
    scribe.respond("goodbye", reason="night")
    assert (scribe.agent().state, scribe.agent().liveness) == ("offline", Liveness.LEFT)
    assert (scribe.status("c1"), scribe.record().liveness) == ("queued", "left")
    assert scribe.facts_of("agent_left") == [{"event": "agent_left", "agent_id": "a", "reason": "night"}]


def test_response_after_goodbye_brings_the_agent_back(scribe: World) -> None:
    """It stays in the state that it left to. A second goodbye changes nothing."""
    scribe.respond("goodbye")
    scribe.respond("goodbye")
    assert scribe.agent().liveness == Liveness.LEFT
    scribe.respond("heartbeat")
    assert (scribe.agent().state, scribe.agent().liveness) == ("offline", Liveness.UNKNOWN)
    assert len(scribe.facts_of("agent_returned")) == 1


def test_an_agent_that_is_forgotten_and_joins_again_in_one_batch_begins_anew(world: World) -> None:
    """Nothing of its earlier life is left in memory."""
    world.respond("register", id="m1", type="scribe", instance="one")
    world.respond("measurement", tokens=1)
    draft = world.draft()
    message = {"type": "forget", "id": "f", "payload": {"agent_id": "a"}}
    decisions = [decide_request(draft, world.policy, decode_request(json.dumps(message).encode()), b"")]
    decisions.append(world.decide_on(draft, "heartbeat"))
    for decision in decisions:
        for effect in decision.effects:
            world.write(effect)
    draft.apply()
    fleet = world.fleet
    assert (fleet.forgotten, fleet.has_seen("a", "m1"), fleet.agents["a"].type) == (1, False, "unknown")
    assert (fleet.activity.get("a"), fleet.measurements["a"]) == (None, {})
    assert fleet.last_message_at == {"a": world.now}
