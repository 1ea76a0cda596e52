"""A new process of an agent: the commands that the process before it has taken, and messages of that process."""

from typing import Any

import pytest

from aism_engine.domain.agents.agent import Liveness
from tests.support.model import World, queue_of


@pytest.fixture
def world() -> World:
    """The process `p1` of the agent `a`, which acknowledges commands."""
    world = World(max_attempts=3, backoff_initial=1, backoff_max=1, ack_timeout=10, timeout=100)
    start(world, "p1")
    return world


def start(world: World, instance: str, **payload: Any) -> None:  # noqa: ANN401 - payload of a registration
    """Start a process of the agent `a`: it registers."""
    world.now += 1
    world.respond("register", instance=instance, **({"type": "scribe", "capabilities": ["ack"]} | payload))


def take(world: World, command_id: str = "c1") -> None:
    """Take and acknowledge a command."""
    assert world.pop()["id"] == command_id
    world.poll_list()
    world.respond("ack", command_id=command_id)


def redeliver(world: World) -> None:
    """Let the pause before the next attempt end."""
    world.pass_time(1)
    world.dispatch()


def test_a_command_of_the_process_before_is_redelivered_at_once(world: World) -> None:
    """Its execution timeout is not awaited. Commands in the list stay there."""
    world.send("c1")
    world.send("c2")
    take(world)
    start(world, "p2")
    assert (world.status("c1"), world.status("c2"), queue_of(world)) == ("waiting", "queued", ["c2"])
    redeliver(world)
    assert queue_of(world) == ["c2", "c1"]
    record = world.command_records["c1"]
    assert (record["attempt"], record["failures"], record["restarts"]) == ("2", "0", "1")
    assert [(fact["code"], fact["command_id"]) for fact in world.facts_of("command_retried")] == [
        ("agent_restarted", "c1")
    ]


def test_a_command_of_an_agent_that_does_not_acknowledge_fails(world: World) -> None:
    """It is never sent twice. The new process gets no `cancel`: it does not work on the command."""
    start(world, "p2", capabilities=[])
    world.send("c1")
    world.pop()
    world.poll_list()
    start(world, "p3", capabilities=[])
    assert (world.status("c1"), world.command_records["c1"]["code"]) == ("failed", "agent_restarted")
    assert queue_of(world) == []
    assert [event["code"] for event in world.events("errors")] == ["agent_restarted"]


@pytest.mark.parametrize("instances", [("p1", "p1"), ("p1", None), (None, "p2")])
def test_only_another_instance_proves_a_restart(world: World, instances: tuple[str | None, str | None]) -> None:
    for instance in instances:
        world.respond("register", type="scribe", capabilities=["ack"], instance=instance)
        if instance == instances[0] and "c1" not in world.command_records:
            world.send("c1")
            take(world)
    assert world.status("c1") == "acked"


def test_a_delivery_that_may_be_of_the_new_process_is_left_to_the_ack_timeout(world: World) -> None:
    """The new process may pop as soon as it has pushed its registration, before the engine applies that."""
    world.send("c1")
    world.pop()
    world.poll_list()
    world.now -= 1  # the registration was in the queue when the delivery was measured
    start(world, "p2")
    assert world.status("c1") == "delivered"
    world.pass_time(10)
    assert [fact["code"] for fact in world.facts_of("command_retried")] == ["not_acknowledged"]


def test_a_restart_is_recognised_by_the_next_leader(world: World) -> None:
    world.send("c1")
    take(world)
    world.fleet = world.reloaded()
    start(world, "p2")
    assert world.status("c1") == "waiting"


def test_restarts_do_not_use_up_the_attempts(world: World) -> None:
    """Only unacknowledged attempts and errors do."""
    world.send("c1")
    for number in range(2, 12):
        take(world)
        start(world, f"p{number}")
        redeliver(world)
    for _ in range(3):
        assert world.status("c1") == "queued"
        take(world)
        world.respond("error", command_id="c1", code="busy", retryable=True)
        redeliver(world)
    assert (world.status("c1"), world.command_records["c1"]["code"]) == ("dead", "attempts_exhausted")
    assert world.command_records["c1"]["attempt"] == "13"


def test_a_command_that_ends_its_agent_each_time_ends(world: World) -> None:
    """After the restarts that are free, each one counts."""
    world.send("c1")
    for number in range(2, 100):
        if world.status("c1") == "dead":
            break
        take(world)
        start(world, f"p{number}")
        redeliver(world)
    assert (world.status("c1"), world.command_records["c1"]["attempt"]) == ("dead", "23")


def test_a_command_with_one_attempt_is_not_redelivered_after_a_restart(world: World) -> None:
    world.request("send", "c1", command={"type": "x"}, options={"max_attempts": 1})
    take(world)
    start(world, "p2")
    redeliver(world)
    assert (world.status("c1"), queue_of(world)) == ("dead", [])


def test_a_command_that_a_stopping_agent_gives_back_does_not_use_up_an_attempt(world: World) -> None:
    """The agent reports `agent_stopped`, as the Python agent does when it is stopped."""
    world.send("c1")
    take(world)
    world.respond("error", command_id="c1", code="agent_stopped", retryable=True)
    record = world.command_records["c1"]
    assert (record["status"], record["failures"], record["restarts"]) == ("waiting", "0", "1")


@pytest.mark.parametrize("kind", ["goodbye", "heartbeat"])
def test_a_late_message_of_an_earlier_process_does_not_move_the_new_one(world: World, kind: str) -> None:
    """It is no sign of life, either. It gets its reply."""
    start(world, "p2")
    world.respond("state_transition", target="inbox", instance="p2")
    heard_at = world.fleet.last_message_at["a"]
    world.now += 5
    decision = world.respond(kind, instance="p1", id="m", reply=True)
    assert (decision.outcome, world.agent().state, world.agent().liveness) == ("late", "inbox", Liveness.UNKNOWN)
    assert (world.reply("m", "a")["ok"], world.reply("m", "a")["state"]) == (True, "inbox")
    assert world.fleet.last_message_at["a"] == heard_at


@pytest.mark.parametrize("instance", ["p2", None])
def test_a_goodbye_of_the_process_itself_or_without_an_instance_counts(world: World, instance: str | None) -> None:
    start(world, "p2")
    world.respond("goodbye", instance=instance)
    assert world.agent().liveness is Liveness.LEFT


def test_a_heartbeat_of_an_earlier_process_does_not_bring_back_a_lost_agent(world: World) -> None:
    """Any process that registers does."""
    start(world, "p2")
    world.respond("goodbye", instance="p2")
    world.respond("heartbeat", instance="p1")
    assert world.agent().liveness is Liveness.LEFT
    start(world, "p3")
    assert world.agent().liveness is Liveness.UNKNOWN
