"""The laws of what operators ask for: whom it means, whether it is allowed now, and what the agent then pops."""

import json

import msgspec
import pytest

from aism_engine.clock import iso
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.requests import decide_request
from aism_engine.domain.responses import decide_response
from tests.support.model import AT, NOW, World


@pytest.fixture
def world() -> World:
    """A registered agent `a` in its inbox."""
    world = World()
    world.respond("register", type="scribe")
    world.respond("state_transition", target="inbox")
    world.facts.clear()
    world.published.clear()
    return world


def fault(world: World, request_id: str) -> tuple[str, str]:
    reply = world.reply(request_id)
    assert reply["ok"] is False
    return reply["error"]["type"], reply["error"]["code"]


# What is accepted


def test_an_accepted_command_is_on_record_and_in_the_agents_list(world: World) -> None:
    """What the agent pops has the four fields of the design, and the reply says that it was accepted."""
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
        "accepted_at": AT,
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


def test_a_command_says_its_deadline_only_if_it_was_given_one(world: World) -> None:
    """And carries the trace of whoever asked."""
    world.request("send", "c1", command={"type": "x"}, options={"ttl": 90}, traceparent="00-ab-cd-01")
    popped = json.loads(world.lists["a"][0])
    assert (popped["deadline"], popped["traceparent"], "attempt" in popped) == (iso(NOW + 90), "00-ab-cd-01", False)
    assert world.deadlines == {"command:c1": NOW + 90}


def test_a_command_is_written_in_the_format_its_agent_asked_for(world: World) -> None:
    """MessagePack if its `register` said so, else JSON."""
    world.respond("register", type="scribe", codec="msgpack")
    world.send("c1", kind="write", pages=3)
    popped = msgspec.msgpack.decode(world.lists["a"][0])
    assert popped == {"id": "c1", "type": "write", "payload": {"pages": 3}, "timestamp": AT}


def test_commands_lie_in_the_order_in_which_they_were_asked_for(world: World) -> None:
    """The oldest at the tail, where the agent pops."""
    for number in range(3):
        world.send(f"c{number}")
    assert [json.loads(body)["id"] for body in world.lists["a"]] == ["c2", "c1", "c0"]


def test_without_a_reply_none_is_written(world: World) -> None:
    """Who does not wait for one can say so."""
    world.request("send", "c1", command={"type": "x"}, reply=False)
    assert (world.replies, world.status("c1")) == ({}, "queued")


def test_the_same_request_again_is_one_command(world: World) -> None:
    """It is answered as it was the first time, also after the end of its command."""
    world.send("c1")
    world.replies.clear()
    assert (world.send("c1").outcome, world.reply("c1")["status"]) == ("duplicate", "queued")
    world.respond("result", command_id="c1")
    world.replies.clear()
    assert (world.send("c1", "someone-else").outcome, len(world.lists["a"])) == ("duplicate", 1)
    assert (world.reply("c1")["agent_id"], world.reply("c1")["status"]) == ("a", "queued")


def test_a_command_that_ends_between_the_look_and_the_decision_is_known(world: World) -> None:
    """Open when the lookups were made, it was not looked up; ended since, it is neither new nor unknown."""
    world.send("c1")
    looked_up = Lookups()
    world.respond("result", command_id="c1")
    again = m.Send(id="c1", payload=m.SendPayload(m.CommandSpec("work"), "a"))
    assert decide_request(Draft(world.fleet, NOW, looked_up), world.policy, again, b"").outcome == "duplicate"
    late = m.Ack(agent_id="a", command_id="c1")
    assert decide_response(Draft(world.fleet, NOW, looked_up), world.policy, late, b"").outcome == "late"


def test_an_agent_that_has_left_any_trace_is_taken_in(world: World) -> None:
    """One known by nothing but a heartbeat, its metadata or its state key can be commanded."""
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


# What is refused


def test_nobody_is_made_up_by_being_commanded(world: World) -> None:
    """An agent that has left no trace is a slip of the hand."""
    decision = world.send("c1", "nobody")
    assert (decision.outcome, decision.code) == ("refused", "unknown_agent")
    assert fault(world, "c1") == ("send_refused", "unknown_agent")
    assert (world.lists, world.command_records, "nobody" in world.fleet.agents) == ({}, {}, False)
    assert [fact["code"] for fact in world.facts_of("request_refused")] == ["unknown_agent"]


def test_without_auto_register_a_trace_is_not_enough() -> None:
    """Only who has registered can be commanded."""
    world = World(auto_register=False)
    world.snapshots["a"] = AgentSnapshot(score=17.0)
    assert world.send("c1").code == "unknown_agent"


def test_a_full_fleet_takes_nobody_in_by_command() -> None:
    """The bound holds at every door."""
    world = World(max_agents=1)
    world.respond("heartbeat", "a")
    world.snapshots["b"] = AgentSnapshot(score=17.0)
    assert (world.send("c1", "b").code, world.send("c2", "a").outcome) == ("fleet_full", "applied")


