"""The laws of what agents say: who is taken in, which states are allowed, what becomes of commands."""

import json

import msgspec
import pytest

from aism_engine.clock import iso
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentSnapshot, Liveness
from aism_engine.domain.text import message_digest
from tests.support.model import AT, NOW, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def scribe() -> World:
    """A registered agent `a` in its inbox."""
    world = World()
    world.respond("register", type="scribe")
    world.respond("state_transition", target="inbox")
    world.published.clear()
    world.facts.clear()
    return world


# Who is taken in


def test_an_agent_never_met_is_taken_in_whatever_it_says(world: World) -> None:
    """Type unknown, the machine open, the state unknown: nothing is asked of it."""
    assert world.respond("measurement", tokens=7).outcome == "applied"
    agent = world.agent()
    assert (agent.type, agent.registered, agent.state, agent.liveness) == ("unknown", False, "unknown", "unknown")
    assert (world.index, world.states) == ({"a"}, {"a": "unknown"})
    assert world.facts_of("agent_first_seen") == [
        {"event": "agent_first_seen", "agent_id": "a", "type": "unknown", "new_state": "unknown"}
    ]


def test_what_it_has_written_by_its_own_hand_is_kept(world: World) -> None:
    """Its type and labels from its metadata, its state from its state key, which is left alone."""
    world.snapshots["a"] = AgentSnapshot(type="architect", labels={"team": "x"}, state="thinking", score=17.0)
    world.respond("heartbeat")
    agent = world.agent()
    assert (agent.type, agent.labels, agent.state) == ("architect", {"team": "x"}, "thinking")
    assert (agent.liveness, agent.registered) == (Liveness.FRESH, False)
    assert world.states == {}


def test_without_auto_register_only_a_register_lets_in() -> None:
    """Whatever else a stranger says is buried, and it remains one."""
    world = World(auto_register=False)
    decision = world.respond("heartbeat")
    assert (decision.outcome, decision.code) == ("dead_lettered", "unknown_agent")
    assert (world.index, [letter.agent_id for letter in world.dead_letters]) == (set(), ["a"])


def test_what_strangers_only_publish_of_their_measurements_washes_no_letter_away() -> None:
    """It is refused, and the refusal counted; what they push is buried, and so is a state that they publish."""
    world = World(auto_register=False)
    decision = world.respond("measurement", tokens=1, via="pubsub")
    assert (decision.outcome, decision.code) == ("refused", "unknown_agent")
    assert (world.index, world.dead_letters) == (set(), [])
    decisions = [world.respond("measurement", tokens=1), world.respond("state_transition", target="calm", via="pubsub")]
    assert [decision.outcome for decision in decisions] == ["dead_lettered"] * 2
    assert world.respond("register", type="scribe").outcome == "applied"
    assert world.respond("heartbeat").outcome == "applied"


def test_a_full_fleet_takes_nobody_in() -> None:
    """Not even one that registers; who is known is served as before, also within one batch."""
    world = World(max_agents=1)
    world.respond("heartbeat", "a")
    for kind, fields in (("heartbeat", {}), ("register", {"type": "scribe"})):
        assert world.respond(kind, "b", **fields).code == "fleet_full"
    assert world.respond("register", "a", type="scribe").outcome == "applied"
    assert set(world.fleet.agents) == {"a"}

    world = World(max_agents=1)
    draft = world.draft()
    assert [world.decide_on(draft, "heartbeat", each).code for each in "abc"] == ["", "fleet_full", "fleet_full"]


# Registering


def test_who_registers_goes_from_initial_to_on_register(world: World) -> None:
    """The event, the fact, the record and the projection say the same."""
    world.respond("register", id="m1", type="architect", labels={"team": "x"}, capabilities=["ack"], codec="msgpack")
    agent = world.agent()
    assert (agent.type, agent.registered, agent.labels) == ("architect", True, {"team": "x"})
    assert (agent.capabilities, agent.codec, agent.state, agent.since) == (("ack",), "msgpack", "bootstrap", NOW)
    expected = {"agent_id": "a", "old_state": "offline", "new_state": "bootstrap", "cause": "m1"}
    assert world.events("state_changes") == [{**expected, "source": "engine", "timestamp": AT}]
    assert world.facts_of("state_changed") == [{"event": "state_changed", "source": "register", **expected}]
    assert (world.states["a"], world.records["a"]["state"]) == ("bootstrap", "bootstrap")
    assert world.metadata["a"] == {
        "type": "architect",
        "labels": '{"team":"x"}',
        "capabilities": '["ack"]',
        "codec": "msgpack",
        "registered_at": AT,
    }


