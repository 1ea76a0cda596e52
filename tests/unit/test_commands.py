"""The life of a command: every step by example. That any sequence of events ends it once: test_commands_laws.py."""

import json
from typing import Any

import pytest

from aism_engine.backoff import Backoff
from aism_engine.clock import iso
from aism_engine.domain.agents.agent import AgentSnapshot, Liveness
from aism_engine.domain.agents.presence import decide_lost
from aism_engine.domain.commands.command import ENDED, OPEN, Command, Status
from aism_engine.domain.commands.delivery import decide_deliveries
from tests.support.model import AT, NOW, World, queue_of


@pytest.fixture
def world() -> World:
    """A registered agent `a` that confirms, and two commands of credit."""
    world = World(max_in_flight=2, max_attempts=2, ack_timeout=10, timeout=100, backoff_initial=1)
    world.respond("register", type="scribe", capabilities=["ack"])
    world.facts.clear()
    return world


# Its steps


def test_every_end_is_final_and_every_open_status_has_a_way_on() -> None:
    """The table of steps has no dead end but the ends."""
    command = Command(command_id="c", agent_id="a", type="x", accepted_at=NOW, expires_at=NOW + 1)
    for status in Status:
        command.status = status
        reachable = {other for other in Status if command.may_become(other)}
        assert (not reachable) if status in ENDED else reachable >= ENDED
        assert command.open == (status in OPEN)


def test_a_step_that_is_not_allowed_is_an_error() -> None:
    """Whoever takes one has asked before."""
    command = Command(command_id="c", agent_id="a", type="x", status=Status.FAILED, accepted_at=NOW, expires_at=NOW + 1)
    with pytest.raises(ValueError, match="cannot go from failed to acked"):
        command.acknowledge(NOW)


def test_a_record_is_read_back_as_it_was() -> None:
    """Every field that the engine needs."""
    command = Command(
        command_id="c",
        agent_id="a",
        type="x",
        target="idle",
        status=Status.DELIVERED,
        priority="high",
        seq=7,
        attempt=2,
        failures=1,
        accepted_at=NOW,
        expires_at=NOW + 60,
        step_at=NOW + 1.25,
        on_lost="fail",
        group_id="g",
    )
    assert Command.from_record("c", command.record()) == command


def test_pause_before_an_attempt_has_full_jitter_and_is_repeatable() -> None:
    """It is drawn from the id of the command, so that a decision can be made again."""
    pauses = []
    for number in range(200):
        command = Command(command_id=f"c{number}", agent_id="a", type="x", accepted_at=NOW, expires_at=NOW, attempt=3)
        pauses.append(command.pause_s(Backoff(1.0, 60.0)))
        assert pauses[-1] == command.pause_s(Backoff(1.0, 60.0))
    assert (0 <= min(pauses) < 0.5, 3.5 < max(pauses) <= 4.0) == (True, True)
    command.attempt = 1000
    assert command.pause_s(Backoff(1.0, 60.0)) <= 60.0


# Delivered is measured


def test_delivered_is_what_is_not_in_the_list_any_more(world: World) -> None:
    """The tail tells: what was pushed before it has been taken, and nothing else."""
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


def test_what_is_pushed_after_the_look_is_not_taken_by_an_empty_list(world: World) -> None:
    """A look tells only of what had been pushed when it was made."""
    until = world.fleet.last_seq
    world.send("c1")
    draft = world.draft()
    world.commit(draft, decide_deliveries(draft, world.policy, "a", b"", until))
    assert world.status("c1") == "queued"


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_the_tail_is_known_in_either_format(world: World, codec: str) -> None:
    """And a body that is none of ours tells nothing."""
    world.respond("register", type="scribe", capabilities=["ack"], codec=codec)
    world.send("c1")
    world.send("c2")
    world.pop()
    world.poll_list()
    assert (world.status("c1"), world.status("c2")) == ("delivered", "queued")
    world.lists["a"].append(b"by hand")
    assert world.poll_list().outcome == "unchanged"


# Its clocks


