"""Requests of operators: which agents they address, whether they are allowed, and what the agents pop."""

import json
from typing import Any

import msgspec
import pytest

from aism_engine.clock import iso
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request
from aism_engine.domain.requests import decide_request
from aism_engine.domain.responses import decide_response
from tests.support.model import AT, NOW, World, registered_world


@pytest.fixture
def world() -> World:
    """A registered agent `a` in its inbox."""
    return registered_world()


def error_of(world: World, request_id: str) -> tuple[str, str]:
    reply = world.reply(request_id)
    assert reply["ok"] is False
    return reply["error"]["type"], reply["error"]["code"]


def test_accepted_command_is_recorded_and_pushed(world: World) -> None:
    """The popped message has the four fields of the protocol, and the reply says that it was accepted."""
    decision = world.send("c1", kind="write", pages=3)
    assert (decision.kind, decision.outcome) == ("send", "applied")
    assert json.loads(world.lists["a"][0]) == {"id": "c1", "type": "write", "payload": {"pages": 3}, "timestamp": AT}
    assert world.command_records["c1"] == {
        "agent_id": "a",
        "type": "write",
        "target": "",
        "status": "queued",
        "priority": "normal",
        "seq": "1",
        "attempt": "1",
        "failures": "0",
        "restarts": "0",
        "accepted_at": AT,
        "start_at": "",
        "queued_at": AT,
        "expires_at": iso(NOW + 3600),
        "step_at": "",
        "ack_timeout": "30",
        "timeout": "3600",
        "max_attempts": "5",
        "on_lost": "hold",
        "group_id": "",
        "payload": b'{"pages":3}',
        "body": world.lists["a"][0],
    }
    assert world.deadlines == {"command:c1": NOW + 3600}
    assert world.reply("c1") == {
        "id": "c1",
        "timestamp": AT,
        "ok": True,
        "command_id": "c1",
        "agent_id": "a",
        "status": "queued",
    }
    assert world.facts_of("command_queued") == [
        {"event": "command_queued", "agent_id": "a", "cause": "c1", "command_id": "c1", "type": "write"}
    ]


def test_command_has_a_deadline_only_if_a_ttl_was_given(world: World) -> None:
    """It also carries the trace context of the request."""
    world.request("send", "c1", command={"type": "x"}, options={"ttl": 90}, traceparent="00-ab-cd-01")
    popped = json.loads(world.lists["a"][0])
    assert (popped["deadline"], popped["traceparent"], "attempt" in popped) == (iso(NOW + 90), "00-ab-cd-01", False)
    assert world.deadlines == {"command:c1": NOW + 90}


def test_command_has_the_format_of_its_agent(world: World) -> None:
    world.respond("register", type="scribe", codec="msgpack")
    world.send("c1", kind="write", pages=3)
    popped = msgspec.msgpack.decode(world.lists["a"][0])
    assert popped == {"id": "c1", "type": "write", "payload": {"pages": 3}, "timestamp": AT}


def test_commands_are_listed_in_the_order_of_their_requests(world: World) -> None:
    """The oldest is at the tail, from which the agent pops."""
    for number in range(3):
        world.send(f"c{number}")
    assert [json.loads(body)["id"] for body in world.lists["a"]] == ["c2", "c1", "c0"]


def test_request_without_reply_gets_none(world: World) -> None:
    world.request("send", "c1", command={"type": "x"}, reply=False)
    assert (world.replies, world.status("c1")) == ({}, "queued")


def test_repeated_send_is_one_command(world: World) -> None:
    """It gets the same reply, also after the command has ended."""
    world.send("c1")
    world.replies.clear()
    assert (world.send("c1").outcome, world.reply("c1")["status"]) == ("duplicate", "queued")
    world.respond("result", command_id="c1")
    world.replies.clear()
    assert (world.send("c1").outcome, len(world.lists["a"])) == ("duplicate", 1)
    assert (world.reply("c1")["agent_id"], world.reply("c1")["status"]) == ("a", "queued")


@pytest.mark.parametrize(
    ("kind", "agent_id", "fields"),
    [
        ("send", "b", {"command": {"type": "work", "payload": {"n": 1, "m": 2}}}),
        ("send", "a", {"command": {"type": "other", "payload": {"n": 1, "m": 2}}}),
        ("send", "a", {"command": {"type": "work", "payload": {"n": 1, "m": 3}}}),
        ("send", "a", {"command": {"type": "work", "payload": {"n": 1, "m": 2}}, "options": {"ttl": 9}}),
        ("send", None, {"command": {"type": "work", "payload": {"n": 1, "m": 2}}, "select": "id=a"}),
        ("pause", "a", {}),
    ],
)
def test_another_request_under_a_used_id_is_refused(
    world: World, kind: str, agent_id: str | None, fields: dict[str, Any]
) -> None:
    """The first one keeps its reply. The order of fields makes no difference."""
    world.request("send", "r", command={"type": "work", "payload": {"n": 1, "m": 2}})
    assert world.request(kind, "r", agent_id, **fields).outcome == "refused"
    assert error_of(world, "r") == (f"{kind}_refused", "id_reused")
    assert (world.agent().hold, len(world.lists["a"])) == ("", 1)
    again = world.request("send", "r", command={"payload": {"m": 2, "n": 1}, "type": "work"})
    assert (again.outcome, world.reply("r")["status"]) == ("duplicate", "queued")