def test_a_full_queue_refuses_and_never_drops() -> None:
    """At most max_queued commands are open per agent; one that ends makes room."""
    world = World(max_queued=2)
    world.respond("register", "a", type="scribe")
    world.respond("register", "b", type="scribe")
    assert [world.send(f"c{number}").code for number in range(3)] == ["", "", "queue_full"]
    assert fault(world, "c2") == ("send_refused", "queue_full")
    assert world.reply("c2")["error"]["details"] == {"max_queued": 2}
    assert ("c2" in world.command_records, world.send("c3", "b").code) == (False, "")
    world.respond("result", command_id="c0")
    assert (world.send("c2").outcome, world.send("c4").outcome) == ("duplicate", "applied")


def test_the_bound_of_the_queue_holds_within_one_batch() -> None:
    """The second request of a batch sees what the first one did."""
    world = World(max_queued=1)
    world.respond("register", type="scribe")
    assert [world.send("c1").code, world.send("c2").code] == ["", "queue_full"]


@pytest.mark.parametrize("payload", [{}, {"target": None}, {"target": 7}, {"target": ["inbox"]}])
def test_a_state_transition_needs_a_target(world: World, payload: dict[str, object]) -> None:
    """A command that could never be fulfilled is not sent."""
    world.request("send", "c1", command={"type": "state_transition", "payload": payload})
    assert fault(world, "c1") == ("send_refused", "invalid_message")


def test_a_transition_that_the_machine_does_not_allow_is_not_sent(world: World) -> None:
    """Refused in the error shape of the design, with what would be allowed."""
    world.send("c1", kind="state_transition", target="bootstrap")
    assert fault(world, "c1") == ("transition_refused", "not_allowed")
    assert world.reply("c1")["error"]["details"] == {
        "current": "inbox",
        "requested": "bootstrap",
        "allowed": ["deep_work", "distill", "idle", "logout", "direct_io"],
    }
    world.send("c2", kind="state_transition", target="nirvana")
    assert fault(world, "c2") == ("transition_refused", "unknown_state")
    assert (world.lists, world.agent().state) == ({}, "inbox")


def test_a_transition_is_judged_from_where_the_agent_will_be(world: World) -> None:
    """Commands before this one may lead there: inbox -> idle -> logout is no answer to deep_work -> logout."""
    world.respond("state_transition", target="deep_work")
    assert world.send("c1", kind="state_transition", target="logout").outcome == "refused"
    world.send("c2", kind="state_transition", target="inbox")
    assert world.send("c3", kind="state_transition", target="logout").outcome == "applied"


def test_an_agent_that_never_registered_may_be_sent_anywhere() -> None:
    """Its machine is open; what cannot be the name of a state is refused all the same."""
    world = World()
    world.respond("heartbeat")
    assert world.send("c1", kind="state_transition", target="deep_work").outcome == "applied"
    assert world.send("c2", kind="state_transition", target="7up").code == "unknown_state"


def test_a_malformed_request_is_buried_and_answered_where_that_is_possible(world: World) -> None:
    """Whoever waits under an id that could be read is told; nobody else can be."""
    world.dead_letter("invalid_message", b"{}", asked=True, message_id="r1")
    world.dead_letter("invalid_json", b"{", asked=True)
    assert fault(world, "r1") == ("request_refused", "invalid_message")
    assert [(letter.code, letter.raw, letter.source) for letter in world.dead_letters] == [
        ("invalid_message", b"{}", "request_queue"),
        ("invalid_json", b"{", "request_queue"),
    ]
    assert list(world.replies) == [(None, "r1")]


# Forgetting


def test_to_forget_deletes_everything_and_cancels_what_was_open(world: World) -> None:
    """The records of its commands stay, with the reason; nothing else does."""
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


def test_nobody_can_be_forgotten_twice(world: World) -> None:
    """The second time there is nobody."""
    world.request("forget", "f1")
    world.request("forget", "f2")
    assert fault(world, "f2") == ("forget_refused", "unknown_agent")


def test_one_that_was_forgotten_is_a_stranger(world: World) -> None:
    """It is met anew, knows no old ids, and a late word on its old command is late."""
    world.send("c1")
    world.respond("measurement", id="m1", tokens=1)
    world.request("forget", "f1")
    assert world.respond("measurement", id="m1", tokens=1).outcome == "applied"
    assert (world.agent().registered, world.agent().state) == (False, "unknown")
    assert world.respond("result", command_id="c1").outcome == "late"


def test_to_forget_makes_room_in_the_fleet() -> None:
    """Within the same batch, too."""
    world = World(max_agents=1)
    world.respond("heartbeat", "a")
    world.request("forget", "f1")
    assert world.respond("heartbeat", "b").outcome == "applied"