@pytest.mark.parametrize("said_before", [False, True])
def test_a_machine_without_on_register_starts_in_its_initial_state(world: World, *, said_before: bool) -> None:
    """Also one that came from another machine, in a state that this one does not know."""
    if said_before:
        world.respond("state_transition", target="dreaming")
    world.respond("register", type="clerk")
    assert (world.agent().state, world.records["a"]["state"], world.states["a"]) == ("waiting",) * 3
    changes = [(fact["old_state"], fact["new_state"]) for fact in world.facts_of("state_changed")]
    assert changes[-1:] == ([("dreaming", "waiting")] if said_before else [])


def test_who_registers_again_starts_afresh(scribe: World) -> None:
    """A restarted agent has forgotten where it was; what it was, it says anew."""
    scribe.respond("state_transition", target="deep_work")
    scribe.respond("register", type="architect")
    assert (scribe.agent().state, scribe.agent().type, scribe.agent().capabilities) == ("bootstrap", "architect", ())


def test_registering_ends_an_absence(scribe: World) -> None:
    """Lost or gone in order, it is there again, and not where it was."""
    for away in (Liveness.LOST, Liveness.LEFT):
        agent = scribe.agent()
        agent.liveness, agent.lost_from, agent.lost_score, agent.state = away, "inbox", 5.0, "offline"
        scribe.respond("register", type="scribe")
        assert (scribe.agent().state, scribe.agent().lost_from, scribe.agent().lost_score) == ("bootstrap", None, None)
        assert scribe.agent().liveness not in {Liveness.LOST, Liveness.LEFT}


# States


def test_an_allowed_transition_is_recorded_and_published(scribe: World) -> None:
    """By the agent's own word: what it declared and what holds agree."""
    decision = scribe.respond("state_transition", id="m2", target="deep_work", context={"page": 7}, reason="a chapter")
    assert decision.outcome == "applied"
    agent = scribe.agent()
    assert (agent.state, agent.declared, agent.declared_at) == ("deep_work", "deep_work", NOW)
    expected = {"agent_id": "a", "old_state": "inbox", "new_state": "deep_work", "cause": "m2"}
    kept = {"reason": "a chapter", "details": {"context": {"page": 7}}}
    assert scribe.facts_of("state_changed") == [{"event": "state_changed", "source": "agent", **kept, **expected}]
    assert (scribe.records["a"]["reason"], scribe.records["a"]["context"]) == ("a chapter", '{"page":7}')
    assert scribe.events("state_changes") == [{**expected, "source": "engine", "timestamp": AT}]


def test_a_transition_that_is_not_allowed_changes_nothing(scribe: World) -> None:
    """It is refused in the error shape of the design; what the agent said of itself is kept as declared."""
    before = (scribe.agent().state, scribe.agent().since, scribe.states["a"])
    decision = scribe.respond("state_transition", id="m2", reply=True, target="bootstrap")
    assert (decision.outcome, decision.code) == ("refused", "not_allowed")
    assert (scribe.agent().state, scribe.agent().since, scribe.states["a"]) == before
    assert scribe.agent().declared == "bootstrap"
    assert scribe.events("state_changes") == []
    assert scribe.reply("m2", "a") == {
        "id": "m2",
        "timestamp": AT,
        "ok": False,
        "state": "inbox",
        "error": {
            "type": "transition_refused",
            "code": "not_allowed",
            "message": "inbox does not lead to bootstrap; it leads to: deep_work, distill, idle, logout, direct_io",
            "details": {
                "current": "inbox",
                "requested": "bootstrap",
                "allowed": ["deep_work", "distill", "idle", "logout", "direct_io"],
            },
            "suggestions": ["direct_io, then bootstrap"],
        },
    }
    assert [(event["code"], event["agent_id"]) for event in scribe.events("errors")] == [("not_allowed", "a")]
    assert [fact["event"] for fact in scribe.facts_of("transition_refused", "state_changed")] == ["transition_refused"]


