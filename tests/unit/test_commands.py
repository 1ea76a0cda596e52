"""Commands: steps, delivery, timeouts and retries."""

import json

import pytest

from aism_engine.clock import iso
from aism_engine.domain.commands.command import ENDED, OPEN, Command, Status
from aism_engine.domain.commands.delivery import decide_deliveries
from aism_engine.domain.commands.retry import attempt_pause_s
from aism_engine.domain.policy import CommandsSettings
from tests.support.model import AT, NOW, World, queue_of


@pytest.fixture
def world() -> World:
    """A registered agent `a` that acknowledges, with a credit of two commands."""
    world = World(max_in_flight=2, max_attempts=2, ack_timeout=10, timeout=100, backoff_initial=1)
    world.respond("register", type="scribe", capabilities=["ack"])
    world.facts.clear()
    return world


def test_every_end_is_final_and_reachable_from_every_open_status() -> None:
    command = Command(command_id="c", agent_id="a", type="x", accepted_at=NOW, expires_at=NOW + 1)
    for status in Status:
        command.status = status
        reachable = {other for other in Status if command.may_become(other)}
        assert (not reachable) if status in ENDED else reachable >= ENDED
        assert command.open == (status in OPEN)


def test_step_that_the_status_does_not_allow_raises() -> None:
    command = Command(command_id="c", agent_id="a", type="x", status=Status.FAILED, accepted_at=NOW, expires_at=NOW + 1)
    with pytest.raises(ValueError, match="cannot go from failed to acked"):
        command.acknowledge(NOW)


def test_pause_before_an_attempt_has_full_jitter_and_is_repeatable() -> None:
    """It is drawn from the id of the command, so that a decision can be made again."""
    pauses, policy = [], CommandsSettings(backoff_initial=1.0, backoff_max=60.0)
    for number in range(200):
        command = Command(command_id=f"c{number}", agent_id="a", type="x", accepted_at=NOW, expires_at=NOW, attempt=3)
        pauses.append(attempt_pause_s(command, policy))
        assert pauses[-1] == attempt_pause_s(command, policy)
    assert (0 <= min(pauses) < 0.5, 3.5 < max(pauses) <= 4.0) == (True, True)
    command.attempt = 1000
    assert attempt_pause_s(command, policy) <= 60.0


def test_command_that_left_the_list_is_delivered(world: World) -> None:
    """The oldest element of the list tells: what was pushed before it has been popped."""
    world.send("c1")
    world.send("c2")
    assert (world.poll_list().outcome, world.status("c1")) == ("unchanged", "queued")
    assert world.pop()["id"] == "c1"
    world.now += 1
    assert (world.poll_list().outcome, world.status("c1"), world.status("c2")) == ("applied", "delivered", "queued")
    assert world.command_records["c1"]["delivered_at"] == iso(NOW + 1)
    world.pop()
    world.poll_list()
    assert [fact["command_id"] for fact in world.facts_of("command_delivered")] == ["c1", "c2"]


def test_command_pushed_after_the_list_was_read_is_not_marked_as_delivered(world: World) -> None:
    """An empty list proves nothing about commands that were pushed after it was read."""
    until = world.fleet.last_seq
    world.send("c1")
    draft = world.draft()
    world.commit(draft, decide_deliveries(draft, world.policy, "a", b"", until))
    assert world.status("c1") == "queued"


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_delivery_is_detected_in_both_formats(world: World, codec: str) -> None:
    """A foreign element in the list proves nothing."""
    world.respond("register", type="scribe", capabilities=["ack"], codec=codec)
    world.send("c1")
    world.send("c2")
    world.pop()
    world.poll_list()
    assert (world.status("c1"), world.status("c2")) == ("delivered", "queued")
    world.lists["a"].append(b"by hand")
    assert world.poll_list().outcome == "unchanged"


def test_unacked_command_is_redelivered_under_the_same_id(world: World) -> None:
    """The ack timeout starts at the measured pop. The second copy carries its attempt."""
    world.send("c1")
    world.pass_time(1000)
    assert world.status("c1") == "queued"  # it was not popped: only its time to live counts
    world.pop()
    world.poll_list()
    world.pass_time(10)
    assert (world.status("c1"), queue_of(world)) == ("waiting", [])
    world.pass_time(1)
    world.dispatch()
    assert world.pop() == {"id": "c1", "type": "work", "payload": {}, "timestamp": AT, "attempt": 2}
    world.poll_list()
    world.respond("result", command_id="c1")
    assert (world.status("c1"), world.command_records["c1"]["attempt"]) == ("succeeded", "2")