def test_without_an_acknowledgement_it_is_sent_again_under_the_same_id(world: World) -> None:
    """The clock starts at the measured pop; the second copy says which attempt it is."""
    world.send("c1")
    world.pass_time(1000)
    assert world.status("c1") == "queued"  # it was not taken: no clock runs but its time to live
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


def test_after_the_last_attempt_it_is_dead_and_kept(world: World) -> None:
    """With its body, and the reason: it can be replayed."""
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
    assert world.request("replay", "r1", None, dead_letter_id="1-0").outcome == "applied"
    assert (world.dead_letters, world.command_records["r1"]["replay_of"], queue_of(world)) == ([], "c1", ["r1"])


def test_a_replay_has_the_options_of_what_it_repeats(world: World) -> None:
    """As long as the record of that is kept; otherwise it has those of the settings."""
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


def test_who_does_not_confirm_is_never_sent_a_command_twice(world: World) -> None:
    """After the time of execution it has failed."""
    world.respond("register", type="scribe")
    world.send("c1")
    world.pop()
    world.poll_list()
    world.pass_time(99)
    assert world.status("c1") == "delivered"
    world.pass_time(1)
    assert (world.status("c1"), world.command_records["c1"]["code"], queue_of(world)) == ("failed", "timeout", [])


def test_progress_gives_more_time(world: World) -> None:
    """The clock of the execution starts anew, up to the time to live."""
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
def test_an_error_that_may_pass_is_tried_again(world: World, retryable: bool | None, after: str) -> None:  # noqa: FBT001
    """Failures are counted apart from attempts; any other error ends it at once."""
    world.send("c1")
    world.pop()
    world.respond(
        "error", command_id="c1", payload={"code": "busy"} | ({} if retryable is None else {"retryable": retryable})
    )
    assert (world.status("c1"), world.lists["a"]) == (after, [])
    if retryable:
        record = world.command_records["c1"]
        assert (record["failures"], record["attempt"]) == ("1", "1")


def test_a_scheduled_command_starts_when_it_is_time(world: World) -> None:
    """Its time to live counts from there."""
    world.request("send", "c1", command={"type": "x"}, options={"start_in": 60, "ttl": 30})
    assert (world.status("c1"), queue_of(world), world.deadlines) == ("scheduled", [], {"command:c1": NOW + 60})
    world.pass_time(60)
    world.dispatch()
    assert (world.status("c1"), queue_of(world), world.deadlines) == ("queued", ["c1"], {"command:c1": NOW + 90})
    world.pass_time(30)
    assert (world.status("c1"), queue_of(world)) == ("expired", [])


# Flow


def test_what_exceeds_the_credit_waits_in_the_order_of_priority(world: World) -> None:
    """And comes as soon as there is room."""
    for number, priority in enumerate(["normal", "normal", "low", "normal", "high"]):
        world.request("send", f"c{number}", command={"type": "x"}, options={"priority": priority})
    assert (queue_of(world), world.dispatch().outcome) == (["c0", "c1"], "unchanged")
    for done in ("c0", "c1", "c4", "c3"):
        assert world.pop()["id"] == done
        world.respond("result", command_id=done)
        world.dispatch()
    assert queue_of(world) == ["c2"]


def test_who_does_not_confirm_owes_nothing_once_it_has_taken_one(world: World) -> None:
    """Its credit is what lies in its list."""
    world.respond("register", type="scribe")
    for number in range(4):
        world.send(f"c{number}")
    world.pop()
    world.poll_list()
    world.dispatch()
    assert queue_of(world) == ["c1", "c2"]


@pytest.mark.parametrize("target", [{"agent_id": "a"}, {"select": "type=scribe"}, {"all": True}])
def test_a_pause_holds_on_every_path(world: World, target: dict[str, Any]) -> None:
    """New, scheduled, and to be sent again; it survives the next leader, and a resume lets them go."""
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


