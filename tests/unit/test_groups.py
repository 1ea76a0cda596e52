"""Groups: requests for many agents, their fan-out and their outcomes."""

import json
from typing import Any

import pytest

from aism_engine.domain.decision import Decision
from aism_engine.domain.protocol.codec import decode_request
from aism_engine.domain.requests import decide_request
from tests.support.model import World


@pytest.fixture
def world() -> World:
    """A registered agent `a`, of another type than the workers."""
    world = World(max_in_flight=2)
    world.respond("register", type="scribe", capabilities=["ack"])
    world.facts.clear()
    return world


def add_workers(world: World, number: int) -> None:
    for index in range(number):
        world.respond("register", f"w{index}", type="worker", labels={"team": "ab"[index % 2]})


def test_group_has_one_command_per_selected_agent(world: World) -> None:
    """The targets are frozen at acceptance. The group counts the outcomes."""
    add_workers(world, 6)
    world.request(
        "send", "g", None, select="type=worker,label.team=a", command={"type": "x"}, options={"quorum": "60%"}
    )
    assert world.reply("g") | {"timestamp": ""} == {
        "id": "g",
        "timestamp": "",
        "ok": True,
        "group_id": "g",
        "targets": 3,
        "status": "open",
    }
    world.respond("register", "w6", type="worker", labels={"team": "a"})
    assert {decision.outcome for decision in world.run_fanout()} == {"applied"}
    assert {name for name in world.command_records if name.startswith("g.")} == {"g.w0", "g.w2", "g.w4"}
    world.respond("result", "w0", command_id="g.w0")
    world.respond("error", "w2", command_id="g.w2", code="x")
    assert world.group_records["g"]["status"] == "open"
    world.respond("result", "w4", command_id="g.w4")
    record = world.group_records["g"]
    assert (record["status"], record["succeeded"], record["failed"], "ended_at" in record) == (
        "succeeded",
        "2",
        "1",
        True,
    )
    assert (world.fleet.groups, world.deadlines) == ({}, {})


def test_group_fails_as_soon_as_its_quorum_is_out_of_reach(world: World) -> None:
    """The other commands go on."""
    add_workers(world, 3)
    world.request("send", "g", None, select="type=worker", command={"type": "x"}, options={"quorum": "3"})
    world.run_fanout()
    world.respond("error", "w1", command_id="g.w1", code="x")
    assert (world.group_records["g"]["status"], world.status("g.w0")) == ("failed", "queued")


def test_refused_target_is_counted_and_the_others_go_on(world: World) -> None:
    """The agent is drained between the acceptance and the fan-out."""
    add_workers(world, 2)
    world.request("send", "g", None, select="type=worker", command={"type": "x"})
    world.request("drain", "d", "w0")
    world.run_fanout()
    assert (world.group_records["g"]["refused"], world.status("g.w1")) == ("1", "queued")
    assert world.facts_of("target_refused")[0]["code"] == "draining"


def test_target_whose_command_id_is_taken_is_refused(world: World) -> None:
    """The existing command `g.w0` is neither overwritten nor lost."""
    add_workers(world, 2)
    world.send("g.w0", "w1", kind="other")
    world.request("send", "g", None, select="type=worker", command={"type": "x"})
    world.run_fanout()
    assert (world.command_records["g.w0"]["agent_id"], world.group_records["g"]["refused"]) == ("w1", "1")
    assert world.facts_of("target_refused")[0]["code"] == "id_taken"


@pytest.mark.parametrize("before", [True, False])
def test_cancelled_group_cancels_accepted_and_pending_members(world: World, before: bool) -> None:  # noqa: FBT001
    add_workers(world, 3)
    world.request("send", "g", None, select="type=worker", command={"type": "x"})
    if not before:
        world.run_fanout()
    world.request("cancel", "x", None, group_id="g")
    world.run_fanout()
    record = world.group_records["g"]
    assert (record["cancelled"], record["status"], "ended_at" in record) == ("3", "failed", True)
    assert not any(world.lists[f"w{index}"] for index in range(3))


