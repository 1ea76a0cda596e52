"""Laws of `AgentClient`: it sends what the protocol requires, and each message counts once."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from aism_engine.agent.client import AgentClient, MalformedError
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine

AGENT = "scribe-1"


@pytest.fixture
async def agent(server: EmbeddedServer, prefix: str) -> AsyncIterator[AgentClient]:
    async with AgentClient(AGENT, url=server.url, prefix=prefix, reply_timeout_s=100) as client:
        yield client


async def send(engine: Running, command_id: str, kind: str, **payload: Any) -> None:  # noqa: ANN401
    request = {"agent_id": AGENT, "command": {"type": kind, "payload": payload}}
    await engine.ask({"id": command_id, "type": "send", "payload": request})
    assert (await engine.replied(command_id))["ok"]


async def test_a_message_is_pushed_and_then_published(redis_client: Redis, prefix: str, agent: AgentClient) -> None:
    """The agent's id is published, however large the message: the engine ignores it. Nothing else is written."""
    async with redis_client.pubsub() as pubsub:
        await pubsub.subscribe(f"{prefix}:engine:responses")
        await pubsub.get_message(timeout=300)
        await agent.send("measurement", {"tokens": 12})
        event = await pubsub.get_message(timeout=300)
    (pushed,) = await redis_client.lrange(f"{prefix}:engine:response_queue", 0, -1)
    assert event is not None
    assert event["data"] == AGENT.encode()
    message = json.loads(pushed)
    assert list(message) == ["id", "type", "agent_id", "payload", "timestamp"]
    assert (message["type"], message["agent_id"], message["payload"]) == ("measurement", AGENT, {"tokens": 12})
    assert await redis_client.keys(f"{prefix}:*") == [f"{prefix}:engine:response_queue".encode()]


