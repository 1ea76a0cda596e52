"""Credit, priority, holds, cancellation, and lost agents."""

from typing import Any

import pytest

from aism_engine.domain.agents.agent import AgentSnapshot, Liveness
from aism_engine.domain.agents.liveness import decide_lost
from tests.support.model import World, queue_of


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
    assert (notice["type"], notice["payload"], world.status("c1")) == ("cancel", {"command_id": "c1"}, "cancelled")
    assert world.respond("result", command_id="c1").outcome == "late"


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
