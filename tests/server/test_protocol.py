"""The protocol as a plain Redis client uses it: the four flows of the channel design, and what the engine adds."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest

from aism_engine.clock import ROUNDING_S, from_iso
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.support.engine import Running, eventually, running_engine
from tests.support.server import Cli

LOST_AFTER_S = 0.9
QUICK: dict[str, object] = {"liveness__silent_after": 0.3, "liveness__lost_after": LOST_AFTER_S}
"""An engine that soon declares a silent agent lost."""


class Agent:
    """An agent without a library: each call sends one Redis command, as redis-cli does."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._cli = Cli(server.port)

    async def __call__(self, *words: str | bytes | float) -> Any:  # noqa: ANN401 - a reply is what the command makes it
        return await asyncio.to_thread(self._cli, *words)

    async def next_event(self) -> dict[str, Any]:
        """Wait for the next event on the subscribed channel."""
        _, _, body = await asyncio.to_thread(self._cli.read)
        event: dict[str, Any] = json.loads(body)
        return event

    async def server_time(self) -> float:
        seconds, microseconds = await self("TIME")
        return int(seconds) + int(microseconds) / 1e6

    async def beat(self, keys: Keys, agent_id: str, *, milliseconds: bool = False) -> None:
        now = await self.server_time()
        await self("ZADD", keys.heartbeats, repr(1000 * now if milliseconds else now), agent_id)

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
async def subscriber(server: EmbeddedServer) -> AsyncIterator[Agent]:
    """A second connection, which subscribes to events."""
    subscriber = Agent(server)
    yield subscriber
    subscriber.close()


def text(message: object) -> str:
    return json.dumps(message)


def send(command_id: str, payload: dict[str, Any] | None = None, **options: float) -> dict[str, Any]:
    """Return the request that sends a command of type `work` to the agent `a`."""
    command = {"type": "work", "payload": payload or {}}
    return {"type": "send", "id": command_id, "payload": {"agent_id": "a", "command": command, "options": options}}


# The four flows of the channel design


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


async def _is(engine: Running, agent_id: str, liveness: str) -> bool:
    return (await engine.record(agent_id)).get("liveness") == liveness


# What the engine publishes and replies


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
    assert event["timestamp"] == (await engine.record("a"))["since"]


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


# What agents write themselves


async def test_metadata_is_read_at_first_sight_and_periodically(engine: Running, agent: Agent) -> None:
    """Type and labels, which the agent may change at any time."""
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
async def test_invalid_metadata_is_ignored(engine: Running, agent: Agent, labels: str) -> None:
    await agent("HSET", engine.keys.metadata("a"), "type", "two words", "labels", labels)
    await engine.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(lambda: engine.record("a"))
    record = await engine.record("a")
    assert (record["type"], record["labels"]) == ("unknown", "{}")


@pytest.mark.parametrize("what", ["record", "index", "metadata"])
async def test_what_the_engine_wrote_about_an_agent_is_restored_when_somebody_deletes_it(
    server: EmbeddedServer, prefix: str, agent: Agent, what: str
) -> None:
    """So the next leader knows the agent, with its labels."""
    register = {"type": "register", "agent_id": "a", "payload": {"type": "scribe", "labels": {"team": "x"}}}
    async with running_engine(server, prefix, registrar__metadata_interval=0.05) as engine:
        keys = engine.keys
        await engine.say(register)
        await eventually(lambda: engine.record("a"))
        deleted = {"record": keys.agent("a"), "index": keys.index, "metadata": keys.metadata("a")}[what]
        assert await agent("DEL", deleted) == 1

        async def is_restored() -> bool:
            return bool(await agent("EXISTS", deleted))

        await eventually(is_restored)
        reported = [fact["agent_id"] for fact in await engine.audit("agent_repaired")]
        assert reported == ([] if what == "metadata" else ["a"])
    async with running_engine(server, prefix) as engine:
        found = (await engine.engine.writer.loaded()).agents["a"]
        assert (found.type, found.labels, found.registered) == ("scribe", {"team": "x"}, True)