def test_to_stay_is_no_transition(scribe: World) -> None:
    """Nothing is published, and the time since when it is there stays."""
    scribe.now += 10
    assert scribe.respond("state_transition", target="inbox").outcome == "unchanged"
    assert (scribe.agent().since, scribe.agent().declared_at) == (NOW, NOW + 10)
    assert scribe.events("state_changes") == []


def test_an_agent_that_never_registers_may_be_in_any_state(world: World) -> None:
    """What it says is recorded as it says it."""
    for target in ("thinking", "reviewing.the-7th_draft", "thinking"):
        assert world.respond("state_transition", target=target).outcome == "applied"
    assert [fact["new_state"] for fact in world.facts_of("state_changed")] == [
        "thinking",
        "reviewing.the-7th_draft",
        "thinking",
    ]


def test_without_events_a_change_is_recorded_all_the_same() -> None:
    """The audit is the record; the channel can be turned down."""
    world = World(publish_events=False)
    world.respond("register", type="scribe")
    assert (world.published, [fact["new_state"] for fact in world.facts_of("state_changed")]) == ([], ["bootstrap"])


# Second copies


def test_a_second_copy_of_a_message_has_no_effect(scribe: World) -> None:
    """Agents retry their pushes. It counts as a sign of life all the same."""
    scribe.respond("state_transition", id="m2", target="deep_work")
    scribe.respond("state_transition", id="m3", target="inbox")
    scribe.now += 5
    decision = scribe.respond("state_transition", id="m2", target="deep_work")
    assert (decision.outcome, decision.effects) == ("duplicate", [])
    assert (scribe.agent().state, scribe.fleet.last_message_at["a"]) == ("inbox", NOW + 5)


def test_a_second_copy_is_known_within_one_batch(world: World) -> None:
    """The second message of a batch sees what the first one did."""
    draft = world.draft()
    outcomes = [world.decide_on(draft, "measurement", id=each, tokens=1).outcome for each in ("m1", "m1", "m2", "m1")]
    assert outcomes == ["applied", "duplicate", "applied", "duplicate"]


def test_ids_are_each_agents_own(world: World) -> None:
    """Two agents may number their messages alike; one without an id is never a copy."""
    assert [world.respond("measurement", each, id="m1", tokens=1).outcome for each in "ab"] == ["applied", "applied"]
    assert [world.respond("measurement", tokens=1).outcome for _ in range(2)] == ["applied", "applied"]


def test_only_so_many_ids_are_remembered(world: World) -> None:
    """The memory is bounded: beyond it the oldest is forgotten, and only that one."""
    for number in range(65):
        world.respond("measurement", id=f"m{number}", tokens=1)
    assert [world.respond("measurement", id=f"m{number}", tokens=1).outcome for number in (64, 1)] == ["duplicate"] * 2
    assert world.respond("measurement", id="m0", tokens=1).outcome == "applied"


def test_what_was_buried_is_remembered_too(world: World) -> None:
    """A retried push of what was refused does not fill the dead letters."""
    assert [world.respond("ack", id="m1", command_id="c9").outcome for _ in range(2)] == ["dead_lettered", "duplicate"]
    assert len(world.dead_letters) == 1


# Commands


def test_the_life_of_a_command(scribe: World) -> None:
    """Queued, acked, with progress, succeeded; each step is on record, and its deadline ends with it."""
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
    assert (scribe.deadlines, scribe.fleet.commands, scribe.agent().open_commands) == ({}, {}, [])
    events = ("command_queued", "command_delivered", "command_acked", "command_succeeded")
    assert [fact["event"] for fact in scribe.facts_of(*events)] == [
        "command_queued",
        "command_delivered",
        "command_acked",
        "command_succeeded",
    ]


def test_any_word_on_a_command_acknowledges_it(scribe: World) -> None:
    """An agent that only reports progress has plainly got it; a second ack says nothing new."""
    scribe.send("c1")
    scribe.respond("progress", command_id="c1")
    assert scribe.status("c1") == "acked"
    assert scribe.respond("ack", command_id="c1").outcome == "unchanged"
    assert len(scribe.facts_of("command_acked")) == 1


