"""Responses: duplicates, messages, measurements, replies and dead letters."""

import json

import msgspec
import pytest

from aism_engine.domain import effects as fx
from aism_engine.domain.text import message_digest
from tests.support.model import AT, NOW, World, registered_world


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def scribe() -> World:
    """A registered agent `a` in its inbox."""
    return registered_world()


def test_duplicate_message_has_no_effect(scribe: World) -> None:
    """It still counts as a sign of life."""
    scribe.respond("state_transition", id="m2", target="deep_work")
    scribe.respond("state_transition", id="m3", target="inbox")
    scribe.now += 5
    decision = scribe.respond("state_transition", id="m2", target="deep_work")
    assert (decision.outcome, decision.effects) == ("duplicate", [])
    assert (scribe.agent().state, scribe.fleet.last_message_at["a"]) == ("inbox", NOW + 5)


def test_duplicate_is_recognised_within_one_batch(world: World) -> None:
    draft = world.draft()
    outcomes = [world.decide_on(draft, "measurement", id=each, tokens=1).outcome for each in ("m1", "m1", "m2", "m1")]
    assert outcomes == ["applied", "duplicate", "applied", "duplicate"]


def test_message_ids_are_per_agent(world: World) -> None:
    """A message without an id is never a duplicate."""
    assert [world.respond("measurement", each, id="m1", tokens=1).outcome for each in "ab"] == ["applied", "applied"]
    assert [world.respond("measurement", tokens=1).outcome for _ in range(2)] == ["applied", "applied"]


def test_number_of_remembered_message_ids_is_bounded(world: World) -> None:
    """The oldest id is forgotten first."""
    for number in range(65):
        world.respond("measurement", id=f"m{number}", tokens=1)
    assert [world.respond("measurement", id=f"m{number}", tokens=1).outcome for number in (64, 1)] == ["duplicate"] * 2
    assert world.respond("measurement", id="m0", tokens=1).outcome == "applied"


def test_duplicate_of_a_dead_lettered_message_is_recognised(world: World) -> None:
    """Repeated pushes do not fill the dead letters."""
    assert [world.respond("ack", id="m1", command_id="c9").outcome for _ in range(2)] == ["dead_lettered", "duplicate"]
    assert len(world.dead_letters) == 1


def test_message_reaches_the_inbox_of_its_recipient(scribe: World) -> None:
    """In the shape of a command, and in the format of the recipient. A missing id is generated."""
    scribe.respond("register", "b", type="scribe", codec="msgpack")
    scribe.respond("message", id="m7", to="b", content={"chapter": 3}, thread_id="t1")
    assert msgspec.msgpack.decode(scribe.inboxes["b"][0]) == {
        "id": "m7",
        "type": "message",
        "payload": {"from": "a", "content": {"chapter": 3}, "thread_id": "t1"},
        "timestamp": AT,
    }
    scribe.respond("message", to="a", content=None)
    assert json.loads(scribe.inboxes["a"][0])["payload"] == {"from": "a", "content": None}


def test_message_to_an_unknown_agent_is_dead_lettered(scribe: World) -> None:
    """The recipient is not admitted."""
    assert scribe.respond("message", to="nobody", content="x").code == "unknown_recipient"
    assert (set(scribe.fleet.agents), scribe.inboxes) == ({"a"}, {})


def test_latest_measurements_are_kept_and_published(scribe: World) -> None:
    """An empty measurement changes nothing."""
    scribe.respond("measurement", payload={"tokens": 12, "cpu": 0.5})
    scribe.respond("measurement", payload={"tokens": 13.5})
    assert scribe.respond("measurement", payload={}).outcome == "unchanged"
    assert scribe.measurements["a"] == {"tokens": 13.5, "cpu": 0.5}
    assert [event["values"] for event in scribe.events("measurements")] == [
        {"tokens": 12.0, "cpu": 0.5},
        {"tokens": 13.5},
    ]


def test_measurement_from_the_channel_is_not_published_again(scribe: World) -> None:
    for via in ("channel", "http"):
        scribe.respond("measurement", payload={via: 1}, via=via)
    assert [event["values"] for event in scribe.events("measurements")] == [{"http": 1.0}]


def test_reply_contains_the_state_of_the_agent(scribe: World) -> None:
    """Only if `reply` and an id are set, in the format of the agent."""
    scribe.respond("heartbeat", id="m1")
    scribe.respond("heartbeat", reply=True)
    assert scribe.replies == {}
    scribe.respond("state_transition", id="m2", reply=True, target="idle")
    assert scribe.reply("m2", "a") == {"id": "m2", "timestamp": AT, "ok": True, "state": "idle"}
    scribe.respond("register", "b", type="scribe", codec="msgpack", id="m3", reply=True)
    assert msgspec.msgpack.decode(scribe.replies["b", "m3"])["state"] == "bootstrap"


def test_malformed_message_is_dead_lettered_with_its_bytes(world: World) -> None:
    """The dead letter, the event and the fact agree."""
    raw = b"\x00\xff what is this?"
    decision = world.dead_letter("invalid_utf8", raw, agent_id="a")
    assert (decision.outcome, decision.code) == ("dead_lettered", "invalid_utf8")
    assert world.dead_letters == [
        fx.DeadLetter(
            code="invalid_utf8",
            reason="because",
            source="response_queue",
            raw=raw,
            digest=message_digest(raw),
            size=len(raw),
            agent_id="a",
        )
    ]
    details = {"digest": message_digest(raw), "size": len(raw)}
    assert world.events("errors") == [
        {
            "code": "invalid_utf8",
            "message": "because",
            "timestamp": AT,
            "source": "engine",
            "agent_id": "a",
            "details": details,
        }
    ]
    assert world.facts_of("dead_letter_added") == [
        {
            "event": "dead_letter_added",
            "agent_id": "a",
            "code": "invalid_utf8",
            "reason": "because",
            "details": {"source": "response_queue", **details},
        }
    ]
    assert world.fleet.agents == {}


def test_response_of_a_custom_type_goes_to_its_handler() -> None:

    def sneeze(ctx, agent, response, _raw):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        ctx.record("sneezed", agent_id=agent.agent_id, reason=response.payload)

    world = World(handlers={"sneeze": sneeze})
    assert world.respond("sneeze", payload="loudly").kind == "custom"
    assert world.facts_of("sneezed") == [{"event": "sneezed", "agent_id": "a", "reason": "loudly"}]


def test_timestamps_of_agents_decide_nothing(scribe: World) -> None:
    scribe.now += 0.125
    scribe.respond("state_transition", timestamp="1970-01-01T00:00:00Z", target="deep_work")
    assert (scribe.agent().since, scribe.record().since) == (NOW + 0.125, NOW + 0.125)
    assert scribe.facts[-1].at == "2027-01-15T08:00:00.125Z"
