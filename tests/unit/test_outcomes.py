"""Responses about commands: ack, progress, result, error, and responses after the end."""

import json

import pytest

from aism_engine.domain.text import message_digest
from tests.support.model import AT, World, registered_world


@pytest.fixture
def scribe() -> World:
    """A registered agent `a` in its inbox."""
    return registered_world()


def test_command_goes_from_queued_to_succeeded(scribe: World) -> None:
    """Every step is recorded, and the deadline ends with the command."""
    scribe.send("c1", pages=3)
    assert (scribe.status("c1"), list(scribe.deadlines)) == ("queued", ["command:c1"])
    scribe.respond("ack", command_id="c1")
    assert scribe.status("c1") == "acked"
    scribe.respond("progress", command_id="c1", percent=50, note="half")
    record = scribe.command_records["c1"]
    assert (record["percent"], record["note"], record["progress_at"]) == ("50", "half", AT)
    scribe.respond("result", command_id="c1", pages=[1, 2, 3])
    assert (record := scribe.command_records["c1"])["status"] == "succeeded"
    assert (record["result"], record["ended_at"], scribe.ttls["c1"]) == (b'{"pages":[1,2,3]}', AT, 86_400)
    assert (scribe.deadlines, scribe.fleet.commands, list(scribe.fleet.command_index("a"))) == ({}, {}, [])
    events = ("command_queued", "command_delivered", "command_acked", "command_succeeded")
    assert [fact["event"] for fact in scribe.facts_of(*events)] == [
        "command_queued",
        "command_delivered",
        "command_acked",
        "command_succeeded",
    ]


def test_progress_acknowledges_a_command(scribe: World) -> None:
    """A second ack changes nothing."""
    scribe.send("c1")
    scribe.respond("progress", command_id="c1")
    assert scribe.status("c1") == "acked"
    assert scribe.respond("ack", command_id="c1").outcome == "unchanged"
    assert len(scribe.facts_of("command_acked")) == 1


def test_outcome_without_an_ack_ends_a_command(scribe: World) -> None:
    """An agent that knows only the first nine keys never acks."""
    scribe.send("c1")
    scribe.send("c2")
    scribe.respond("result", command_id="c1")
    scribe.respond("error", command_id="c2", code="disk_full", message="no room left")
    assert (scribe.status("c1"), scribe.status("c2")) == ("succeeded", "failed")
    record = scribe.command_records["c2"]
    assert (record["code"], record["reason"]) == ("disk_full", "no room left")
    assert [(event["code"], event["command_id"]) for event in scribe.events("errors")] == [("disk_full", "c2")]


def test_error_without_a_command_is_recorded_and_published(scribe: World) -> None:
    """No command ends."""
    scribe.send("c1")
    scribe.respond("error", code="low_on_memory")
    assert scribe.status("c1") == "queued"
    assert scribe.facts_of("agent_error") == [
        {"event": "agent_error", "agent_id": "a", "code": "low_on_memory", "reason": "low_on_memory"}
    ]
    assert [event["code"] for event in scribe.events("errors")] == ["low_on_memory"]


def test_oversized_result_is_kept_as_digest_and_size() -> None:
    world = World(max_result_bytes=20)
    world.respond("register", type="scribe")
    for command_id, text in (("c1", "x" * 8), ("c2", "x" * 9)):
        world.send(command_id)
        world.respond("result", command_id=command_id, payload={"text": text})
    assert world.command_records["c1"]["result"] == b'{"text":"xxxxxxxx"}'
    record, whole = world.command_records["c2"], b'{"text":"xxxxxxxxx"}'
    assert len(whole) == 20
    assert record["result"] == whole
    world.send("c3")
    world.respond("result", command_id="c3", payload={"text": "x" * 10})
    record, whole = world.command_records["c3"], b'{"text":"xxxxxxxxxx"}'
    assert ("result" in record, record["result_digest"], record["result_size"]) == (False, message_digest(whole), "21")
    assert record["status"] == "succeeded"


def test_result_of_a_state_transition_changes_the_state(scribe: World) -> None:
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.respond("result", id="m5", command_id="c1")
    assert (scribe.agent().state, scribe.agent().declared, scribe.status("c1")) == ("deep_work",) * 2 + ("succeeded",)
    assert [(e["old_state"], e["new_state"], e["cause"]) for e in scribe.events("state_changes")] == [
        ("inbox", "deep_work", "m5")
    ]
    assert len(scribe.facts_of("command_succeeded")) == 1


def test_result_whose_transition_is_no_longer_allowed_fails_the_command(scribe: World) -> None:
    """The state does not change."""
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.respond("state_transition", target="idle")
    decision = scribe.respond("result", id="m5", reply=True, command_id="c1")
    assert (decision.outcome, decision.code) == ("refused", "not_allowed")
    assert (scribe.agent().state, scribe.status("c1")) == ("idle", "failed")
    assert scribe.command_records["c1"]["code"] == "not_allowed"
    assert scribe.reply("m5", "a")["error"]["details"]["current"] == "idle"


