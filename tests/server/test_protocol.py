"""The protocol as a plain Redis client uses it: the four flows of the channel design, and what the engine adds."""

import json
from functools import partial

import msgspec
import pytest

from aism_engine.clock import iso
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine
from tests.support.plain_agent import QUICK, Agent, send, text


async def test_command_reaches_an_agent_known_only_by_its_heartbeat(engine: Running, agent: Agent) -> None:
    """ZADD, then BRPOP: no registration, no state, no metadata, no client library."""
    agent_id, prefix = "architect-a1b2c3", engine.keys.prefix
    seconds, _ = await agent("TIME")
    await agent("ZADD", f"{prefix}:agents:heartbeats", seconds, agent_id)
    request = {
        "id": "c1",
        "type": "send",
        "payload": {
            "agent_id": agent_id,
            "command": {"type": "state_transition", "payload": {"target": "deep_work"}},
        },
        "timestamp": "2026-11-22T22:01:34Z",
        "reply": True,
    }
    await agent("LPUSH", f"{prefix}:engine:request_queue", text(request))
    await agent("PUBLISH", f"{prefix}:engine:requests", text(request))
    key, body = await agent("BRPOP", f"{prefix}:agent:{agent_id}:commands", 300)
    popped = json.loads(body)
    assert list(popped) == ["id", "type", "payload", "timestamp"]
    assert (popped["id"], popped["type"], popped["payload"]) == ("c1", "state_transition", {"target": "deep_work"})
    _, reply = await agent("BRPOP", f"{prefix}:engine:replies:c1", 300)
    expected = {"id": "c1", "ok": True, "command_id": "c1", "agent_id": agent_id, "status": "queued"}
    assert {**json.loads(reply), "timestamp": None} == {**expected, "timestamp": None}
    assert key == f"{prefix}:agent:{agent_id}:commands".encode()


@pytest.mark.parametrize("published", [True, False])
async def test_response_is_applied_with_and_without_its_notification(
    engine: Running, agent: Agent, *, published: bool
) -> None:
    """LPUSH then PUBLISH, or LPUSH alone: the notification only wakes the engine."""
    prefix = engine.keys.prefix
    response = text({"type": "state_transition", "agent_id": "a", "payload": {"target": "deep_work"}})
    await agent("LPUSH", f"{prefix}:engine:response_queue", response)
    if published:
        assert await agent("PUBLISH", f"{prefix}:engine:responses", response) == 1
    await eventually(lambda: engine.state("a"))
    assert await agent("GET", f"{prefix}:agent:a:state") == b"deep_work"