async def test_an_unconfirmed_push_is_repeated_and_counts_once(
    engine: Running, agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both copies have the same id."""
    push, pushed = agent.push, list[bytes]()

    async def push_and_lose_the_first_reply(bodies: Sequence[bytes]) -> None:
        await push(bodies)
        pushed.extend(bodies)
        if len(pushed) == 1:
            raise ServerUnavailableError("connection", "lost")

    monkeypatch.setattr(agent, "push", push_and_lose_the_first_reply)
    reply = await agent.register("scribe")
    assert (reply.ok, reply.state) == (True, "bootstrap")
    assert pushed[0] == pushed[1]
    await agent.transition("inbox")
    assert len(await engine.audit("agent_registered")) == 1


async def test_a_refusal_has_the_allowed_targets(engine: Running, agent: AgentClient) -> None:
    await agent.register("scribe")
    reply = await agent.transition("deep_work")
    assert reply.error is not None
    assert (reply.ok, reply.state, reply.error["code"]) == (False, "bootstrap", "not_allowed")
    assert "inbox" in reply.error["details"]["allowed"]
    assert await agent.state() == "bootstrap"
    assert await engine.state(AGENT) == "bootstrap"


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_command_is_taken_worked_on_and_answered(engine: Running, agent: AgentClient, codec: str) -> None:
    """In either codec."""
    await agent.register("scribe", capabilities=["ack"], codec=codec)
    await send(engine, "work-1", "work", n=1)
    command = await agent.next_command(100)
    assert command is not None
    assert (command.id, command.type, command.payload) == ("work-1", "work", {"n": 1})
    await agent.send("ack", {}, "work-1")
    await agent.send("progress", {"percent": 40, "note": "soon"}, "work-1")
    await agent.call("result", {"lines": 3}, "work-1")
    record = await engine.command("work-1")
    assert (record["status"], record["percent"], record["note"]) == ("succeeded", "40", "soon")
    assert json.loads(record["result"]) == {"lines": 3}
    assert await agent.next_command(0) is None


async def test_a_command_can_fail_and_a_transition_can_answer_one(engine: Running, agent: AgentClient) -> None:
    await agent.register("scribe")
    await send(engine, "work-1", "work")
    await send(engine, "go-1", "state_transition", target="inbox")
    await agent.send("error", {"code": "no_luck", "message": "it rained"}, "work-1")
    await agent.transition("inbox", command_id="go-1")
    assert (await engine.command("work-1"))["reason"] == "it rained"
    assert (await engine.command("go-1"))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no command", "not JSON at byte 4: invalid character"),
        (b'{"id": "\xff"}', "text that is not valid UTF-8"),
        (b"\x81\xa2id\xa1\xff", "text that is not valid UTF-8"),
        (b'{"payload": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}", "nested too deep"),
    ],
    ids=["no_json", "no_utf8", "no_utf8_in_msgpack", "too_deep"],
)
async def test_a_malformed_command_is_reported_and_skipped(
    engine: Running, agent: AgentClient, body: bytes, reason: str
) -> None:
    await agent.register("scribe")
    await engine.call("LPUSH", engine.keys.commands(AGENT), body)
    await send(engine, "work-1", "work")
    command = await agent.next_command(100)
    assert command is not None
    assert command.id == "work-1"
    await agent.transition("inbox")
    (fact,) = await engine.audit("agent_error")
    assert (fact["code"], fact["reason"]) == ("malformed_command", reason)


async def test_a_cancellation_that_was_taken_counts_although_redis_fails_then(
    redis_client: Redis, prefix: str, agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [
        json.dumps({"id": f"x{n}", "type": "cancel", "payload": {"command_id": f"c{n}"}, "timestamp": ""}) for n in "12"
    ]
    await redis_client.lpush(f"{prefix}:agent:{AGENT}:commands", *bodies)
    remove, taken = agent._client.lrem, list[str]()

    async def fail_after_the_first(*arguments: Any) -> int:  # noqa: ANN401
        if taken:
            raise ServerUnavailableError("connection", "reset")
        return int(await remove(*arguments))

    async def take() -> None:
        async for command_id in agent.take_cancellations({"c1", "c2"}):
            taken.append(command_id)

    monkeypatch.setattr(agent._client, "lrem", fail_after_the_first)
    with pytest.raises(ServerUnavailableError):
        await take()
    assert taken == ["c2"]


async def test_heartbeat_and_goodbye(engine: Running, agent: AgentClient) -> None:
    await agent.register("scribe", labels={"team": "a"})
    await agent.heartbeat()
    assert await engine.call("ZSCORE", engine.keys.heartbeats, AGENT) is not None
    reply = await agent.call("goodbye", {"reason": "done"})
    assert reply.state == "offline"
    assert (await engine.record(AGENT))["liveness"] == "left"


async def test_a_malformed_message_is_not_sent(redis_client: Redis, prefix: str, agent: AgentClient) -> None:
    with pytest.raises(MalformedError):
        await agent.transition("no name for a state")
    for value in (float("nan"), 2**70, "\ud800", object()):
        with pytest.raises(MalformedError):
            await agent.send("message", {"to": "b", "content": [value]})
    with pytest.raises(ValueError, match="not a valid agent id"):
        AgentClient("a b")
    assert await redis_client.keys(f"{prefix}:*") == []


async def test_no_reply_is_a_timeout(server: EmbeddedServer, prefix: str) -> None:
    """Without an engine; the message stays queued."""
    async with AgentClient(AGENT, url=server.url, prefix=prefix, reply_timeout_s=0.05) as agent:
        with pytest.raises(TimeoutError, match="has not replied"):
            await agent.transition("inbox")


async def test_redis_out_of_reach_is_an_error(prefix: str) -> None:
    """After a few attempts."""
    async with AgentClient(AGENT, url="redis://127.0.0.1:1", prefix=prefix) as agent:
        with pytest.raises(ServerUnavailableError, match="refused"):
            await agent.heartbeat()


async def test_a_cancellation_is_never_lost(server: EmbeddedServer, prefix: str) -> None:
    """At any iteration of the event loop: while connecting, sending, or waiting for the reply."""
    for turns in range(60):
        async with AgentClient(AGENT, url=server.url, prefix=f"{prefix}-{turns}") as agent:
            sending = asyncio.create_task(agent.register("scribe"))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            _, pending = await asyncio.wait([sending], timeout=300)
            assert (turns, pending) == (turns, set())
            assert sending.cancelled()


async def test_two_instances_under_one_id_are_a_divergence(server: EmbeddedServer, prefix: str) -> None:
    """A tool without an instance beside one process is not."""

    def client(instance: str | None) -> AgentClient:
        return AgentClient(AGENT, url=server.url, prefix=prefix, reply_timeout_s=100, instance=instance)

    async with (
        running_engine(server, prefix, divergence__poll_interval=0.02) as engine,
        client("one") as one,
        client("two") as two,
        client(None) as tool,
    ):
        for _ in range(5):
            await one.call("measurement", {"x": 1})
            await tool.call("measurement", {"x": 2})
        await two.call("measurement", {"x": 3})
        assert await engine.audit("divergence_opened") == []
        for instance in (one, two, one):
            await instance.call("measurement", {"x": 4})
        (found,) = await eventually(lambda: engine.audit("divergence_opened"))
        assert (found["code"], found["details"]["confidence"]) == ("duplicate_instance", "certain")
