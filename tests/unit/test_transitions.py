"""State transitions: allowed, refused, and declared by a response."""

import pytest

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
    assert (scribe.records["a"]["reason"], scribe.records["a"]["context"]) == ("a chapter", '{"page":7}')
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
