"""State changes: allowed, refused, declared by a response, or written by the agent to its own key."""

from typing import Any

import pytest

from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.state_changes import decide_snapshot
from aism_engine.domain.decision import Decision
from tests.support.model import AT, NOW, World, registered_world


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def scribe() -> World:
    """A registered agent `a` in its inbox."""
    return registered_world()


def test_allowed_transition_is_recorded_and_published(scribe: World) -> None:
    """The declared and the actual state agree."""
    decision = scribe.respond("state_transition", id="m2", target="deep_work", context={"page": 7}, reason="a chapter")
    assert decision.outcome == "applied"
    agent = scribe.agent()
    assert (agent.state, agent.declared, agent.declared_at) == ("deep_work", "deep_work", NOW)
    expected = {"agent_id": "a", "old_state": "inbox", "new_state": "deep_work", "cause": "m2"}
    kept = {"reason": "a chapter", "details": {"context": {"page": 7}}}
    assert scribe.facts_of("state_changed") == [{"event": "state_changed", "source": "agent", **kept, **expected}]
    assert (scribe.record().reason, scribe.record().context) == ("a chapter", {"page": 7})
    assert scribe.events("state_changes") == [{**expected, "source": "engine", "timestamp": AT}]


def test_refused_transition_changes_only_the_declared_state(scribe: World) -> None:
    """The reply has the error shape of the protocol."""
    before = (scribe.agent().state, scribe.agent().since, scribe.states["a"])
    decision = scribe.respond("state_transition", id="m2", reply=True, target="bootstrap")
    assert (decision.outcome, decision.code) == ("refused", "not_allowed")
    assert (scribe.agent().state, scribe.agent().since, scribe.states["a"]) == before
    assert scribe.agent().declared == "bootstrap"
    assert scribe.events("state_changes") == []
    assert scribe.reply("m2", "a") == {
        "id": "m2",
        "timestamp": AT,
        "ok": False,
        "state": "inbox",
        "error": {
            "type": "transition_refused",
            "code": "not_allowed",
            "message": "inbox does not lead to bootstrap; it leads to: deep_work, distill, idle, logout, direct_io",
            "details": {
                "current": "inbox",
                "requested": "bootstrap",
                "allowed": ["deep_work", "distill", "idle", "logout", "direct_io"],
            },
            "suggestions": ["direct_io, then bootstrap"],
        },
    }
    assert [(event["code"], event["agent_id"]) for event in scribe.events("errors")] == [("not_allowed", "a")]
    assert [fact["event"] for fact in scribe.facts_of("transition_refused", "state_changed")] == ["transition_refused"]


def test_declaring_the_current_state_is_no_transition(scribe: World) -> None:
    """Nothing is published, and the time in the state goes on."""
    scribe.now += 10
    assert scribe.respond("state_transition", target="inbox").outcome == "unchanged"
    assert (scribe.agent().since, scribe.agent().declared_at) == (NOW, NOW + 10)
    assert scribe.events("state_changes") == []


def test_unregistered_agent_may_be_in_any_state(world: World) -> None:
    for target in ("thinking", "reviewing.the-7th_draft", "thinking"):
        assert world.respond("state_transition", target=target).outcome == "applied"
    assert [fact["new_state"] for fact in world.facts_of("state_changed")] == [
        "thinking",
        "reviewing.the-7th_draft",
        "thinking",
    ]


def test_state_change_is_recorded_when_events_are_off() -> None:
    world = World(publish_events=False)
    world.respond("register", type="scribe")
    assert (world.published, [fact["new_state"] for fact in world.facts_of("state_changed")]) == ([], ["bootstrap"])


# --- what agents write to their own keys ------------------------------------------------------------------------------


def read_snapshot(world: World, agent_id: str = "a", **written: Any) -> Decision:  # noqa: ANN401
    """Decide on what an agent wrote, as read a minute after the start."""
    if written:
        world.snapshots[agent_id] = AgentSnapshot(**written)
    return world.decide(decide_snapshot, agent_id, NOW + 60)


def test_metadata_of_unregistered_agent_is_applied(world: World) -> None:
    world.respond("heartbeat")
    assert read_snapshot(world, type="architect", labels={"team": "x"}, state="unknown").outcome == "applied"
    assert (world.agent().type, world.agent().labels) == ("architect", {"team": "x"})
    assert (world.record().type, world.record().labels) == ("architect", {"team": "x"})
    assert read_snapshot(world).effects == []
    assert world.facts_of("metadata_changed") == [
        {"event": "metadata_changed", "agent_id": "a", "type": "architect", "details": {"labels": {"team": "x"}}}
    ]


def test_registered_agent_keeps_its_type_and_may_change_its_labels(scribe: World) -> None:
    read_snapshot(scribe, type="emperor", labels={"team": "y"}, state="inbox")
    assert (scribe.agent().type, scribe.agent().labels) == ("scribe", {"team": "y"})


def test_allowed_state_that_an_agent_wrote_is_applied(scribe: World) -> None:
    read_snapshot(scribe, state="distill")
    assert (scribe.agent().state, scribe.agent().declared) == ("distill", "distill")
    assert [fact["source"] for fact in scribe.facts_of("state_changed")] == ["agent"]


def test_refused_state_that_an_agent_wrote_is_overwritten(scribe: World) -> None:
    scribe.states["a"] = "bootstrap"
    assert read_snapshot(scribe, state="bootstrap").outcome == "refused"
    assert (scribe.agent().state, scribe.agent().declared, scribe.states["a"]) == ("inbox", "bootstrap", "inbox")
    assert [fact["code"] for fact in scribe.facts_of("transition_refused")] == ["not_allowed"]


def test_snapshot_from_before_the_latest_change_is_ignored(scribe: World) -> None:
    """It may be older than what the engine wrote."""
    scribe.now = NOW + 60
    scribe.respond("state_transition", target="deep_work")
    assert read_snapshot(scribe, state="inbox").effects == []


def test_snapshot_of_unknown_agent_is_ignored(world: World) -> None:
    assert read_snapshot(world, "nobody", state="inbox").effects == []


def test_known_agent_without_snapshot_is_left_alone(scribe: World) -> None:
    assert read_snapshot(scribe).effects == []


def test_a_record_that_was_deleted_is_written_again_and_reported(scribe: World) -> None:
    """As the fleet in memory has it."""
    before = scribe.record()
    scribe.index.clear()
    scribe.records.clear()
    read_snapshot(scribe, type="scribe", state="inbox", is_recorded=False)
    assert (scribe.record(), scribe.index) == (before, {"a"})
    assert [fact["agent_id"] for fact in scribe.facts_of("agent_repaired")] == ["a"]
    assert [event["code"] for event in scribe.events("errors")] == ["record_missing"]


def test_metadata_of_a_registered_agent_that_was_deleted_is_written_again(scribe: World) -> None:
    """The labels are kept. What an agent removes itself, by a change of its metadata, is applied."""
    read_snapshot(scribe, type="scribe", labels={"team": "x"}, state="inbox")
    scribe.metadata.clear()
    read_snapshot(scribe, state="inbox")
    assert (scribe.agent().labels, scribe.metadata["a"]["labels"]) == ({"team": "x"}, '{"team":"x"}')
    read_snapshot(scribe, type="scribe", state="inbox")
    assert scribe.agent().labels == {}