async def test_notification_wakes_the_engine(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """For responses as for requests. The next poll would come only after the test has failed."""
    never: dict[str, object] = {"response_consumer__poll_interval": 3600.0, "request_consumer__poll_interval": 3600.0}
    async with running_engine(server, prefix, **never) as engine:
        keys = engine.keys
        for number in range(3):
            register = {"type": "register", "agent_id": f"a{number}", "payload": {"type": "x"}}
            await agent("LPUSH", keys.response_queue, text(register))
            await agent("PUBLISH", keys.responses, "")
            await eventually(partial(engine.state, f"a{number}"))
            forget = {"type": "forget", "id": f"f{number}", "payload": {"agent_id": f"a{number}"}}
            await agent("LPUSH", keys.request_queue, text(forget))
            await agent("PUBLISH", keys.requests, "")
            assert (await engine.replied(f"f{number}"))["ok"] is True


async def test_published_state_change_is_validated_and_recorded(engine: Running, agent: Agent) -> None:
    """A state change that the engine did not publish is a declaration of the agent. The record decides the state."""
    channel = engine.keys.state_changes
    change = {"agent_id": "a", "old_state": "inbox", "new_state": "thinking", "timestamp": "2026-11-22T22:01:34Z"}
    assert await agent("PUBLISH", channel, text(change)) == 1
    await eventually(lambda: engine.audit("state_changed"))
    assert (await engine.state("a"), (await engine.record("a"))["declared"]) == ("thinking", "thinking")
    (fact,) = await engine.audit("state_changed")
    assert (fact["old_state"], fact["new_state"], fact["source"]) == ("unknown", "thinking", "agent")

    await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
    await agent("PUBLISH", channel, text({**change, "new_state": "deep_work"}))
    await eventually(lambda: engine.audit("transition_refused"))
    assert ((await engine.record("a"))["declared"], await engine.state("a")) == ("deep_work", "bootstrap")


async def test_engine_ignores_its_own_events(engine: Running, agent: Agent) -> None:
    """Otherwise each event would cause the next one without end."""
    for target in ("one", "two", "three"):
        await engine.say({"type": "state_transition", "agent_id": "a", "payload": {"target": target}})
    await agent("PUBLISH", engine.keys.state_changes, text({"agent_id": "b", "new_state": "last"}))
    await eventually(lambda: engine.state("b"))
    await eventually(engine.is_drained)
    assert [fact["new_state"] for fact in await engine.audit("state_changed")] == ["one", "two", "three", "last"]
    await eventually(lambda: engine.metric("aism_publications_total", outcome="declaration") == 1)


async def test_invalid_publications_are_dead_lettered(engine: Running, agent: Agent) -> None:
    """With their original bytes, as invalid responses are."""
    invalid = [b"\xff not json", b"[1, 2]", b'{"agent_id": "a:b", "new_state": "x"}', b'{"agent_id": "a"}']
    for body in invalid:
        await agent("PUBLISH", engine.keys.state_changes, body)
    await eventually(lambda: _count(engine, 4))
    dead_letters = await engine.dead_lettered()
    assert [code for code, _ in dead_letters] == [
        "invalid_utf8",
        "not_an_object",
        "invalid_agent_id",
        "invalid_message",
    ]
    assert [raw for _, raw in dead_letters[:2]] == invalid[:2]


async def _count(engine: Running, count: int) -> bool:
    return len(await engine.dead_letters()) == count


@pytest.mark.parametrize("milliseconds", [False, True])
async def test_heartbeats_are_read_in_seconds_and_in_milliseconds(
    server: EmbeddedServer, prefix: str, agent: Agent, *, milliseconds: bool
) -> None:
    """With either unit the agent is discovered, lost when its heartbeats stop, and back when they start again."""
    async with running_engine(server, prefix, **QUICK) as engine:
        await agent.beat(engine.keys, "a", milliseconds=milliseconds)
        await eventually(partial(engine.audit, "agent_lost"))
        await agent.beat(engine.keys, "a", milliseconds=milliseconds)
        await eventually(partial(engine.audit, "agent_returned"))
        events = [fact["event"] for fact in await engine.audit("agent_first_seen", "agent_lost", "agent_returned")]
        assert events[:3] == ["agent_first_seen", "agent_lost", "agent_returned"]


async def test_engine_publishes_every_change_that_it_applies(engine: Running, agent: Agent, subscriber: Agent) -> None:
    """The four fields of the channel design, then its source and its cause."""
    await subscriber("SUBSCRIBE", engine.keys.state_changes)
    register = {"type": "register", "agent_id": "a", "id": "m1", "payload": {"type": "scribe"}}
    await agent("LPUSH", engine.keys.response_queue, text(register))
    event = await subscriber.next_event()
    assert list(event) == ["agent_id", "old_state", "new_state", "timestamp", "source", "cause"]
    assert event | {"timestamp": ""} == {
        "agent_id": "a",
        "old_state": "offline",
        "new_state": "bootstrap",
        "timestamp": "",
        "source": "engine",
        "cause": "m1",
    }
    assert event["timestamp"] == iso((await engine.record("a"))["since"])


async def test_refused_transition_is_reported_to_the_agent_and_on_the_errors_channel(
    engine: Running, agent: Agent, subscriber: Agent
) -> None:
    """With the allowed states and a suggested path; the state does not change."""
    await subscriber("SUBSCRIBE", engine.keys.errors)
    register = {"type": "register", "agent_id": "a", "payload": {"type": "scribe"}}
    refused = {"type": "state_transition", "agent_id": "a", "id": "m1", "reply": True, "payload": {"target": "idle"}}
    await agent("LPUSH", engine.keys.response_queue, text(register), text(refused))
    _, body = await agent("BRPOP", f"{engine.keys.prefix}:agent:a:replies:m1", 300)
    reply = json.loads(body)
    details = {"current": "bootstrap", "requested": "idle", "allowed": ["inbox", "direct_io"]}
    assert reply | {"timestamp": ""} == {
        "id": "m1",
        "timestamp": "",
        "ok": False,
        "state": "bootstrap",
        "error": {
            "type": "transition_refused",
            "code": "not_allowed",
            "message": "bootstrap does not lead to idle; it leads to: inbox, direct_io",
            "details": details,
            "suggestions": ["inbox, then idle"],
        },
    }
    event = await subscriber.next_event()
    assert (event["code"], event["agent_id"], event["cause"], event["details"]) == ("not_allowed", "a", "m1", details)
    assert await engine.state("a") == "bootstrap"


async def test_unread_reply_expires_after_reply_ttl(engine: Running, agent: Agent) -> None:
    key = engine.keys.agent_reply("a", "m1")
    await engine.say({"type": "heartbeat", "agent_id": "a", "id": "m1", "reply": True})
    await eventually(lambda: engine.call("EXISTS", key))
    assert 0 < await agent("PTTL", key) <= 300_000
    assert json.loads((await agent("BRPOP", key, 300))[1])["ok"] is True


async def test_agent_that_registers_with_messagepack_gets_messagepack(engine: Running, agent: Agent) -> None:
    """In commands, replies and inbox. The engine reads both JSON and MessagePack from it."""
    keys, pack = engine.keys, msgspec.msgpack.encode
    register = {
        "type": "register",
        "agent_id": "a",
        "id": "m1",
        "reply": True,
        "payload": {"type": "x", "codec": "msgpack"},
    }
    await agent("LPUSH", keys.response_queue, pack(register))
    assert msgspec.msgpack.decode((await agent("BRPOP", keys.agent_reply("a", "m1"), 300))[1])["state"] == "bootstrap"
    request = send("c1", {"n": [1, None]})
    await agent("LPUSH", keys.request_queue, pack(request))
    command = msgspec.msgpack.decode((await agent("BRPOP", keys.commands("a"), 300))[1])
    assert (command["id"], command["payload"]) == ("c1", {"n": [1, None]})
    note = {"type": "message", "agent_id": "a", "payload": {"to": "a", "content": "note"}}
    await agent("LPUSH", keys.response_queue, text(note))
    message = msgspec.msgpack.decode((await agent("BRPOP", keys.inbox("a"), 300))[1])
    assert (message["type"], message["payload"]) == ("message", {"from": "a", "content": "note"})


async def test_command_that_no_agent_pops_expires(engine: Running, agent: Agent) -> None:
    """It is removed from the agent's list, and its record and the audit say that it expired."""
    await agent.beat(engine.keys, "a")
    await engine.ask(send("c1", ttl=0.05))
    await eventually(lambda: engine.audit("command_expired"))
    assert (await engine.command("c1"))["status"] == "expired"
    assert await agent("EXISTS", engine.keys.commands("a"), engine.keys.deadlines) == 0


async def test_result_that_was_queued_in_time_beats_the_deadline(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """The engine reads the backlog before it decides a deadline."""
    async with running_engine(server, prefix) as engine:
        await agent.beat(engine.keys, "a")
        await engine.ask(send("c1"))
        await engine.replied("c1")
    # While no engine runs, the agent pushes its result behind a long backlog, and the deadline passes.
    backlog = [{"type": "measurement", "agent_id": f"a{n}", "payload": {"x": n}} for n in range(3000)]
    await agent("LPUSH", engine.keys.response_queue, *map(text, backlog))
    await agent("LPUSH", engine.keys.response_queue, text({"type": "result", "agent_id": "a", "command_id": "c1"}))
    await agent("ZADD", engine.keys.deadlines, 1, "command:c1")
    async with running_engine(server, prefix) as engine:
        await eventually(lambda: engine.audit("command_succeeded", "command_expired"))
        await eventually(lambda: _no_deadlines(agent, engine))
        assert (await engine.command("c1"))["status"] == "succeeded"


async def _no_deadlines(agent: Agent, engine: Running) -> bool:
    count: int = await agent("ZCARD", engine.keys.deadlines)
    return count == 0
