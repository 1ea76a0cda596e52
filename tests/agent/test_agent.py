"""Laws of `Agent`: what a handler returns or raises is the outcome, whatever becomes of the server meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from aism_engine.agent.agent import Agent, CommandFailedError, Task
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, plain_client, running_engine
from tests.support.server import test_server_binary

ID = "worker-1"


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    async with running_engine(server, prefix, dispatcher__poll_interval=0.05) as running:
        yield running


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that may be treated badly; what it has accepted is on disk."""
    with EmbeddedServer(test_server_binary(), append_fsync="always") as server:
        yield server


def an_agent(server: EmbeddedServer, prefix: str, **options: Any) -> Agent:  # noqa: ANN401
    return Agent(ID, type="worker", url=server.url, prefix=prefix, **{"beat_every_s": 0.1, "patience_s": 5.0} | options)


@asynccontextmanager
async def living(agent: Agent) -> AsyncIterator[None]:
    """Let an agent live, and stop it in order."""
    stopping = asyncio.Event()
    life = asyncio.create_task(agent.run(stopping))
    try:
        yield
    finally:
        stopping.set()
        async with asyncio.timeout(15):
            await life


async def send(running: Running, command_id: str, kind: str = "work", **options: float) -> None:
    await eventually(partial(running.record, ID))
    payload = {"agent_id": ID, "command": {"type": kind, "payload": {"n": 1}}, "options": options}
    await running.ask({"id": command_id, "type": "send", "reply": True, "payload": payload})
    assert (await running.replied(command_id))["ok"]


async def until(running: Running, command_id: str, *statuses: str) -> dict[str, str]:
    async def ended() -> dict[str, str]:
        record = await running.command(command_id)
        return record if record.get("status") in statuses else {}

    return await eventually(ended, 15)


