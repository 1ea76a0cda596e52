"""Laws of the agent's client: what it says is what the protocol asks for, once."""

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
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    async with running_engine(server, prefix) as engine:
        yield engine


@pytest.fixture
async def agent(server: EmbeddedServer, prefix: str) -> AsyncIterator[AgentClient]:
    async with AgentClient(AGENT, url=server.url, prefix=prefix, answer_timeout_s=5) as client:
        yield client


async def send(engine: Running, command_id: str, kind: str, **payload: Any) -> None:  # noqa: ANN401
    request = {"agent_id": AGENT, "command": {"type": kind, "payload": payload}}
    await engine.ask({"id": command_id, "type": "send", "payload": request})
    assert (await engine.replied(command_id))["ok"]


async def test_a_message_is_pushed_and_then_published(redis_client: Redis, prefix: str, agent: AgentClient) -> None:
    """The same bytes both times, with id, type, agent, payload and time; nothing else is written."""
    async with redis_client.pubsub() as pubsub:
        await pubsub.subscribe(f"{prefix}:engine:responses")
        await pubsub.get_message(timeout=5)
        await agent.measure({"tokens": 12})
        heard = await pubsub.get_message(timeout=5)
    (pushed,) = await redis_client.lrange(f"{prefix}:engine:response_queue", 0, -1)
    assert heard is not None
    assert heard["data"] == pushed
    message = json.loads(pushed)
    assert list(message) == ["id", "type", "agent_id", "payload", "timestamp"]
    assert (message["type"], message["agent_id"], message["payload"]) == ("measurement", AGENT, {"tokens": 12})
    assert await redis_client.keys(f"{prefix}:*") == [f"{prefix}:engine:response_queue".encode()]


