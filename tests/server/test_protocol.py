"""The protocol, from a bare client: every flow of the channel design, and what the engine adds to it."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine
from tests.support.resp import Cli

TWO_SECONDS: dict[str, object] = {"liveness__silent_after": 0.3, "liveness__lost_after": 0.9}
"""A liveness that a test can wait for."""


class Agent:
    """An agent that is nothing but a Redis client: each call is one command, as redis-cli sends it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._cli = Cli("127.0.0.1", server.port)

    async def __call__(self, *words: str | bytes | float) -> Any:  # noqa: ANN401 - a reply is what the command makes it
        return await asyncio.to_thread(self._cli, *words)

    async def hear(self) -> dict[str, Any]:
        """Wait for the next event on the channel that it has subscribed to."""
        _, _, body = await asyncio.to_thread(self._cli.read)
        event: dict[str, Any] = json.loads(body)
        return event

    async def beat(self, running: Running, agent_id: str, *, milliseconds: bool = False) -> None:
        seconds, microseconds = await self("TIME")
        now = int(seconds) + int(microseconds) / 1e6
        await self("ZADD", running.keys.heartbeats, repr(1000 * now if milliseconds else now), agent_id)

    def close(self) -> None:
        self._cli.close()


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    async with running_engine(server, prefix) as running:
        yield running


@pytest.fixture
async def agent(server: EmbeddedServer) -> AsyncIterator[Agent]:
    agent = Agent(server)
    yield agent
    agent.close()


@pytest.fixture
async def ear(server: EmbeddedServer) -> AsyncIterator[Agent]:
    """A second connection, to hear events with."""
    ear = Agent(server)
    yield ear
    ear.close()


def text(message: object) -> str:
    return json.dumps(message)


def send(command_id: str, payload: dict[str, Any] | None = None, **options: float) -> dict[str, Any]:
    """An operator's request for a command of type `work` to the agent `a`."""
    command = {"type": "work", "payload": payload or {}}
    return {"type": "send", "id": command_id, "payload": {"agent_id": "a", "command": command, "options": options}}


# The four flows of the channel design


async def test_a_command_reaches_one_known_by_nothing_but_a_heartbeat(engine: Running, agent: Agent) -> None:
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
    key, body = await agent("BRPOP", f"{prefix}:agent:{agent_id}:commands", 5)
    popped = json.loads(body)
    assert list(popped) == ["id", "type", "payload", "timestamp"]
    assert (popped["id"], popped["type"], popped["payload"]) == ("c1", "state_transition", {"target": "deep_work"})
    _, reply = await agent("BRPOP", f"{prefix}:engine:replies:c1", 5)
    expected = {"id": "c1", "ok": True, "command_id": "c1", "agent_id": agent_id, "status": "queued"}
    assert {**json.loads(reply), "timestamp": None} == {**expected, "timestamp": None}
    assert key == f"{prefix}:agent:{agent_id}:commands".encode()


@pytest.mark.parametrize("published", [True, False])
async def test_a_response_is_applied_with_and_without_its_notification(
    engine: Running, agent: Agent, *, published: bool
) -> None:
    """LPUSH then PUBLISH, or LPUSH alone: pub/sub is a hint."""
    prefix = engine.keys.prefix
    response = text({"type": "state_transition", "agent_id": "a", "payload": {"target": "deep_work"}})
    await agent("LPUSH", f"{prefix}:engine:response_queue", response)
    if published:
        assert await agent("PUBLISH", f"{prefix}:engine:responses", response) == 1
    await eventually(lambda: engine.state("a"))
    assert await agent("GET", f"{prefix}:agent:a:state") == b"deep_work"