def test_result_after_the_state_change_is_a_duplicate(scribe: World) -> None:
    """The state change has already ended the command."""
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.respond("state_transition", target="deep_work")
    assert (scribe.status("c1"), scribe.respond("result", command_id="c1").outcome) == ("succeeded", "duplicate")
    assert len(scribe.events("state_changes")) == 1


def test_state_change_ends_every_command_that_asked_for_it(scribe: World) -> None:
    """Commands for other states, or of other types, stay open."""
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.send("c2", kind="state_transition", target="deep_work")
    scribe.send("c3", kind="state_transition", target="idle")
    scribe.send("c4")
    scribe.respond("state_transition", target="deep_work")
    assert [scribe.status(f"c{n}") for n in (1, 2, 3, 4)] == ["succeeded", "succeeded", "queued", "queued"]
    assert list(scribe.fleet.command_index("a")) == ["c3", "c4"]


def test_state_transition_ends_the_command_that_it_names(scribe: World) -> None:
    """An allowed transition succeeds, a refused one fails with its reason."""
    scribe.send("c1")
    scribe.send("c2")
    scribe.respond("state_transition", command_id="c1", target="deep_work")
    scribe.respond("state_transition", command_id="c2", target="logout")
    assert (scribe.status("c1"), scribe.status("c2"), scribe.agent().state) == ("succeeded", "failed", "deep_work")
    assert scribe.command_records["c2"]["code"] == "not_allowed"


@pytest.mark.parametrize("end", ["result", "error", "expired"])
@pytest.mark.parametrize("late", ["ack", "progress", "result", "error"])
def test_response_after_the_end_of_a_command_changes_nothing(scribe: World, end: str, late: str) -> None:
    """It is late, duplicate or contradictory, and the reply says that the command has ended."""
    scribe.send("c1")
    if end == "expired":
        scribe.pass_time(3600)
    else:
        scribe.respond(end, command_id="c1", **({"code": "x"} if end == "error" else {}))
    before = (dict(scribe.command_records["c1"]), scribe.agent().state, len(scribe.facts))
    fields = {"code": "y"} if late == "error" else {}
    decision = scribe.respond(late, id="m9", reply=True, command_id="c1", **fields)
    if end == "expired" or late in {"ack", "progress"}:
        assert decision.outcome == "late"
    else:
        assert decision.outcome == ("duplicate" if end == late else "contradictory")
    assert (scribe.command_records["c1"], scribe.agent().state, len(scribe.facts)) == before
    assert scribe.reply("m9", "a")["error"]["code"] == "command_ended"


def test_state_transition_for_an_ended_command_still_changes_the_state(scribe: World) -> None:
    scribe.send("c1")
    scribe.respond("error", command_id="c1", code="x")
    scribe.respond("state_transition", command_id="c1", target="deep_work")
    assert (scribe.status("c1"), scribe.agent().state) == ("failed", "deep_work")


def test_every_fact_names_its_actor() -> None:
    world = World()
    world.respond("register", type="scribe")
    world.send("c1")
    world.pass_time(3600)
    doing = {fact.event: fact.by for fact in world.facts}
    expected = {"agent_registered": "agent", "command_queued": "operator", "command_expired": "engine"}
    assert {event: doing[event] for event in expected} == expected


@pytest.mark.parametrize("kind", ["ack", "progress", "result", "error", "state_transition"])
def test_response_to_an_unknown_command_is_dead_lettered(scribe: World, kind: str) -> None:
    """With its code and its original bytes. The state does not change."""
    fields = {"error": {"code": "y"}, "state_transition": {"target": "deep_work"}}.get(kind, {})
    decision = scribe.respond(kind, id="m9", reply=True, command_id="c9", **fields)
    assert (decision.outcome, decision.code) == ("dead_lettered", "unknown_command")
    letter = scribe.dead_letters[0]
    assert (letter.code, letter.agent_id, json.loads(letter.raw)["id"]) == ("unknown_command", "a", "m9")
    assert (letter.size, letter.digest) == (len(letter.raw), message_digest(letter.raw))
    assert scribe.reply("m9", "a")["error"]["code"] == "unknown_command"
    assert scribe.agent().state == "inbox"


@pytest.mark.parametrize("kind", ["ack", "progress", "result", "error", "state_transition"])
def test_response_to_a_command_of_another_agent_is_dead_lettered(scribe: World, kind: str) -> None:
    """The command stays open."""
    scribe.send("c1")
    fields = {"error": {"code": "y"}, "state_transition": {"target": "deep_work"}}.get(kind, {})
    decision = scribe.respond(kind, "thief", command_id="c1", **fields)
    assert (decision.outcome, decision.code) == ("dead_lettered", "foreign_command")
    assert (scribe.status("c1"), scribe.agent().state) == ("queued", "inbox")