def test_a_reply_that_an_earlier_version_saved_is_given_again(world: World) -> None:
    """It has no digest of the request."""
    world.request_replies["c1"] = b'{"id":"c1","ok":true}'
    assert (world.send("c1").outcome, world.reply("c1")) == ("duplicate", {"id": "c1", "ok": True})


def test_another_command_under_the_id_of_a_known_one_is_refused_without_its_saved_reply(world: World) -> None:
    """Such a refusal is not saved: the id belongs to the first command."""
    world.send("c1")
    for agent_id, kind, expected in (("b", "work", "refused"), ("a", "rest", "refused"), ("a", "work", "duplicate")):
        world.request_replies.pop("c1", None)
        assert world.send("c1", agent_id, kind).outcome == expected
        assert ("c1" in world.request_replies) == (expected == "duplicate")


@pytest.mark.parametrize("start_at", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "2030-01-01T00:00:00Z"])
def test_a_start_that_is_not_within_a_year_is_refused(world: World, start_at: str) -> None:
    world.request("send", "c1", command={"type": "work"}, options={"start_at": start_at})
    assert error_of(world, "c1") == ("send_refused", "invalid_start")


@pytest.mark.parametrize("start_at", ["2026-12-31T23:59:60Z", "tomorrow", "10000-01-01T00:00:00Z", "0000-01-01T00:00Z"])
def test_a_start_that_is_no_time_is_refused_in_words(start_at: str) -> None:
    """A leap second is no time, either: the clock of the engine does not have it."""
    payload = {"agent_id": "a", "command": {"type": "x"}, "options": {"start_at": start_at}}
    raw = {"type": "send", "id": "c1", "payload": payload}
    with pytest.raises(MalformedError, match="`start_at`: expected a time like"):
        decode_request(json.dumps(raw).encode())


def test_any_instant_can_be_written() -> None:
    """Whatever another client wrote into a record."""
    assert [iso(-1e300), iso(1e300)] == ["0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.000Z"]


def test_command_that_ends_between_lookup_and_decision_is_known(world: World) -> None:
    """It was open when the lookups were read, so it is not among them."""
    world.send("c1")
    looked_up = Lookups()
    world.respond("result", command_id="c1")
    again = m.Send(id="c1", payload=m.SendPayload(m.CommandSpec("work"), "a"))
    assert decide_request(Draft(world.fleet, NOW, looked_up), world.policy, again, b"").outcome == "duplicate"
    late = m.Ack(agent_id="a", command_id="c1")
    assert decide_response(Draft(world.fleet, NOW, looked_up), world.policy, late, b"").outcome == "late"


def test_agent_with_any_trace_in_redis_can_get_commands(world: World) -> None:
    """A heartbeat, metadata or a state key is enough."""
    world.snapshots |= {
        "beats": AgentSnapshot(score=17.0),
        "described": AgentSnapshot(type="architect", labels={"team": "x"}),
        "stated": AgentSnapshot(state="thinking"),
    }
    for agent_id in ("beats", "described", "stated"):
        world.send(f"c-{agent_id}", agent_id)
        assert json.loads(world.lists[agent_id][0])["id"] == f"c-{agent_id}"
    assert [world.agent(each).state for each in ("beats", "described", "stated")] == ["unknown", "unknown", "thinking"]
    assert (world.agent("described").type, world.agent("described").labels) == ("architect", {"team": "x"})


def test_command_for_an_unknown_agent_is_refused(world: World) -> None:
    """Without any trace in Redis, the id is most likely a typing error."""
    decision = world.send("c1", "nobody")
    assert (decision.outcome, decision.code) == ("refused", "unknown_agent")
    assert error_of(world, "c1") == ("send_refused", "unknown_agent")
    assert (world.lists, world.command_records, "nobody" in world.fleet.agents) == ({}, {}, False)
    assert [fact["code"] for fact in world.facts_of("request_refused")] == ["unknown_agent"]


def test_without_auto_register_a_trace_does_not_admit_an_agent() -> None:
    world = World(auto_register=False)
    world.snapshots["a"] = AgentSnapshot(score=17.0)
    assert world.send("c1").code == "unknown_agent"


def test_full_fleet_admits_no_agent_by_command() -> None:
    world = World(max_agents=1)
    world.respond("heartbeat", "a")
    world.snapshots["b"] = AgentSnapshot(score=17.0)
    assert (world.send("c1", "b").code, world.send("c2", "a").outcome) == ("fleet_full", "applied")


def test_command_beyond_max_queued_is_refused_and_none_is_dropped() -> None:
    """A command that ends makes room."""
    world = World(max_queued=2)
    world.respond("register", "a", type="scribe")
    world.respond("register", "b", type="scribe")
    assert [world.send(f"c{number}").code for number in range(3)] == ["", "", "queue_full"]
    assert error_of(world, "c2") == ("send_refused", "queue_full")
    assert world.reply("c2")["error"]["details"] == {"max_queued": 2}
    assert ("c2" in world.command_records, world.send("c3", "b").code) == (False, "")
    world.respond("result", command_id="c0")
    assert (world.send("c2").outcome, world.send("c4").outcome) == ("duplicate", "applied")