async def test_a_notification_is_answered_at_once(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """Long before the next poll, for responses as for requests."""
    slow: dict[str, object] = {"response_consumer__poll_interval": 30.0, "request_consumer__poll_interval": 30.0}
    async with running_engine(server, prefix, **slow) as engine:
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


async def test_a_state_change_that_is_only_published_is_heard_checked_and_recorded(
    engine: Running, agent: Agent
) -> None:
    """It is no event of the engine's, so it is a declaration: what holds is the record, and `:state` shows it."""
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


async def test_its_own_events_are_no_declarations(engine: Running, agent: Agent) -> None:
    """Or the engine would talk to itself for ever."""
    for target in ("one", "two", "three"):
        await engine.say({"type": "state_transition", "agent_id": "a", "payload": {"target": target}})
    await agent("PUBLISH", engine.keys.state_changes, text({"agent_id": "b", "new_state": "last"}))
    await eventually(lambda: engine.state("b"))
    await eventually(engine.is_drained)
    assert [fact["new_state"] for fact in await engine.audit("state_changed")] == ["one", "two", "three", "last"]
    await eventually(lambda: engine.metric("aism_publications_total", outcome="declaration") == 1)


async def test_what_is_published_and_means_nothing_is_buried(engine: Running, agent: Agent) -> None:
    """With its bytes, as if it had been pushed."""
    rubbish = [b"\xff not json", b"[1, 2]", b'{"agent_id": "a:b", "new_state": "x"}', b'{"agent_id": "a"}']
    for published in rubbish:
        await agent("PUBLISH", engine.keys.state_changes, published)
    await eventually(lambda: _count(engine, 4))
    buried = await engine.dead_lettered()
    assert [code for code, _ in buried] == ["invalid_utf8", "not_an_object", "invalid_agent_id", "invalid_message"]
    assert [raw for _, raw in buried[:2]] == rubbish[:2]


async def _count(engine: Running, count: int) -> bool:
    return len(await engine.dead_letters()) == count


@pytest.mark.parametrize("milliseconds", [False, True])
async def test_a_heartbeat_is_understood_in_seconds_and_in_milliseconds(
    server: EmbeddedServer, prefix: str, agent: Agent, *, milliseconds: bool
) -> None:
    """Who beats in either is taken in, and watched: lost when it stops, and back when it beats again."""
    async with running_engine(server, prefix, **TWO_SECONDS) as engine:
        await agent.beat(engine, "a", milliseconds=milliseconds)
        await eventually(partial(_is, engine, "a", "fresh"))
        await eventually(partial(_is, engine, "a", "lost"))
        await agent.beat(engine, "a", milliseconds=milliseconds)
        await eventually(partial(_is, engine, "a", "fresh"))
        events = [fact["event"] for fact in await engine.audit("agent_first_seen", "agent_lost", "agent_returned")]
        assert events[:3] == ["agent_first_seen", "agent_lost", "agent_returned"]


async def _is(engine: Running, agent_id: str, liveness: str) -> bool:
    return (await engine.record(agent_id)).get("liveness") == liveness


# What the engine publishes and answers


async def test_the_engine_publishes_every_change_that_it_applies(engine: Running, agent: Agent, ear: Agent) -> None:
    """The four fields of the channel design, then where it comes from and because of what."""
    await ear("SUBSCRIBE", engine.keys.state_changes)
    register = {"type": "register", "agent_id": "a", "id": "m1", "payload": {"type": "scribe"}}
    await agent("LPUSH", engine.keys.response_queue, text(register))
    event = await ear.hear()
    assert list(event) == ["agent_id", "old_state", "new_state", "timestamp", "source", "cause"]
    assert event | {"timestamp": ""} == {
        "agent_id": "a",
        "old_state": "offline",
        "new_state": "bootstrap",
        "timestamp": "",
        "source": "engine",
        "cause": "m1",
    }
    assert event["timestamp"] == (await engine.record("a"))["since"]


async def test_a_refused_transition_has_the_shape_of_the_design(engine: Running, agent: Agent, ear: Agent) -> None:
    """On the agent's own reply list and on the errors channel; the state is as it was."""
    await ear("SUBSCRIBE", engine.keys.errors)
    register = {"type": "register", "agent_id": "a", "payload": {"type": "scribe"}}
    leap = {"type": "state_transition", "agent_id": "a", "id": "m1", "reply": True, "payload": {"target": "idle"}}
    await agent("LPUSH", engine.keys.response_queue, text(register), text(leap))
    _, body = await agent("BRPOP", f"{engine.keys.prefix}:agent:a:replies:m1", 5)
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
    event = await ear.hear()
    assert (event["code"], event["agent_id"], event["cause"], event["details"]) == ("not_allowed", "a", "m1", details)
    assert await engine.state("a") == "bootstrap"


async def test_a_reply_expires_if_nobody_fetches_it(engine: Running, agent: Agent) -> None:
    """It is kept for reply_ttl, and no longer."""
    key = engine.keys.agent_reply("a", "m1")
    await engine.say({"type": "heartbeat", "agent_id": "a", "id": "m1", "reply": True})
    await eventually(lambda: engine.call("EXISTS", key))
    assert 200_000 < await agent("PTTL", key) <= 300_000
    assert json.loads((await agent("BRPOP", key, 5))[1])["ok"] is True


async def test_an_agent_that_asked_for_messagepack_reads_messagepack(engine: Running, agent: Agent) -> None:
    """Its commands, its replies and its inbox; it may write it as well, and JSON all the same."""
    keys, pack = engine.keys, msgspec.msgpack.encode
    register = {
        "type": "register",
        "agent_id": "a",
        "id": "m1",
        "reply": True,
        "payload": {"type": "x", "codec": "msgpack"},
    }
    await agent("LPUSH", keys.response_queue, pack(register))
    assert msgspec.msgpack.decode((await agent("BRPOP", keys.agent_reply("a", "m1"), 5))[1])["state"] == "bootstrap"
    request = send("c1", {"n": [1, None]})
    await agent("LPUSH", keys.request_queue, pack(request))
    command = msgspec.msgpack.decode((await agent("BRPOP", keys.commands("a"), 5))[1])
    assert (command["id"], command["payload"]) == ("c1", {"n": [1, None]})
    note = {"type": "message", "agent_id": "a", "payload": {"to": "a", "content": "note"}}
    await agent("LPUSH", keys.response_queue, text(note))
    message = msgspec.msgpack.decode((await agent("BRPOP", keys.inbox("a"), 5))[1])
    assert (message["type"], message["payload"]) == ("message", {"from": "a", "content": "note"})


async def test_the_whole_life_of_a_command(engine: Running, agent: Agent) -> None:
    """Asked for, popped, acked, answered; at its end the record has the result, and is kept for the retention."""
    keys = engine.keys
    await agent.beat(engine, "a")
    await agent("LPUSH", keys.request_queue, text(send("c1")))
    await agent("BRPOP", keys.commands("a"), 5)
    for kind, payload in (("ack", {}), ("progress", {"percent": 50}), ("result", {"pages": 3})):
        word = {"type": kind, "agent_id": "a", "command_id": "c1", "payload": payload}
        await agent("LPUSH", keys.response_queue, text(word))
    await eventually(lambda: engine.audit("command_succeeded"))
    record = await engine.command("c1")
    assert (record["status"], record["result"], record["percent"]) == ("succeeded", '{"pages":3}', "50")
    assert record["accepted_at"] <= record["acked_at"] <= record["progress_at"] <= record["ended_at"]
    assert 86_000_000 < await agent("PTTL", keys.command("c1")) <= 86_400_000
    assert await agent("ZCARD", keys.deadlines) == 0


async def test_a_command_that_nobody_does_expires(engine: Running, agent: Agent) -> None:
    """It is taken out of the list, ends on record, and an event says so."""
    await agent.beat(engine, "a")
    await engine.ask(send("c1", ttl=0.05))
    await eventually(lambda: engine.audit("command_expired"))
    assert (await engine.command("c1"))["status"] == "expired"
    assert await agent("EXISTS", engine.keys.commands("a"), engine.keys.deadlines) == 0


async def test_a_success_that_waits_in_the_queue_beats_the_deadline(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """A backlog is blindness: what was said in time counts, however late it is read."""
    async with running_engine(server, prefix) as engine:
        await agent.beat(engine, "a")
        await engine.ask(send("c1"))
        await engine.replied("c1")
    # While no engine runs, the agent answers behind a long backlog, and the deadline passes.
    watermark = [{"type": "measurement", "agent_id": f"a{n}", "payload": {"x": n}} for n in range(3000)]
    await agent("LPUSH", engine.keys.response_queue, *map(text, watermark))
    await agent("LPUSH", engine.keys.response_queue, text({"type": "result", "agent_id": "a", "command_id": "c1"}))
    await agent("ZADD", engine.keys.deadlines, 1, "command:c1")
    async with running_engine(server, prefix) as engine:
        await eventually(lambda: engine.audit("command_succeeded", "command_expired"))
        await eventually(lambda: _no_deadlines(agent, engine))
        assert (await engine.command("c1"))["status"] == "succeeded"


async def _no_deadlines(agent: Agent, engine: Running) -> bool:
    count: int = await agent("ZCARD", engine.keys.deadlines)
    return count == 0


# What agents write by their own hand


async def test_metadata_is_read_at_first_sight_and_on_a_timer(engine: Running, agent: Agent) -> None:
    """Type and labels; the agent may change them when it likes."""
    key = engine.keys.metadata("a")
    await agent("HSET", key, "type", "architect", "labels", '{"team": "x"}')
    await engine.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(lambda: engine.record("a"))
    record = await engine.record("a")
    assert (record["type"], record["labels"], record["registered"]) == ("architect", '{"team":"x"}', "")
    await agent("HSET", key, "type", "emperor", "labels", '{"team": "y"}')
    await eventually(lambda: engine.audit("metadata_changed"))
    record = await engine.record("a")
    assert (record["type"], record["labels"]) == ("emperor", '{"team":"y"}')


@pytest.mark.parametrize("labels", ["not json", "[]", '{"team": 7}', '{"team": null}', "\xff", "[" * 5000])
async def test_metadata_that_means_nothing_is_as_good_as_none(engine: Running, agent: Agent, labels: str) -> None:
    """It belongs to the agent, and breaks nothing of ours."""
    await agent("HSET", engine.keys.metadata("a"), "type", "two words", "labels", labels)
    await engine.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(lambda: engine.record("a"))
    record = await engine.record("a")
    assert (record["type"], record["labels"]) == ("unknown", "{}")


async def test_a_state_key_that_is_there_already_is_kept(engine: Running, agent: Agent) -> None:
    """The agent was before us."""
    await agent("SET", engine.keys.state("a"), "thinking")
    await agent.beat(engine, "a")
    await eventually(lambda: engine.record("a"))
    assert ((await engine.record("a"))["state"], await engine.state("a")) == ("thinking", "thinking")


async def test_a_state_key_that_an_agent_sets_later_is_a_declaration(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """Noticed on the timer: allowed it holds, not allowed it is put back."""
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        await agent("SET", engine.keys.state("a"), "inbox")
        await eventually(lambda: engine.audit("state_changed", agent_id="a"), 10)
        await eventually(partial(_record_has, engine, "state", "inbox"), 10)
        await agent("SET", engine.keys.state("a"), "bootstrap")
        await eventually(partial(_state_is, engine, "inbox"), 10)
        assert (await engine.record("a"))["declared"] == "bootstrap"


async def _record_has(engine: Running, field: str, value: str) -> bool:
    return (await engine.record("a")).get(field) == value


async def _state_is(engine: Running, state: str) -> bool:
    return await engine.state("a") == state


# Coming and going


async def test_one_that_is_lost_returns_to_the_state_it_was_in(
    server: EmbeddedServer, prefix: str, agent: Agent, ear: Agent
) -> None:
    """With its queue as it was; losing it is told on both channels."""
    async with running_engine(server, prefix, **TWO_SECONDS) as engine:
        await ear("SUBSCRIBE", engine.keys.errors)
        await agent.beat(engine, "a")
        for message in (
            {"type": "register", "payload": {"type": "scribe"}},
            {"type": "state_transition", "payload": {"target": "inbox"}},
        ):
            await engine.say({"agent_id": "a", **message})
        await engine.ask(send("c1"))
        await engine.replied("c1")
        event = await ear.hear()
        assert (event["code"], event["agent_id"]) == ("agent_lost", "a")
        await eventually(partial(_state_is, engine, "offline"))
        assert (await engine.record("a"))["lost_from"] == "inbox"
        await engine.say({"type": "heartbeat", "agent_id": "a"})
        await eventually(partial(_state_is, engine, "inbox"))
        assert json.loads((await agent("BRPOP", engine.keys.commands("a"), 5))[1])["id"] == "c1"


async def test_one_that_speaks_on_the_queue_is_not_lost(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """A response is a sign of life as good as a heartbeat."""
    async with running_engine(server, prefix, **TWO_SECONDS) as engine:
        await agent.beat(engine, "quiet")
        await agent.beat(engine, "talks")

        async def talk_until_the_other_is_lost() -> bool:
            await engine.say({"type": "heartbeat", "agent_id": "talks"})
            return await _is(engine, "quiet", "lost")

        await eventually(talk_until_the_other_is_lost)
        assert await engine.audit("agent_lost", agent_id="talks") == []


async def test_one_that_says_goodbye_is_not_lost(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """It goes where its machine says, and its silence is in order."""
    async with running_engine(server, prefix, **TWO_SECONDS) as engine:
        for agent_id in ("gone", "silent"):
            await agent.beat(engine, agent_id)
            await engine.say({"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}})
        await engine.say({"type": "goodbye", "agent_id": "gone", "payload": {"reason": "night"}})
        await eventually(lambda: engine.audit("agent_lost"))
        assert [fact["agent_id"] for fact in await engine.audit("agent_lost")] == ["silent"]
        assert ((await engine.record("gone"))["liveness"], await engine.state("gone")) == ("left", "offline")


async def test_without_auto_register_only_those_who_registered_belong(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """Neither a heartbeat nor a response takes a stranger in."""
    async with running_engine(server, prefix, agents__auto_register=False) as engine:
        await agent.beat(engine, "stranger")
        await engine.say({"type": "heartbeat", "agent_id": "stranger"})
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        assert [code for code, _ in await engine.dead_lettered()] == ["unknown_agent"]
        assert await agent("SMEMBERS", engine.keys.index) == [b"a"]


async def test_what_is_forgotten_leaves_nothing_behind(engine: Running, agent: Agent) -> None:
    """Not a key under its name, but for the records of its commands."""
    await agent.beat(engine, "a")
    await engine.say(
        {"type": "register", "agent_id": "a", "payload": {"type": "scribe"}},
        {"type": "measurement", "agent_id": "a", "payload": {"x": 1}},
        {"type": "message", "agent_id": "a", "payload": {"to": "a", "content": 1}},
    )
    await eventually(lambda: engine.call("LLEN", engine.keys.inbox("a")))
    await engine.ask(send("c1"))
    await engine.ask({"type": "forget", "id": "f1", "payload": {"agent_id": "a"}})
    assert (await engine.replied("f1"))["ok"] is True
    assert [key for key in await engine.dump() if b":agent:a" in key] == []
    assert await agent("ZSCORE", engine.keys.heartbeats, "a") is None
    assert (await engine.command("c1"))["status"] == "cancelled"


# What lasts


async def test_what_an_engine_knew_the_next_one_knows(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """Agents, open commands, ids of messages: a push that is retried across a restart has no second effect."""
    move = {"type": "state_transition", "agent_id": "a", "id": "m2", "payload": {"target": "inbox"}}
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "id": "m1", "payload": {"type": "scribe"}}, move)
        await eventually(partial(_state_is, engine, "inbox"))
        await engine.ask(send("c1"))
        assert (await engine.replied("c1"))["status"] == "queued"
        await engine.say({"type": "state_transition", "agent_id": "a", "id": "m3", "payload": {"target": "idle"}})
        await eventually(partial(_state_is, engine, "idle"))
    async with running_engine(server, prefix) as engine:
        await engine.say(move, {"type": "result", "agent_id": "a", "id": "m4", "command_id": "c1"})
        await eventually(lambda: engine.audit("command_succeeded"))
        assert await engine.state("a") == "idle"
        duplicates = {"service": "response_consumer", "type": "state_transition", "outcome": "duplicate"}
        await eventually(lambda: engine.metric("aism_decisions_total", **duplicates) == 1)
        await engine.ask(send("c1"))
        assert (await engine.replied("c1"))["status"] == "queued"  # as it was answered the first time
        assert await agent("LLEN", engine.keys.commands("a")) == 1


async def test_an_answer_under_the_id_of_its_command_counts_after_a_restart(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """An agent may give its answer the id of the command: what the operator asked is nothing that the agent said."""
    async with running_engine(server, prefix) as engine:
        await agent.beat(engine, "a")
        await engine.ask(send("c1"))
        await engine.replied("c1")
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "result", "agent_id": "a", "id": "c1", "command_id": "c1"})
        await eventually(engine.is_drained)
        assert (await engine.command("c1"))["status"] == "succeeded"


async def test_every_response_of_a_large_backlog_is_applied_once_and_in_order(
    engine: Running, agent: Agent, ear: Agent
) -> None:
    """Through batches, reading ahead, muting and unmuting: none lost, none twice, and heard again afterwards."""
    await ear("SUBSCRIBE", engine.keys.state_changes)
    states = [f"s{number}" for number in range(3000)]
    move = {"type": "state_transition"}
    watermark = [
        text(move | {"agent_id": f"a{number % 7}", "id": f"m{number}", "payload": {"target": state}})
        for number, state in enumerate(states)
    ]
    for start in range(0, len(watermark), 500):
        await agent("LPUSH", engine.keys.response_queue, *watermark[start : start + 500])
    await eventually(lambda: _audited(engine, len(states)), 20)
    assert [fact["new_state"] for fact in await engine.audit("state_changed")] == states
    assert [(await ear.hear())["new_state"] for _ in states] == states
    await eventually(lambda: engine.call("PUBSUB", "NUMSUB", engine.keys.responses))
    await agent("PUBLISH", engine.keys.state_changes, text({"agent_id": "b", "new_state": "heard"}))
    await eventually(lambda: engine.state("b"))


async def _audited(engine: Running, count: int) -> bool:
    return len(await engine.audit("state_changed")) >= count


@pytest.mark.parametrize("prefix", ["{fleet-7}"])
async def test_a_fleet_may_live_in_one_slot(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """Under a prefix in braces all of its keys share one slot of a cluster."""
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        assert await agent("GET", "{fleet-7}:agent:a:state") == b"bootstrap"