def test_an_outcome_needs_no_ack_before_it(scribe: World) -> None:
    """An agent that knows only the channel design never acks."""
    scribe.send("c1")
    scribe.send("c2")
    scribe.respond("result", command_id="c1")
    scribe.respond("error", command_id="c2", code="disk_full", message="no room left")
    assert (scribe.status("c1"), scribe.status("c2")) == ("succeeded", "failed")
    record = scribe.command_records["c2"]
    assert (record["code"], record["reason"]) == ("disk_full", "no room left")
    assert [(event["code"], event["command_id"]) for event in scribe.events("errors")] == [("disk_full", "c2")]


def test_an_error_without_a_command_is_the_agents_own_trouble(scribe: World) -> None:
    """It is recorded and published, and no command ends."""
    scribe.send("c1")
    scribe.respond("error", code="low_on_memory")
    assert scribe.status("c1") == "queued"
    assert scribe.facts_of("agent_error") == [
        {"event": "agent_error", "agent_id": "a", "code": "low_on_memory", "reason": "low_on_memory"}
    ]
    assert [event["code"] for event in scribe.events("errors")] == ["low_on_memory"]


def test_a_result_that_is_too_large_is_named_and_not_kept() -> None:
    """The record is bounded: beyond the bound it holds the digest and the size."""
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


def test_a_result_of_a_state_transition_sets_the_state(scribe: World) -> None:
    """The agent has done what it was asked: it is where the command sent it."""
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.respond("result", id="m5", command_id="c1")
    assert (scribe.agent().state, scribe.agent().declared, scribe.status("c1")) == ("deep_work",) * 2 + ("succeeded",)
    assert [(e["old_state"], e["new_state"], e["cause"]) for e in scribe.events("state_changes")] == [
        ("inbox", "deep_work", "m5")
    ]
    assert len(scribe.facts_of("command_succeeded")) == 1


def test_a_result_whose_transition_is_no_longer_allowed_is_a_failure(scribe: World) -> None:
    """With that reason; the state stays what it was."""
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.respond("state_transition", target="idle")
    decision = scribe.respond("result", id="m5", reply=True, command_id="c1")
    assert (decision.outcome, decision.code) == ("refused", "not_allowed")
    assert (scribe.agent().state, scribe.status("c1")) == ("idle", "failed")
    assert scribe.command_records["c1"]["code"] == "not_allowed"
    assert scribe.reply("m5", "a")["error"]["details"]["current"] == "idle"


def test_a_result_sets_no_state_where_the_agent_is_there_already(scribe: World) -> None:
    """The change has answered the command before: what follows says the same again."""
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.respond("state_transition", target="deep_work")
    assert (scribe.status("c1"), scribe.respond("result", command_id="c1").outcome) == ("succeeded", "duplicate")
    assert len(scribe.events("state_changes")) == 1


def test_a_change_to_the_target_answers_every_command_that_asked_for_it(scribe: World) -> None:
    """Whoever caused it; commands to other states, or of other kinds, go on."""
    scribe.send("c1", kind="state_transition", target="deep_work")
    scribe.send("c2", kind="state_transition", target="deep_work")
    scribe.send("c3", kind="state_transition", target="idle")
    scribe.send("c4")
    scribe.respond("state_transition", target="deep_work")
    assert [scribe.status(f"c{n}") for n in (1, 2, 3, 4)] == ["succeeded", "succeeded", "queued", "queued"]
    assert scribe.agent().open_commands == ["c3", "c4"]


def test_a_state_transition_may_name_the_command_that_it_answers(scribe: World) -> None:
    """Allowed, the command has succeeded; refused, it has failed with the reason."""
    scribe.send("c1")
    scribe.send("c2")
    scribe.respond("state_transition", command_id="c1", target="deep_work")
    scribe.respond("state_transition", command_id="c2", target="logout")
    assert (scribe.status("c1"), scribe.status("c2"), scribe.agent().state) == ("succeeded", "failed", "deep_work")
    assert scribe.command_records["c2"]["code"] == "not_allowed"


@pytest.mark.parametrize("end", ["result", "error", "expired"])
@pytest.mark.parametrize("late", ["ack", "progress", "result", "error"])
def test_what_comes_after_the_end_changes_nothing(scribe: World, end: str, late: str) -> None:
    """It is late, or a second outcome, is told so if it asks, and nothing of the command, nor of the state, moves."""
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