def test_max_queued_holds_within_one_batch() -> None:
    world = World(max_queued=1)
    world.respond("register", type="scribe")
    assert [world.send("c1").code, world.send("c2").code] == ["", "queue_full"]


@pytest.mark.parametrize("payload", [{}, {"target": None}, {"target": 7}, {"target": ["inbox"]}])
def test_state_transition_without_a_target_is_refused(world: World, payload: dict[str, object]) -> None:
    world.request("send", "c1", command={"type": "state_transition", "payload": payload})
    assert error_of(world, "c1") == ("send_refused", "invalid_message")


def test_only_the_engine_sends_a_command_of_the_type_cancel(world: World) -> None:
    world.send("c1", kind="cancel")
    assert error_of(world, "c1") == ("send_refused", "invalid_message")


def test_transition_that_the_machine_does_not_allow_is_refused(world: World) -> None:
    """The reply lists the allowed states."""
    world.send("c1", kind="state_transition", target="bootstrap")
    assert error_of(world, "c1") == ("transition_refused", "not_allowed")
    assert world.reply("c1")["error"]["details"] == {
        "current": "inbox",
        "requested": "bootstrap",
        "allowed": ["deep_work", "distill", "idle", "logout", "direct_io"],
    }
    world.send("c2", kind="state_transition", target="nirvana")
    assert error_of(world, "c2") == ("transition_refused", "unknown_state")
    assert (world.lists, world.agent().state) == ({}, "inbox")


def test_transition_is_checked_from_the_targets_of_pending_commands(world: World) -> None:
    """Pending commands may lead to a state from which it is allowed."""
    world.respond("state_transition", target="deep_work")
    assert world.send("c1", kind="state_transition", target="logout").outcome == "refused"
    world.send("c2", kind="state_transition", target="inbox")
    assert world.send("c3", kind="state_transition", target="logout").outcome == "applied"


def test_unregistered_agent_may_be_sent_to_any_state() -> None:
    """An invalid state name is refused."""
    world = World()
    world.respond("heartbeat")
    assert world.send("c1", kind="state_transition", target="deep_work").outcome == "applied"
    assert world.send("c2", kind="state_transition", target="7up").code == "unknown_state"


def test_malformed_request_is_dead_lettered_and_gets_a_reply(world: World) -> None:
    """The reply needs an id that can be read."""
    world.dead_letter("invalid_message", b"{}", request=True, message_id="r1")
    world.dead_letter("invalid_json", b"{", request=True)
    assert error_of(world, "r1") == ("request_refused", "invalid_message")
    assert [(letter.code, letter.raw, letter.source) for letter in world.dead_letters] == [
        ("invalid_message", b"{}", "request_queue"),
        ("invalid_json", b"{", "request_queue"),
    ]
    assert list(world.replies) == [(None, "r1")]


def test_forget_deletes_the_agent_and_cancels_its_open_commands(world: World) -> None:
    """The records of its commands are kept."""
    world.respond("measurement", tokens=1)
    world.respond("message", to="a", content="note to self")
    world.send("c1")
    world.send("c2")
    world.respond("result", command_id="c2")
    world.request("forget", "f1", reason="retired")
    assert world.reply("f1") == {"id": "f1", "timestamp": AT, "ok": True, "agent_id": "a"}
    assert (world.fleet.agents, world.index, world.records, world.states) == ({}, set(), {}, {})
    assert (world.metadata, world.measurements, world.inboxes, world.lists) == ({}, {}, {}, {})
    assert (world.deadlines, world.fleet.commands) == ({}, {})
    assert (world.status("c1"), world.command_records["c1"]["code"]) == ("cancelled", "agent_forgotten")
    assert world.status("c2") == "succeeded"
    expected = {"agent_id": "a", "cause": "f1", "old_state": "inbox", "reason": "retired"}
    assert world.facts_of("agent_forgotten") == [{"event": "agent_forgotten", **expected}]


def test_forget_of_an_unknown_agent_is_refused(world: World) -> None:
    world.request("forget", "f1")
    world.request("forget", "f2")
    assert error_of(world, "f2") == ("forget_refused", "unknown_agent")


def test_forgotten_agent_is_admitted_anew(world: World) -> None:
    """Its old message ids are unknown, and a response to an old command is late."""
    world.send("c1")
    world.respond("measurement", id="m1", tokens=1)
    world.request("forget", "f1")
    assert world.respond("measurement", id="m1", tokens=1).outcome == "applied"
    assert (world.agent().registered, world.agent().state) == (False, "unknown")
    assert world.respond("result", command_id="c1").outcome == "late"


def test_forget_makes_room_in_a_full_fleet() -> None:
    world = World(max_agents=1)
    world.respond("heartbeat", "a")
    world.request("forget", "f1")
    assert world.respond("heartbeat", "b").outcome == "applied"
