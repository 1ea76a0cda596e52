"""Credit, priority, holds, cancellation, and lost agents."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from aism_engine.domain.agents.agent import HELD_TABLE, AgentSnapshot, Held, Hold, Liveness
from aism_engine.domain.agents.liveness import decide_lost
from aism_engine.domain.text import truncate
from tests.support.model import World, decode_record, queue_of


@pytest.fixture
def world() -> World:
    """A registered agent `a` that acknowledges, with a credit of two commands."""
    world = World(max_in_flight=2, max_attempts=2, ack_timeout=10, timeout=100, backoff_initial=1)
    world.respond("register", type="scribe", capabilities=["ack"])
    world.facts.clear()
    return world


def test_commands_beyond_the_credit_wait_by_priority(world: World) -> None:
    """They are dispatched as soon as there is credit."""
    for number, priority in enumerate(["normal", "normal", "low", "normal", "high"]):
        world.request("send", f"c{number}", command={"type": "x"}, options={"priority": priority})
    assert (queue_of(world), world.dispatch().outcome) == (["c0", "c1"], "unchanged")
    for done in ("c0", "c1", "c4", "c3"):
        assert world.pop()["id"] == done
        world.respond("result", command_id=done)
        world.dispatch()
    assert queue_of(world) == ["c2"]


def test_delivered_command_of_an_agent_without_acks_is_not_in_flight(world: World) -> None:
    """Only the commands in its list count against its credit."""
    world.respond("register", type="scribe")
    for number in range(4):
        world.send(f"c{number}")
    world.pop()
    world.poll_list()
    world.dispatch()
    assert queue_of(world) == ["c1", "c2"]


@pytest.mark.parametrize("target", [{"agent_id": "a"}, {"select": "type=scribe"}, {"all": True}])
def test_pause_holds_new_scheduled_and_retried_commands(world: World, target: dict[str, Any]) -> None:
    """The pause survives a change of the leader, and a resume ends it."""
    world.request("send", "later", command={"type": "x"}, options={"start_in": 5})
    world.send("again")
    world.pop()
    world.poll_list()
    world.request("pause", "p1", **({"agent_id": None} | target))
    world.run_fanout()
    world.send("new")
    for _ in range(3):
        world.pass_time(10)
        world.dispatch()
    assert (queue_of(world), {world.status(each) for each in ("later", "again", "new")}) == ([], {"waiting"})
    world.fleet = world.reloaded()
    assert (world.dispatch().outcome, queue_of(world)) == ("unchanged", [])
    world.request("resume", "p2", **({"agent_id": None} | target))
    world.run_fanout()
    world.dispatch()
    assert len(queue_of(world)) == 2


def test_draining_agent_gets_accepted_commands_and_no_new_ones(world: World) -> None:
    for number in range(3):
        world.send(f"c{number}")
    world.request("drain", "d1")
    assert (world.send("c9").code, world.reply("c9")["error"]["code"]) == ("draining", "draining")
    world.pop()
    world.respond("result", command_id="c0")
    world.dispatch()
    assert queue_of(world) == ["c1", "c2"]


def test_cancelled_command_is_withdrawn_from_the_list(world: World) -> None:
    """The agent never sees it."""
    world.send("c1")
    assert world.request("cancel", "x1", None, command_id="c1").outcome == "applied"
    assert (world.status("c1"), queue_of(world), world.command_records["c1"]["code"]) == ("cancelled", [], "cancelled")
    world.request("cancel", "x2", None, command_id="c1")
    assert world.reply("x2")["error"]["code"] == "command_ended"


@pytest.mark.parametrize("measured", [True, False])
def test_agent_that_took_a_cancelled_command_gets_a_cancel_command(world: World, measured: bool) -> None:  # noqa: FBT001
    """This does not depend on whether the engine has seen the delivery."""
    world.send("c1")
    world.pop()
    if measured:
        world.poll_list()
    world.request("cancel", "x1", None, command_id="c1", reason="changed my mind")
    notice = world.pop()
    expected = {"command_id": "c1", "code": "cancelled"}
    assert (notice["type"], notice["payload"], world.status("c1")) == ("cancel", expected, "cancelled")
    assert world.respond("result", command_id="c1").outcome == "late"


def test_a_cancel_overtakes_the_commands_in_the_list(world: World) -> None:
    """An agent that pops to look for it takes no other command. What it has taken is still measured."""
    world.send("c0")
    world.send("c1")
    assert world.pop()["id"] == "c0"
    world.request("cancel", "x1", None, command_id="c0")
    world.dispatch()
    world.send("c2")
    assert [world.pop()["payload"].get("command_id"), world.pop()["id"]] == ["c0", "c1"]


def acked(world: World) -> None:
    world.respond("ack", command_id="c1")


def delivered(world: World) -> None:
    world.poll_list()


def failed(world: World) -> None:
    """The agent reports a retryable error, and works on the command no longer."""
    world.respond("error", command_id="c1", code="busy", retryable=True)


def redelivered(world: World) -> None:
    """The first attempt is not acknowledged, and the second is in the list."""
    world.poll_list()
    world.pass_time(10)
    world.pass_time(1)
    world.dispatch()


@pytest.mark.parametrize(
    ("step", "ttl", "ended", "notices"),
    [
        (acked, 1000, ("failed", "timeout"), ["c1.cancel"]),
        (acked, 20, ("expired", "expired"), ["c1.cancel"]),
        (delivered, 20, ("expired", "expired"), ["c1.cancel"]),
        (redelivered, 20, ("expired", "expired"), ["c1.cancel"]),
        (failed, 20, ("expired", "expired"), []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_agent_of_a_command_that_the_engine_ends_gets_a_cancel(
    world: World, step: Callable[[World], None], ttl: float, ended: tuple[str, str], notices: list[str]
) -> None:
    """If it may still work on the command. No copy stays in its list."""
    world.request("send", "c1", command={"type": "x"}, options={"ttl": ttl})
    world.pop()
    step(world)
    for _ in range(100):
        world.pass_time(1)
    record = world.command_records["c1"]
    assert (record["status"], record["code"]) == ended
    assert queue_of(world) == notices
    assert [json.loads(body)["payload"] for body in world.lists["a"]] == [
        {"command_id": "c1", "code": ended[1]} for _ in notices
    ]


def test_the_agent_of_a_dead_command_gets_a_cancel(world: World) -> None:
    """Its last attempt was taken and not acknowledged: the agent may still work on it."""
    world.send("c1")
    for _ in range(2):
        world.pop()
        redelivered(world)
    assert (world.status("c1"), queue_of(world)) == ("dead", ["c1.cancel"])


def test_a_lost_agent_finds_a_cancel_when_it_returns(world: World) -> None:
    """It worked on a command with `on_lost = "fail"` when the engine lost it."""
    world.snapshots["a"] = AgentSnapshot(score=1.0)
    world.request("send", "c1", command={"type": "x"}, options={"on_lost": "fail"})
    world.pop()
    acked(world)
    world.decide(decide_lost, "a", 1.0, 60.0)
    assert (world.status("c1"), world.pop()["payload"]) == ("failed", {"command_id": "c1", "code": "agent_lost"})


def redeliver(world: World) -> None:
    """Redeliver c1: the agent has one copy, and the list has the other."""
    world.send("c1")
    world.pop()
    world.poll_list()
    world.pass_time(10)
    world.pass_time(60)
    world.dispatch()
    assert (queue_of(world), world.status("c1")) == (["c1"], "queued")


def test_cancel_of_a_redelivered_command_withdraws_the_copy_and_notifies_the_agent(world: World) -> None:
    """The agent may still work on the first copy."""
    redeliver(world)
    world.request("cancel", "x1", None, command_id="c1")
    notice = world.pop()
    assert (notice["type"], queue_of(world), world.status("c1")) == ("cancel", [], "cancelled")


@pytest.mark.parametrize("kind", ["ack", "progress"])
def test_late_ack_withdraws_the_second_copy(world: World, kind: str) -> None:
    """Otherwise the command would be done twice."""
    redeliver(world)
    world.respond(kind, command_id="c1")
    assert (queue_of(world), world.status("c1")) == ([], "acked")


def test_lost_agent_is_refused_commands_with_on_lost_fail(world: World) -> None:
    """A command with `on_lost = "hold"` is accepted."""
    world.snapshots["a"] = AgentSnapshot(score=1.0)
    world.decide(decide_lost, "a", 1.0, 60.0)
    decision = world.request("send", "fails", command={"type": "x"}, options={"on_lost": "fail"})
    assert (decision.code, world.send("held").outcome) == ("agent_lost", "applied")


def test_command_of_a_lost_agent_is_held_or_fails_by_its_option(world: World) -> None:
    world.snapshots["a"] = AgentSnapshot(score=1.0)
    world.send("held")
    world.request("send", "fails", command={"type": "x"}, options={"on_lost": "fail"})
    world.decide(decide_lost, "a", 1.0, 60.0)
    assert world.agent().liveness is Liveness.LOST
    assert (world.status("held"), world.status("fails"), queue_of(world)) == ("queued", "failed", ["held"])


def test_outcome_of_a_command_that_was_not_sent_to_the_agent_is_dead_lettered(world: World) -> None:
    """Neither its own agent before the dispatch nor another agent can end it."""
    world.request("send", "c1", command={"type": "x"}, options={"start_in": 60})
    assert world.respond("result", command_id="c1").code == "not_sent"
    world.send("c2")
    assert world.respond("result", "b", command_id="c2").code == "foreign_command"
    assert (world.status("c1"), world.status("c2")) == ("scheduled", "queued")


@pytest.mark.parametrize("target", [{"agent_id": "a"}, {"agent_id": None, "all": True}])
def test_a_hold_keeps_who_set_it_when_and_why(world: World, target: dict[str, Any]) -> None:
    """The last request of its kind counts, and the end of the hold clears everything."""

    def stored() -> tuple[float, str, str]:
        held = world.record() if target["agent_id"] else decode_record(HELD_TABLE, "", world.held)
        return held.held_at, held.held_by, held.hold_reason

    world.request("pause", "p1", **target, reason="quota", operator="alice@host")
    world.now += 10
    world.request("pause", "p2", **target, reason="r" * 5000, operator="bob@host")
    assert stored() == (world.now, "bob@host", truncate("r" * 5000))
    assert world.facts_of("agent_held", "fleet_held")[0]["operator"] == "alice@host"
    fleet = world.reloaded()
    assert (fleet.held if "all" in target else fleet.agents["a"]).held_by == "bob@host"
    world.request("resume", "r1", **target, operator="bob@host")
    assert stored() == (0.0, "", "")


def test_a_hold_by_an_engine_of_an_earlier_version_is_kept() -> None:
    """Its record says neither who set it nor when or why."""
    assert decode_record(HELD_TABLE, "", {"fleet": "drain"}) == Held(hold=Hold.DRAIN)