def test_a_late_state_transition_is_a_declaration_all_the_same(scribe: World) -> None:
    """It answers a command no more, and still says where the agent is."""
    scribe.send("c1")
    scribe.respond("error", command_id="c1", code="x")
    scribe.respond("state_transition", command_id="c1", target="deep_work")
    assert (scribe.status("c1"), scribe.agent().state) == ("failed", "deep_work")


def test_every_fact_says_whose_doing_it_is() -> None:
    """The agent's, an operator's, or the engine's own."""
    world = World()
    world.respond("register", type="scribe")
    world.send("c1")
    world.pass_time(3600)
    doing = {fact.event: fact.by for fact in world.facts}
    expected = {"agent_registered": "agent", "command_queued": "operator", "command_expired": "engine"}
    assert {event: doing[event] for event in expected} == expected


@pytest.mark.parametrize("kind", ["ack", "progress", "result", "error", "state_transition"])
def test_a_command_that_does_not_exist_buries_the_message(scribe: World, kind: str) -> None:
    """With its code and the original bytes; the state of the agent is not touched."""
    fields = {"error": {"code": "y"}, "state_transition": {"target": "deep_work"}}.get(kind, {})
    decision = scribe.respond(kind, id="m9", reply=True, command_id="c9", **fields)
    assert (decision.outcome, decision.code) == ("dead_lettered", "unknown_command")
    letter = scribe.dead_letters[0]
    assert (letter.code, letter.agent_id, json.loads(letter.raw)["id"]) == ("unknown_command", "a", "m9")
    assert (letter.size, letter.digest) == (len(letter.raw), message_digest(letter.raw))
    assert scribe.reply("m9", "a")["error"]["code"] == "unknown_command"
    assert scribe.agent().state == "inbox"


@pytest.mark.parametrize("kind", ["ack", "progress", "result", "error", "state_transition"])
def test_a_command_of_another_agent_is_not_ours_to_answer(scribe: World, kind: str) -> None:
    """The message is buried and the command goes on."""
    scribe.send("c1")
    fields = {"error": {"code": "y"}, "state_transition": {"target": "deep_work"}}.get(kind, {})
    decision = scribe.respond(kind, "thief", command_id="c1", **fields)
    assert (decision.outcome, decision.code) == ("dead_lettered", "foreign_command")
    assert (scribe.status("c1"), scribe.agent().state) == ("queued", "inbox")


# The rest


def test_goodbye_leaves_in_order(scribe: World) -> None:
    """Gone is not lost: its silence is in order, its commands wait for it."""
    scribe.send("c1")
    scribe.respond("goodbye", reason="night")
    assert (scribe.agent().state, scribe.agent().liveness) == ("offline", Liveness.LEFT)
    assert (scribe.status("c1"), scribe.records["a"]["liveness"]) == ("queued", "left")
    assert scribe.facts_of("agent_left") == [{"event": "agent_left", "agent_id": "a", "reason": "night"}]


def test_who_speaks_after_a_goodbye_is_there_again(scribe: World) -> None:
    """It stays in the state it left to, until it says otherwise; a second goodbye is none."""
    scribe.respond("goodbye")
    scribe.respond("goodbye")
    assert scribe.agent().liveness == Liveness.LEFT
    scribe.respond("heartbeat")
    assert (scribe.agent().state, scribe.agent().liveness) == ("offline", Liveness.UNKNOWN)
    assert len(scribe.facts_of("agent_returned")) == 1


def test_a_message_reaches_the_inbox_of_whom_it_is_for(scribe: World) -> None:
    """In the shape of a command, and in the format that the reader asked for; one without an id is given one."""
    scribe.respond("register", "b", type="scribe", codec="msgpack")
    scribe.respond("message", id="m7", to="b", content={"chapter": 3}, thread_id="t1")
    assert msgspec.msgpack.decode(scribe.inboxes["b"][0]) == {
        "id": "m7",
        "type": "message",
        "payload": {"from": "a", "content": {"chapter": 3}, "thread_id": "t1"},
        "timestamp": AT,
    }
    scribe.respond("message", to="a", content=None)
    assert json.loads(scribe.inboxes["a"][0])["payload"] == {"from": "a", "content": None}