def test_cancelled_group_leaves_out_a_member_that_the_same_batch_cancels(world: World) -> None:
    add_workers(world, 2)
    world.request("send", "g", None, select="type=worker", command={"type": "x"})
    world.run_fanout()
    draft, effects = world.draft(), []
    for request_id, payload in (("one", {"command_id": "g.w0"}), ("all", {"group_id": "g"})):
        raw = json.dumps({"id": request_id, "type": "cancel", "payload": payload, "reply": True}).encode()
        effects += decide_request(draft, world.policy, decode_request(raw), raw).effects
    world.commit(draft, Decision("cancel", effects=effects))
    world.run_fanout()
    assert world.reply("all")["targets"] == 1
    assert world.group_records["all"]["status"] == "succeeded"


def test_send_any_chooses_the_agent_with_the_lowest_load(world: World) -> None:
    """Scheduled commands do not count as load, and paused agents are left out."""
    add_workers(world, 3)
    world.send("c0", "w0")
    world.send("c1", "w2")
    for number in range(3):
        world.request("send", f"later-{number}", "w1", command={"type": "x"}, options={"start_in": 60})
    world.request("pause", "p", "w0")
    world.request("send", "s", None, select="type=worker", any=True, command={"type": "x"})
    assert world.reply("s")["agent_id"] == "w1"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"select": "type=nobody"}, "no_match"),
        ({"select": "typ=x"}, "invalid_selector"),
        ({"select": "type=scribe", "options": {"quorum": "0%"}}, "invalid_quorum"),
        ({"select": "type=scribe", "options": {"quorum": "2"}}, "invalid_quorum"),
        (
            {"select": "type=scribe", "any": True, "command": {"type": "state_transition", "payload": {"target": "x"}}},
            "none_available",
        ),
    ],
)
def test_send_without_a_possible_target_is_refused(world: World, fields: dict[str, Any], code: str) -> None:
    decision = world.request("send", "s", None, **({"command": {"type": "x"}} | fields))
    assert (decision.outcome, world.reply("s")["error"]["code"]) == ("refused", code)


@pytest.mark.parametrize("fields", [{}, {"any": True}])
@pytest.mark.parametrize("command", [{"type": "cancel"}, {"type": "state_transition", "payload": {"target": 7}}])
def test_invalid_command_for_selected_agents_is_refused_as_invalid(
    world: World, command: dict[str, Any], fields: dict[str, Any]
) -> None:
    """The reason is not that no agent can take it, and no group is made."""
    world.request("send", "s", None, select="type=scribe", command=command, **fields)
    assert (world.reply("s")["error"]["code"], world.group_records) == ("invalid_message", {})


def test_repeated_request_gets_the_same_reply(world: World) -> None:
    """This holds for every type of request, whatever has happened since."""
    add_workers(world, 2)
    for request_id, kind, agent_id, fields in (
        ("q1", "send", None, {"select": "type=worker", "command": {"type": "x"}}),
        ("q2", "send", "nobody", {"command": {"type": "x"}}),
        ("q3", "pause", "a", {}),
        ("q4", "cancel", None, {"command_id": "c0"}),
    ):
        world.request(kind, request_id, agent_id, **fields)
        first, written = world.replies.pop((None, request_id)), len(world.facts)
        world.now += 5
        assert world.request(kind, request_id, agent_id, **fields).outcome == "duplicate"
        assert (world.replies[None, request_id], len(world.facts)) == (first, written)


def test_open_group_is_not_created_twice_after_its_reply_expired(world: World) -> None:
    """A group may be open for longer than replies are kept."""
    add_workers(world, 2)
    world.request("send", "g", None, select="type=worker", command={"type": "x"})
    world.run_fanout()
    world.request_replies.clear()
    assert world.request("send", "g", None, select="type=worker", command={"type": "x"}).outcome == "duplicate"
    assert (world.fanout, world.reply("g")["targets"]) == ([], 2)


def test_deadline_of_a_group_counts_all_its_pending_members_at_once(world: World) -> None:
    """The number of effects does not depend on the number of members."""
    add_workers(world, 50)
    world.request("send", "g", None, select="type=worker", command={"type": "x"}, options={"quorum": "1"})
    decision = world.decide_deadline("group:g", world.deadlines["group:g"])
    assert [type(effect).__name__ for effect in decision.effects] == [
        "ExpectDeadline",
        "SaveGroup",
        "ClearDeadline",
        "Fact",
    ]
    record = world.group_records["g"]
    assert (record["status"], record["expired"], "ended_at" in record) == ("failed", "50", True)