async def test_it_registers_beats_and_leaves(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    """All by itself, from its start to its end."""
    async with living(an_agent(server, prefix, labels={"team": "a"})):
        await eventually(partial(engine.audit, "agent_registered"))
        assert (await engine.record(ID))["labels"] == '{"team":"a"}'
        await eventually(lambda: engine.call("ZSCORE", engine.keys.heartbeats, ID))
    await eventually(partial(has_left, engine))


async def test_what_a_handler_returns_or_raises_is_the_outcome(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """Coroutines and plain functions alike; what is not known, or cannot be said, has failed for good."""
    agent = an_agent(server, prefix, concurrency=4)

    @agent.on("work")
    async def work(task: Task) -> dict[str, Any]:
        await task.progress(percent=50, note="half")
        return {"seen": task.payload}

    @agent.on("plain")
    def plain(_: Task) -> None:
        return None

    @agent.on("refuse")
    async def refuse(_: Task) -> None:
        raise CommandFailedError("no_paper", "the printer is empty")

    @agent.on("break")
    def broken(_: Task) -> None:
        raise KeyError("oops")

    @agent.on("unsayable")
    async def unsayable(_: Task) -> dict[str, Any]:
        return {"what": object()}

    expected = {
        "work": ("succeeded", ""),
        "plain": ("succeeded", ""),
        "refuse": ("failed", "no_paper"),
        "break": ("failed", "handler_failed"),
        "unsayable": ("failed", "malformed_outcome"),
        "other": ("failed", "unknown_type"),
    }
    async with living(agent):
        for kind in expected:
            await send(engine, f"c-{kind}", kind)
        found = {kind: await until(engine, f"c-{kind}", "succeeded", "failed") for kind in expected}
    assert {kind: (record["status"], record.get("code", "")) for kind, record in found.items()} == expected
    assert (json.loads(found["work"]["result"]), found["work"]["note"]) == ({"seen": {"n": 1}}, "half")


async def test_it_takes_no_more_than_it_has_hands_for(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    """What it cannot work on stays in its list, for all to see."""
    agent, gate, busy, most = an_agent(server, prefix, concurrency=2), asyncio.Event(), 0, 0

    @agent.on("work")
    async def work(_: Task) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await gate.wait()
        busy -= 1

    async with living(agent):
        for number in range(6):
            await send(engine, f"c{number}")
        await eventually(lambda: busy == 2)
        assert await engine.call("LLEN", engine.keys.commands(ID)) == 4
        gate.set()
        for number in range(6):
            await until(engine, f"c{number}", "succeeded")
    assert most == 2


async def test_what_is_called_off_is_cancelled_though_all_hands_are_busy(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """The handler hears of it as a cancellation, and nothing is said of it any more."""
    agent, cancelled = an_agent(server, prefix), asyncio.Event()

    @agent.on("work")
    async def work(_: Task) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with living(agent):
        await send(engine, "c1")
        await until(engine, "c1", "acked")
        await send(engine, "c2")
        await engine.ask({"id": "x1", "type": "cancel", "payload": {"command_id": "c1"}})
        await asyncio.wait_for(cancelled.wait(), 15)
        await until(engine, "c2", "acked")
    assert (await engine.command("c1"))["status"] == "cancelled"
    assert await engine.dead_letters() == []


async def test_a_command_that_comes_again_is_not_done_again(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """Its outcome is said once more, under the same id; one that is still worked on is confirmed once more."""
    agent, times, gate = an_agent(server, prefix, concurrency=2), 0, asyncio.Event()

    @agent.on("work")
    async def work(_: Task) -> None:
        nonlocal times
        times += 1
        await gate.wait()

    async with living(agent):
        await send(engine, "c1")
        await until(engine, "c1", "acked")
        body = await engine.client.hget(engine.keys.command("c1"), "body")
        await engine.call("LPUSH", engine.keys.commands(ID), body)
        await eventually(lambda: _is_empty(engine))
        gate.set()
        await until(engine, "c1", "succeeded")
        await engine.call("LPUSH", engine.keys.commands(ID), body)
        await eventually(lambda: _is_empty(engine))
    assert times == 1


async def has_left(engine: Running) -> bool:
    return (await engine.record(ID))["liveness"] == "left"


async def _is_empty(engine: Running) -> bool:
    return not await engine.call("LLEN", engine.keys.commands(ID))


async def test_a_result_outlives_the_server(own: EmbeddedServer, prefix: str) -> None:
    """What is done while Redis is away is said when it is there again, once, and in order."""
    agent, gate = an_agent(own, prefix), asyncio.Event()

    @agent.on("work")
    async def work(task: Task) -> dict[str, Any]:
        await gate.wait()
        await task.progress(percent=99)
        return {"done": True}

    async with running_engine(own, prefix) as running, living(agent):
        await send(running, "c1")
        await until(running, "c1", "acked")
        own.kill()
        gate.set()
        await eventually(lambda: not agent._running)
        own.start()
        async with plain_client(own) as client:
            running.client = client
            record = await until(running, "c1", "succeeded")
            assert (record["percent"], json.loads(record["result"])) == ("99", {"done": True})


@pytest.mark.parametrize(("patience_s", "status"), [(5.0, "succeeded"), (0.1, "waiting")])
async def test_what_is_in_hand_at_the_end_is_finished_or_given_back(
    engine: Running, server: EmbeddedServer, prefix: str, patience_s: float, status: str
) -> None:
    """Within its patience it is finished; beyond that it is cancelled, and may be sent again."""
    agent, gate = an_agent(server, prefix, patience_s=patience_s), asyncio.Event()

    @agent.on("work")
    async def work(_: Task) -> None:
        await gate.wait()

    async with living(agent):
        await send(engine, "c1")
        await until(engine, "c1", "acked")
        if status == "succeeded":
            asyncio.get_running_loop().call_later(0.3, gate.set)
    await eventually(engine.is_drained)
    assert (await engine.command("c1"))["failures"] == ("0" if status == "succeeded" else "1")
    facts = [fact["event"] for fact in await engine.audit("command_succeeded", "command_retried")]
    assert facts == ["command_succeeded" if status == "succeeded" else "command_retried"]


async def test_it_waits_for_a_server_and_an_engine_to_come(own: EmbeddedServer, prefix: str) -> None:
    """In any order, and for as long as it takes."""
    own.kill()
    agent = an_agent(own, prefix)
    agent.client._answer_timeout_s = 0.2
    async with living(agent):
        own.start()
        async with running_engine(own, prefix) as running:
            await eventually(partial(running.audit, "agent_registered"))


async def test_it_stops_at_once_though_nobody_answers(own: EmbeddedServer, prefix: str) -> None:
    """No engine is there, and an answer is waited for half a minute: a signal is heard meanwhile."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    life = asyncio.create_task(an_agent(own, prefix, patience_s=0.2).run(stopping))
    async with plain_client(own) as client:
        await eventually(lambda: client.llen(f"{prefix}:engine:response_queue"))
        began = loop.time()
        stopping.set()
        await asyncio.wait_for(life, 10)
    assert loop.time() - began < 5


async def test_who_was_forgotten_registers_again(own: EmbeddedServer, prefix: str) -> None:
    """A server that was emptied knows it as before, with its type and what it can do."""
    async with running_engine(own, prefix) as running, living(an_agent(own, prefix)):
        await eventually(partial(running.audit, "agent_registered"))
        await running.client.flushall()

        async def is_known() -> bool:
            return (await running.record(ID)).get("capabilities") == '["ack"]'

        await eventually(is_known, 15)


async def test_a_result_that_is_too_large_is_an_error(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    """Nobody would read it: its sender is told so, instead of nothing."""
    agent = an_agent(server, prefix, codec="msgpack")

    @agent.on("work")
    def work(_: Task) -> dict[str, Any]:
        return {"text": "\x01" * 250_000}

    async with living(agent):
        await send(engine, "c1")
        assert (await until(engine, "c1", "failed"))["code"] == "result_too_large"


def test_an_agent_needs_an_id_that_is_one() -> None:
    with pytest.raises(ValueError, match="no agent id"):
        Agent("a b", type="worker")