async def test_state_key_that_exists_at_first_sight_is_kept(engine: Running, agent: Agent) -> None:
    await agent("SET", engine.keys.state("a"), "thinking")
    await agent.beat(engine.keys, "a")
    await eventually(lambda: engine.record("a"))
    assert ((await engine.record("a"))["state"], await engine.state("a")) == ("thinking", "thinking")


async def test_state_key_that_an_agent_sets_later_is_a_declaration(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """The registrar reads it: an allowed state is applied, another one is overwritten."""
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        await agent("SET", engine.keys.state("a"), "inbox")
        await eventually(lambda: engine.audit("state_changed", agent_id="a"))
        await eventually(partial(_record_has, engine, "state", "inbox"))
        await agent("SET", engine.keys.state("a"), "bootstrap")
        await eventually(partial(_state_is, engine, "inbox"))
        assert (await engine.record("a"))["declared"] == "bootstrap"


async def _record_has(engine: Running, field: str, value: str) -> bool:
    return (await engine.record("a")).get(field) == value


async def _state_is(engine: Running, state: str) -> bool:
    return await engine.state("a") == state


# Joining, leaving, getting lost


async def test_lost_agent_returns_to_its_former_state(
    server: EmbeddedServer, prefix: str, agent: Agent, subscriber: Agent
) -> None:
    """Its commands are kept. The loss is published on the errors channel and as a state change."""
    async with running_engine(server, prefix, **QUICK) as engine:
        await subscriber("SUBSCRIBE", engine.keys.errors)
        await agent.beat(engine.keys, "a")
        for message in (
            {"type": "register", "payload": {"type": "scribe"}},
            {"type": "state_transition", "payload": {"target": "inbox"}},
        ):
            await engine.say({"agent_id": "a", **message})
        await engine.ask(send("c1"))
        await engine.replied("c1")
        event = await subscriber.next_event()
        assert (event["code"], event["agent_id"]) == ("agent_lost", "a")
        await eventually(partial(_state_is, engine, "offline"))
        assert (await engine.record("a"))["lost_from"] == "inbox"
        await engine.say({"type": "heartbeat", "agent_id": "a"})
        await eventually(partial(_state_is, engine, "inbox"))
        assert json.loads((await agent("BRPOP", engine.keys.commands("a"), 300))[1])["id"] == "c1"


async def test_agent_that_sends_responses_is_not_lost(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """A response counts as a heartbeat. Only on a slow machine may the pauses between two responses be long enough."""
    async with running_engine(server, prefix, **QUICK) as engine:
        await agent.beat(engine.keys, "quiet")
        await agent.beat(engine.keys, "responds")
        responded_at: list[float] = []

        async def respond_until_the_other_is_lost() -> bool:
            responded_at.append(await agent.server_time())
            await engine.say({"type": "heartbeat", "agent_id": "responds"})
            return await _is(engine, "quiet", "lost")

        await eventually(respond_until_the_other_is_lost)
        for fact in await engine.audit("agent_lost", agent_id="responds"):
            lost_at = from_iso(fact["at"]) + ROUNDING_S
            assert lost_at - max(at for at in responded_at if at <= lost_at) >= LOST_AFTER_S


async def test_agent_that_says_goodbye_is_not_lost(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """It goes to the state that its machine has for this, and the reaper no longer watches it."""
    keys = Keys(prefix)
    for agent_id in ("gone", "silent"):
        await agent.beat(keys, agent_id)
        register = {"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}}
        await agent("LPUSH", keys.response_queue, text(register))
    goodbye = {"type": "goodbye", "agent_id": "gone", "payload": {"reason": "maintenance"}}
    await agent("LPUSH", keys.response_queue, text(goodbye))
    async with running_engine(server, prefix, **QUICK) as engine:
        await eventually(lambda: engine.audit("agent_lost"))
        assert [fact["agent_id"] for fact in await engine.audit("agent_lost")] == ["silent"]
        assert ((await engine.record("gone"))["liveness"], await engine.state("gone")) == ("left", "offline")


async def test_without_auto_register_only_registered_agents_join(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """A heartbeat or a response of an unknown agent does not add it to the fleet."""
    async with running_engine(server, prefix, agents__auto_register=False) as engine:
        await agent.beat(engine.keys, "unknown")
        await engine.say({"type": "heartbeat", "agent_id": "unknown"})
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        assert [code for code, _ in await engine.dead_lettered()] == ["unknown_agent"]
        assert await agent("SMEMBERS", engine.keys.index) == [b"a"]


@pytest.mark.parametrize("value", [["heartbeat"], '["heartbeat"]'])
async def test_auto_register_may_be_limited_to_ways_in(
    server: EmbeddedServer, prefix: str, agent: Agent, value: object
) -> None:
    """A response adds no agent, unless it sends heartbeats too: a typing error in an id makes no agent."""
    async with running_engine(server, prefix, agents__auto_register=value) as engine:
        await agent.beat(engine.keys, "beats")
        for agent_id in ("beats", "mistyped"):
            await engine.say({"type": "state_transition", "agent_id": agent_id, "payload": {"target": "inbox"}})
        await eventually(engine.dead_lettered)
        assert [code for code, _ in await engine.dead_lettered()] == ["unknown_agent"]
        assert await agent("SMEMBERS", engine.keys.index) == [b"beats"]


async def test_forgotten_agent_leaves_no_key_behind(engine: Running, agent: Agent) -> None:
    """Only the records of its commands remain."""
    await agent.beat(engine.keys, "a")
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


# Restarts and backlogs


async def test_next_engine_knows_what_the_last_one_knew(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """Agents, open commands and message ids: a message that is pushed again after a restart has no second effect."""
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
        assert (await engine.replied("c1"))["status"] == "queued"  # the first reply again
        assert await agent("LLEN", engine.keys.commands("a")) == 1


async def test_result_may_have_the_id_of_its_command(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """Request ids and message ids are remembered apart, also after a restart."""
    async with running_engine(server, prefix) as engine:
        await agent.beat(engine.keys, "a")
        await engine.ask(send("c1"))
        await engine.replied("c1")
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "result", "agent_id": "a", "id": "c1", "command_id": "c1"})
        await eventually(engine.is_drained)
        assert (await engine.command("c1"))["status"] == "succeeded"


async def test_every_response_of_a_large_backlog_is_applied_once_and_in_order(
    engine: Running, agent: Agent, subscriber: Agent
) -> None:
    """Although the engine reads ahead, and unsubscribes while it is busy; afterwards it subscribes again."""
    await subscriber("SUBSCRIBE", engine.keys.state_changes)
    states = [f"s{number}" for number in range(3000)]
    move = {"type": "state_transition"}
    backlog = [
        text(move | {"agent_id": f"a{number % 7}", "id": f"m{number}", "payload": {"target": state}})
        for number, state in enumerate(states)
    ]
    for start in range(0, len(backlog), 500):
        await agent("LPUSH", engine.keys.response_queue, *backlog[start : start + 500])
    await eventually(lambda: _audited(engine, len(states)))
    assert [fact["new_state"] for fact in await engine.audit("state_changed")] == states
    assert [(await subscriber.next_event())["new_state"] for _ in states] == states
    await eventually(lambda: engine.call("PUBSUB", "NUMSUB", engine.keys.responses))
    await agent("PUBLISH", engine.keys.state_changes, text({"agent_id": "b", "new_state": "heard"}))
    await eventually(lambda: engine.state("b"))


async def _audited(engine: Running, count: int) -> bool:
    return len(await engine.audit("state_changed")) >= count


@pytest.mark.parametrize("prefix", ["{fleet-7}"])
async def test_prefix_in_braces_puts_the_fleet_into_one_slot(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        assert await agent("GET", "{fleet-7}:agent:a:state") == b"bootstrap"
