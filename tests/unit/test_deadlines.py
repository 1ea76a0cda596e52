"""Deadlines of commands: the time to live, and deadlines that no longer apply."""

import pytest

from aism_engine.domain import effects as fx
from aism_engine.domain.commands.deadlines import KeyKind, decide_deadline
from aism_engine.domain.draft import Draft
from tests.support.model import NOW, World, queue_of, registered_world


@pytest.fixture
def world() -> World:
    """A registered agent `a` in its inbox."""
    return registered_world()


def test_command_expires_after_its_ttl(world: World) -> None:
    """The outcome is recorded, the copy in the agent's list is removed, and an event reports it."""
    world.send("c1")
    world.send("c2")
    world.pop()
    world.respond("ack", command_id="c1")
    (first, _) = world.pass_time(3600)
    assert fx.ExpectDeadline("command:c1", NOW + 3600) in first.effects
    record = world.command_records["c1"]
    assert (record["status"], record["code"], record["ended_at"]) == ("expired", "expired", "2027-01-15T09:00:00.000Z")
    assert (queue_of(world), world.deadlines, list(world.fleet.command_index("a"))) == (["c1.cancel"], {}, [])
    errors = [(event["code"], event["command_id"]) for event in world.events("errors")]
    assert errors == [("expired", "c1"), ("expired", "c2")]
    assert [fact["cause"] for fact in world.facts_of("command_expired")] == ["command:c1", "command:c2"]


@pytest.mark.parametrize("key", ["record", "list"])
def test_command_with_a_key_of_the_wrong_type_ends_with_that_reason(world: World, key: KeyKind) -> None:
    world.send("c1")
    decision = decide_deadline(world.draft(), world.policy, "command:c1", NOW, wrong_type_keys=frozenset({key}))
    (fact,) = (effect for effect in decision.effects if isinstance(effect, fx.Fact))
    assert (fact.event, fact.reason) == ("command_expired", f"cannot continue: wrong Redis type of its {key}")


def test_command_does_not_expire_early(world: World) -> None:
    world.send("c1")
    assert world.pass_time(3599.999) == []
    assert world.status("c1") == "queued"


@pytest.mark.parametrize("member", ["command:c1", "command:c9", "dwell:a", "", "nonsense"])
def test_deadline_of_ended_or_unknown_command_is_removed(world: World, member: str) -> None:
    world.send("c1")
    world.respond("result", command_id="c1")
    before = len(world.facts)
    world.deadlines[member] = NOW
    assert world.decide_deadline(member, NOW).outcome == "late"
    assert (world.deadlines, world.status("c1"), len(world.facts)) == ({}, "succeeded", before)


def test_expiry_is_decided_from_the_fleet_and_not_from_a_stale_record(world: World) -> None:
    """A record that was read before the result was committed says that the command is open."""
    world.send("c1")
    stale = world.draft().lookups
    world.respond("result", command_id="c1")
    decision = decide_deadline(Draft(world.fleet, world.now, stale), world.policy, "command:c1", NOW + 3600)
    assert decision.outcome == "late"


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"[" * 100_000])
def test_command_whose_body_cannot_be_sent_again_fails_with_that_reason(world: World, body: bytes) -> None:
    """Another client has damaged its record. Without the check, its deadline would stay due."""
    world.respond("register", type="scribe", capabilities=["ack"])
    world.send("c1")
    world.pop()
    world.poll_list()
    world.command_records["c1"]["body"] = body
    world.pass_time(30)  # the ack timeout
    world.pass_time(1)  # the pause before the second attempt
    assert (world.status("c1"), world.command_records["c1"]["code"]) == ("failed", "record_damaged")
    assert world.deadlines == {}