def test_unacked_command_is_dead_lettered_after_the_last_attempt(world: World) -> None:
    """The dead letter has the body, and can be replayed."""
    world.send("c1", pages=3)
    for _ in range(2):
        world.dispatch()
        world.pop()
        world.poll_list()
        world.pass_time(10)
        world.pass_time(1)
    assert (world.status("c1"), world.command_records["c1"]["code"]) == ("dead", "attempts_exhausted")
    (letter,) = world.dead_letters
    assert (letter.source, letter.agent_id, json.loads(letter.raw)["attempt"]) == ("commands", "a", 2)
    world.lists["a"].clear()
    assert world.request("replay", "r1", None, dead_letter_id="1-0").outcome == "applied"
    assert (world.dead_letters, world.command_records["r1"]["replay_of"], queue_of(world)) == ([], "c1", ["r1"])


def test_replayed_command_has_the_options_of_the_original(world: World) -> None:
    """This holds as long as the record of the original is kept."""
    options = {"ttl": 77, "ack_timeout": 7, "timeout": 8, "max_attempts": 1, "priority": "high", "on_lost": "fail"}
    world.request("send", "c1", command={"type": "work", "payload": {}}, options=options)
    world.pop()
    world.poll_list()
    world.pass_time(7)
    world.pass_time(1)
    assert world.status("c1") == "dead"
    world.request("replay", "r1", None, dead_letter_id="1-0")
    first, second = (world.command_records[command_id] for command_id in ("c1", "r1"))
    names = ("ack_timeout", "timeout", "max_attempts", "priority", "on_lost")
    assert [second[name] for name in names] == [first[name] for name in names]
    assert world.fleet.commands["r1"].expires_at == world.now + 77


def test_time_to_live_of_a_replayed_command_does_not_include_the_start_delay(world: World) -> None:
    options = {"ttl": 77, "start_in": 1000, "max_attempts": 1}
    world.request("send", "c1", command={"type": "work", "payload": {}}, options=options)
    assert world.command_records["c1"]["start_at"] == iso(world.now + 1000)
    world.pass_time(1000)
    world.dispatch()
    world.pop()
    world.poll_list()
    world.pass_time(10)
    world.pass_time(1)
    assert world.status("c1") == "dead"
    world.request("replay", "r1", None, dead_letter_id="1-0")
    assert world.fleet.commands["r1"].expires_at == world.now + 77


def test_command_for_an_agent_without_acks_is_never_redelivered(world: World) -> None:
    """It fails after its execution timeout."""
    world.respond("register", type="scribe")
    world.send("c1")
    world.pop()
    world.poll_list()
    world.pass_time(99)
    assert world.status("c1") == "delivered"
    world.pass_time(1)
    assert (world.status("c1"), world.command_records["c1"]["code"]) == ("failed", "timeout")
    assert queue_of(world) == ["c1.cancel"]


def test_progress_restarts_the_execution_timeout(world: World) -> None:
    """The time to live is still a limit."""
    world.send("c1")
    world.pop()
    world.respond("ack", command_id="c1")
    for _ in range(30):
        world.pass_time(90)
        world.respond("progress", command_id="c1")
    assert world.status("c1") == "acked"
    world.pass_time(100)
    assert world.command_records["c1"]["code"] == "timeout"


@pytest.mark.parametrize(("retryable", "after"), [(True, "waiting"), (False, "failed"), (None, "failed")])
def test_retryable_error_leads_to_another_attempt(world: World, retryable: bool | None, after: str) -> None:  # noqa: FBT001
    """Failures are counted apart from attempts. Any other error ends the command."""
    world.send("c1")
    world.pop()
    world.respond(
        "error", command_id="c1", payload={"code": "busy"} | ({} if retryable is None else {"retryable": retryable})
    )
    assert (world.status("c1"), world.lists["a"]) == (after, [])
    if retryable:
        record = world.command_records["c1"]
        assert (record["failures"], record["attempt"]) == ("1", "1")


def test_undelivered_command_counts_from_its_start_or_its_retry(world: World) -> None:
    """A command in a list does not count from its acceptance if it could not be delivered before."""
    world.request("send", "c1", command={"type": "x"}, options={"start_in": 60})
    world.pass_time(60)
    world.dispatch()
    assert (world.status("c1"), world.fleet.commands["c1"].undelivered_since) == ("queued", NOW + 60)
    world.pop()
    world.poll_list()
    world.pass_time(10)
    world.pass_time(1)
    world.dispatch()
    assert (world.status("c1"), world.fleet.commands["c1"].undelivered_since) == ("queued", NOW + 71)


def test_scheduled_command_is_queued_at_its_start(world: World) -> None:
    """Its time to live counts from its start."""
    world.request("send", "c1", command={"type": "x"}, options={"start_in": 60, "ttl": 30})
    assert (world.status("c1"), queue_of(world), world.deadlines) == ("scheduled", [], {"command:c1": NOW + 60})
    world.pass_time(60)
    world.dispatch()
    assert (world.status("c1"), queue_of(world), world.deadlines) == ("queued", ["c1"], {"command:c1": NOW + 90})
    world.pass_time(30)
    assert (world.status("c1"), queue_of(world)) == ("expired", [])