def test_a_message_to_nobody_is_buried(scribe: World) -> None:
    """Nobody is made up by being written to."""
    assert scribe.respond("message", to="nobody", content="x").code == "unknown_recipient"
    assert (set(scribe.fleet.agents), scribe.inboxes) == ({"a"}, {})


def test_measurements_keep_the_latest_and_are_told(scribe: World) -> None:
    """One value by name; an empty one says nothing."""
    scribe.respond("measurement", payload={"tokens": 12, "cpu": 0.5})
    scribe.respond("measurement", payload={"tokens": 13.5})
    assert scribe.respond("measurement", payload={}).outcome == "unchanged"
    assert scribe.measurements["a"] == {"tokens": 13.5, "cpu": 0.5}
    assert [event["values"] for event in scribe.events("measurements")] == [
        {"tokens": 12.0, "cpu": 0.5},
        {"tokens": 13.5},
    ]


def test_only_of_what_was_heard_on_the_channel_no_event_follows(scribe: World) -> None:
    """Whatever else an agent says of the way it took, nobody has heard it yet."""
    for via in ("pubsub", "http"):
        scribe.respond("measurement", payload={via: 1}, via=via)
    assert [event["values"] for event in scribe.events("measurements")] == [{"http": 1.0}]


def test_a_reply_says_that_it_went_well_and_where_the_agent_is(scribe: World) -> None:
    """Only if it was asked for, and only under an id; in the format that the agent reads."""
    scribe.respond("heartbeat", id="m1")
    scribe.respond("heartbeat", reply=True)
    assert scribe.replies == {}
    scribe.respond("state_transition", id="m2", reply=True, target="idle")
    assert scribe.reply("m2", "a") == {"id": "m2", "timestamp": AT, "ok": True, "state": "idle"}
    scribe.respond("register", "b", type="scribe", codec="msgpack", id="m3", reply=True)
    assert msgspec.msgpack.decode(scribe.replies["b", "m3"])["state"] == "bootstrap"


def test_a_malformed_message_is_buried_whole(world: World) -> None:
    """Bytes, reason, digest, size, and the agent where it could be read; an event and a fact say so."""
    raw = b"\x00\xff what is this?"
    decision = world.dead_letter("invalid_utf8", raw, agent_id="a")
    assert (decision.outcome, decision.code) == ("dead_lettered", "invalid_utf8")
    assert world.dead_letters == [
        fx.DeadLetter(
            code="invalid_utf8",
            reason="because",
            source="response_queue",
            raw=raw,
            digest=message_digest(raw),
            size=len(raw),
            agent_id="a",
        )
    ]
    details = {"digest": message_digest(raw), "size": len(raw)}
    assert world.events("errors") == [
        {
            "code": "invalid_utf8",
            "message": "because",
            "timestamp": AT,
            "source": "engine",
            "agent_id": "a",
            "details": details,
        }
    ]
    assert world.facts_of("dead_letter_added") == [
        {
            "event": "dead_letter_added",
            "agent_id": "a",
            "code": "invalid_utf8",
            "reason": "because",
            "details": {"source": "response_queue", **details},
        }
    ]
    assert world.fleet.agents == {}


def test_an_operators_own_type_goes_to_its_handler() -> None:
    """The handler uses the same moves as we do."""

    def sneeze(ctx, agent, response, _raw):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        ctx.record("sneezed", agent_id=agent.agent_id, reason=response.payload)

    world = World(handlers={"sneeze": sneeze})
    assert world.respond("sneeze", payload="loudly").kind == "custom"
    assert world.facts_of("sneezed") == [{"event": "sneezed", "agent_id": "a", "reason": "loudly"}]


def test_the_clock_of_the_decision_is_the_only_one(scribe: World) -> None:
    """What an agent says of the time is not even looked at."""
    scribe.now += 0.125
    scribe.respond("state_transition", timestamp="1970-01-01T00:00:00Z", target="deep_work")
    assert scribe.agent().since == NOW + 0.125
    assert scribe.records["a"]["since"] == iso(NOW + 0.125) == "2027-01-15T08:00:00.125Z"