def test_who_is_drained_gets_what_was_accepted_and_no_more(world: World) -> None:
    """A refusal says why."""
    for number in range(3):
        world.send(f"c{number}")
    world.request("drain", "d1")
    assert (world.send("c9").code, world.reply("c9")["error"]["code"]) == ("draining", "draining")
    world.pop()
    world.respond("result", command_id="c0")
    world.dispatch()
    assert queue_of(world) == ["c1", "c2"]


# Taking back


def test_cancelled_in_its_list_it_is_taken_out(world: World) -> None:
    """Its agent never sees it."""
    world.send("c1")
    assert world.request("cancel", "x1", None, command_id="c1").outcome == "applied"
    assert (world.status("c1"), queue_of(world), world.command_records["c1"]["code"]) == ("cancelled", [], "cancelled")
    world.request("cancel", "x2", None, command_id="c1")
    assert world.reply("x2")["error"]["code"] == "command_ended"


@pytest.mark.parametrize("seen", [True, False])
def test_cancelled_when_it_is_taken_its_agent_is_told(world: World, seen: bool) -> None:  # noqa: FBT001
    """Whether we have seen that it was taken, or not."""
    world.send("c1")
    world.pop()
    if seen:
        world.poll_list()
    world.request("cancel", "x1", None, command_id="c1", reason="changed my mind")
    told = world.pop()
    assert (told["type"], told["payload"], world.status("c1")) == ("cancel", {"command_id": "c1"}, "cancelled")
    assert world.respond("result", command_id="c1").outcome == "late"


def sent_again(world: World) -> None:
    """Send c1, have it taken, and sent again: its agent has one copy, the list the other."""
    world.send("c1")
    world.pop()
    world.poll_list()
    world.pass_time(10)
    world.pass_time(60)
    world.dispatch()
    assert (queue_of(world), world.status("c1")) == (["c1"], "queued")


def test_cancelled_with_a_second_copy_in_the_list_its_agent_is_told_of_the_first(world: World) -> None:
    """The copy in the list is taken out, and who works on the other learns that it is called off."""
    sent_again(world)
    world.request("cancel", "x1", None, command_id="c1")
    told = world.pop()
    assert (told["type"], queue_of(world), world.status("c1")) == ("cancel", [], "cancelled")


@pytest.mark.parametrize("kind", ["ack", "progress"])
def test_a_late_acknowledgement_takes_the_second_copy_out_of_the_list(world: World, kind: str) -> None:
    """Or it would be done twice, and lie there when the command has long ended."""
    sent_again(world)
    world.respond(kind, command_id="c1")
    assert (queue_of(world), world.status("c1")) == ([], "acked")


def test_who_is_lost_already_is_not_given_what_is_to_fail_when_it_is_lost(world: World) -> None:
    """It would wait for one who may never return; what is to be held is accepted."""
    world.snapshots["a"] = AgentSnapshot(score=1.0)
    draft = world.draft()
    world.commit(draft, decide_lost(draft, world.policy, "a", 1.0, 60.0))
    decision = world.request("send", "fails", command={"type": "x"}, options={"on_lost": "fail"})
    assert (decision.code, world.send("held").outcome) == ("agent_lost", "applied")


def test_when_its_agent_is_lost_it_is_held_or_fails(world: World) -> None:
    """As its sender wanted."""
    world.snapshots["a"] = AgentSnapshot(score=1.0)
    world.send("held")
    world.request("send", "fails", command={"type": "x"}, options={"on_lost": "fail"})
    draft = world.draft()
    world.commit(draft, decide_lost(draft, world.policy, "a", 1.0, 60.0))
    assert world.agent().liveness is Liveness.LOST
    assert (world.status("held"), world.status("fails"), queue_of(world)) == ("queued", "failed", ["held"])


def test_an_outcome_of_what_was_never_given_is_refused(world: World) -> None:
    """Neither by its own agent, before it was handed out, nor by another."""
    world.request("send", "c1", command={"type": "x"}, options={"start_in": 60})
    assert world.respond("result", command_id="c1").code == "not_sent"
    world.send("c2")
    assert world.respond("result", "b", command_id="c2").code == "foreign_command"
    assert (world.status("c1"), world.status("c2")) == ("scheduled", "queued")