async def test_a_push_that_is_not_confirmed_is_pushed_again_and_counts_once(
    engine: Running, agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second copy has the same id, so the engine applies one of them."""
    push, pushed = agent.push, list[bytes]()

    async def push_and_lose_the_first_reply(bodies: Sequence[bytes]) -> None:
        await push(bodies)
        pushed.extend(bodies)
        if len(pushed) == 1:
            raise ServerUnavailableError("connection", "lost")

    monkeypatch.setattr(agent, "push", push_and_lose_the_first_reply)
    answer = await agent.register("scribe")
    assert answer is not None
    assert (answer.ok, answer.state) == (True, "bootstrap")
    assert pushed[0] == pushed[1]
    await agent.transition("inbox")
    assert len(await engine.audit("agent_registered")) == 1


async def test_a_refusal_says_what_is_allowed(engine: Running, agent: AgentClient) -> None:
    """The answer is not ok; state and reasons are in it."""
    await agent.register("scribe")
    answer = await agent.transition("deep_work")
    assert answer is not None
    assert answer.error is not None
    assert (answer.ok, answer.state, answer.error["code"]) == (False, "bootstrap", "not_allowed")
    assert "inbox" in answer.error["details"]["allowed"]
    assert await agent.state() == "bootstrap"
    assert await engine.state(AGENT) == "bootstrap"


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_command_is_taken_worked_on_and_answered(engine: Running, agent: AgentClient, codec: str) -> None:
    """Whatever codec the agent has asked for."""
    await agent.register("scribe", capabilities=["ack"], codec=codec)
    await send(engine, "work-1", "work", n=1)
    command = await agent.next_command(5)
    assert command is not None
    assert (command.id, command.type, command.payload) == ("work-1", "work", {"n": 1})
    await agent.ack("work-1")
    await agent.progress("work-1", percent=40, note="soon")
    await agent.result("work-1", {"lines": 3}, reply=True)
    record = await engine.command("work-1")
    assert (record["status"], record["percent"], record["note"]) == ("succeeded", "40", "soon")
    assert json.loads(record["result"]) == {"lines": 3}
    assert await agent.next_command(0) is None


async def test_a_command_can_fail_and_a_transition_can_answer_one(engine: Running, agent: AgentClient) -> None:
    """Each ends in the record of its command."""
    await agent.register("scribe")
    await send(engine, "work-1", "work")
    await send(engine, "go-1", "state_transition", target="inbox")
    await agent.error("no_luck", "it rained", command_id="work-1")
    await agent.transition("inbox", command_id="go-1")
    assert (await engine.command("work-1"))["reason"] == "it rained"
    assert (await engine.command("go-1"))["status"] == "succeeded"


async def test_what_is_no_command_is_reported_and_passed_over(engine: Running, agent: AgentClient) -> None:
    """Somebody else's hand in the list does not stop the agent."""
    await agent.register("scribe")
    await engine.call("LPUSH", engine.keys.commands(AGENT), "no command")
    await send(engine, "work-1", "work")
    command = await agent.next_command(5)
    assert command is not None
    assert command.id == "work-1"
    await agent.transition("inbox")
    assert [fact["code"] for fact in await engine.audit("agent_error")] == ["malformed_command"]


async def test_presence(engine: Running, agent: AgentClient) -> None:
    """A heartbeat is a score, a goodbye an end in order."""
    await agent.register("scribe", labels={"team": "a"})
    await agent.heartbeat()
    assert await engine.call("ZSCORE", engine.keys.heartbeats, AGENT) is not None
    answer = await agent.goodbye("done", reply=True)
    assert answer is not None
    assert answer.state == "offline"
    assert (await engine.record(AGENT))["liveness"] == "left"


async def test_what_the_engine_would_bury_is_not_sent(redis_client: Redis, prefix: str, agent: AgentClient) -> None:
    """The caller hears of it at once."""
    with pytest.raises(MalformedError):
        await agent.transition("no name for a state")
    with pytest.raises(ValueError, match="no agent id"):
        AgentClient("a b")
    assert await redis_client.keys(f"{prefix}:*") == []


async def test_nobody_answering_is_a_timeout(server: EmbeddedServer, prefix: str) -> None:
    """Without an engine a question ends when its time is over; the message stays queued."""
    async with AgentClient(AGENT, url=server.url, prefix=prefix, answer_timeout_s=0.05) as agent:
        with pytest.raises(TimeoutError, match="has not answered"):
            await agent.transition("inbox")


async def test_a_server_out_of_reach_is_named(prefix: str) -> None:
    """After a few attempts."""
    async with AgentClient(AGENT, url="redis://127.0.0.1:1", prefix=prefix) as agent:
        with pytest.raises(ServerUnavailableError, match="refused"):
            await agent.heartbeat()


async def test_a_cancellation_is_never_lost(server: EmbeddedServer, prefix: str) -> None:
    """At whatever turn of the loop it comes: connecting, sending, waiting for the answer."""
    for turns in range(60):
        async with AgentClient(AGENT, url=server.url, prefix=f"{prefix}-{turns}") as agent:
            saying = asyncio.create_task(agent.register("scribe"))
            for _ in range(turns):
                await asyncio.sleep(0)
            saying.cancel()
            _, pending = await asyncio.wait([saying], timeout=5)
            assert (turns, pending) == (turns, set())
            assert saying.cancelled()


async def test_two_processes_under_one_id_are_noticed_and_a_tool_beside_one_is_not(
    server: EmbeddedServer, prefix: str
) -> None:
    """Each says which instance it is; what speaks for the agent now and then says nothing of the kind."""

    def client(instance: str | None) -> AgentClient:
        return AgentClient(AGENT, url=server.url, prefix=prefix, answer_timeout_s=5, instance=instance)

    async with (
        running_engine(server, prefix, divergence__poll_interval=0.02) as engine,
        client("one") as one,
        client("two") as two,
        client(None) as tool,
    ):
        for _ in range(5):
            await one.measure({"x": 1}, reply=True)
            await tool.measure({"x": 2}, reply=True)
        await two.measure({"x": 3}, reply=True)
        assert await engine.audit("divergence_opened") == []
        for speaker in (one, two, one):
            await speaker.measure({"x": 4}, reply=True)
        (found,) = await eventually(lambda: engine.audit("divergence_opened"))
        assert (found["code"], found["details"]["confidence"]) == ("duplicate_instance", "certain")
