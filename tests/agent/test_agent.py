"""Laws of `Agent`: what a handler returns or raises is the outcome, even across outages of Redis."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from aism_engine.agent.agent import Agent, CommandFailedError, Task, run_until_signal
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, plain_client, running_engine

ID = "worker-1"


def build_agent(server: EmbeddedServer, prefix: str, **options: Any) -> Agent:  # noqa: ANN401
    defaults = {"heartbeat_interval_s": 0.1, "stop_timeout_s": 600.0}
    return Agent(ID, type="worker", url=server.url, prefix=prefix, **defaults | options)


def leave_no_time(agent: Agent) -> None:
    """Let the agent cancel its handlers at once when it stops, but send all of its messages."""
    stop = agent._tasks.stop
    agent._tasks.stop = lambda timeout_s: stop(0.0)  # type: ignore[method-assign]  # noqa: ARG005


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[asyncio.Event]:
    """Run an agent and stop it in order, by the event that is given or at the end."""
    stopping = asyncio.Event()
    task = asyncio.create_task(agent.run(stopping))
    try:
        yield stopping
    finally:
        stopping.set()
        await task


async def send(engine: Running, command_id: str, kind: str = "work", **options: float) -> None:
    await eventually(partial(engine.record, ID))
    payload = {"agent_id": ID, "command": {"type": kind, "payload": {"n": 1}}, "options": options}
    await engine.ask({"id": command_id, "type": "send", "reply": True, "payload": payload})
    assert (await engine.replied(command_id))["ok"]


async def wait_for_status(engine: Running, command_id: str, *statuses: str) -> dict[str, str]:
    """Wait until a command has one of these statuses; return its record."""

    async def record() -> dict[str, str]:
        found = await engine.command(command_id)
        return found if found.get("status") in statuses else {}

    return await eventually(record)


async def test_an_agent_registers_sends_heartbeats_and_leaves(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    async with running(build_agent(server, prefix, labels={"team": "a"})):
        await eventually(partial(engine.audit, "agent_registered"))
        assert (await engine.record(ID))["labels"] == '{"team":"a"}'
        await eventually(lambda: engine.call("ZSCORE", engine.keys.heartbeats, ID))
    await eventually(partial(has_left, engine))


async def test_what_a_handler_returns_or_raises_is_the_outcome(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """For coroutines and plain functions. An unknown type and a result that JSON does not have are final failures."""
    agent = build_agent(server, prefix, concurrency=4)

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

    @agent.on("not_json")
    async def not_json(_: Task) -> dict[str, Any]:
        return {"what": object()}

    expected = {
        "work": ("succeeded", ""),
        "plain": ("succeeded", ""),
        "refuse": ("failed", "no_paper"),
        "break": ("failed", "handler_failed"),
        "not_json": ("failed", "malformed_outcome"),
        "other": ("failed", "unknown_type"),
    }
    async with running(agent):
        for kind in expected:
            await send(engine, f"c-{kind}", kind)
        found = {kind: await wait_for_status(engine, f"c-{kind}", "succeeded", "failed") for kind in expected}
    assert {kind: (record["status"], record.get("code", "")) for kind, record in found.items()} == expected
    assert (json.loads(found["work"]["result"]), found["work"]["note"]) == ({"seen": {"n": 1}}, "half")


def raises(error: BaseException) -> Callable[[Task], None]:
    def handler(_: Task) -> None:
        raise error

    return handler


def returns(result: Any) -> Callable[[Task], Any]:  # noqa: ANN401
    return lambda _: result


def coroutine(handler: Callable[[Task], Any]) -> Callable[[Task], Awaitable[Any]]:
    """Turn a plain handler into a coroutine function."""

    async def call(task: Task) -> Any:  # noqa: ANN401
        return handler(task)

    return call


class NamelessError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE
HANDLERS = {
    "exit": (raises(SystemExit(1)), "handler_failed"),
    "interrupt": (raises(KeyboardInterrupt()), "handler_failed"),
    "cancelled": (raises(asyncio.CancelledError()), "handler_failed"),
    "generator": (raises(GeneratorExit()), "handler_failed"),
    "stop": (raises(StopIteration(1)), "handler_failed"),
    "base": (raises(BaseException()), "handler_failed"),
    "nameless": (raises(NamelessError()), "handler_failed"),
    "surrogate": (raises(OSError("caf\udce9")), "handler_failed"),
    "code": (raises(CommandFailedError("")), "malformed_outcome"),
    "list": (returns([("a", 1)]), "malformed_outcome"),
    "nan": (returns({"a": [float("nan")]}), "malformed_outcome"),
    "cycle": (returns(CYCLE), "malformed_outcome"),
    "big": (returns({"a": 2**70}), "malformed_outcome"),
    "text": (returns({"a": "\ud800"}), "malformed_outcome"),
    "object": (returns({"a": object()}), "malformed_outcome"),
    "null": (returns({"a": None}), ""),
}
"""Handlers that misbehave, the code of their outcome, and one result that is kept as it is."""


@pytest.mark.parametrize("wrap", [lambda handler: handler, coroutine], ids=["plain", "coroutine"])
async def test_whatever_a_handler_does_ends_in_an_outcome(
    engine: Running, server: EmbeddedServer, prefix: str, wrap: Callable[[Any], Any]
) -> None:
    """And the agent lives on."""
    agent = build_agent(server, prefix)
    for kind, (handler, _) in HANDLERS.items():
        agent.on(kind)(wrap(handler))
    async with running(agent):
        for kind in HANDLERS:
            await send(engine, f"c-{kind}", kind)
        found = {kind: await wait_for_status(engine, f"c-{kind}", "succeeded", "failed") for kind in HANDLERS}
    assert {kind: record.get("code", "") for kind, record in found.items()} == {
        kind: code for kind, (_, code) in HANDLERS.items()
    }
    assert found["null"]["result"] == '{"a":null}'


async def test_a_traceback_shows_no_local_variables(
    engine: Running, server: EmbeddedServer, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be secrets. The default logger of a Python program would print them."""
    agent = build_agent(server, prefix)

    @agent.on("work")
    async def work(task: Task) -> None:
        api_key = f"sk-{task.payload['n']}23"
        raise LookupError(len(api_key))

    async with running(agent):
        await send(engine, "c1")
        await wait_for_status(engine, "c1", "failed")
    out = capsys.readouterr().out
    assert ("LookupError: 6" in out, "sk-123" in out) == (True, False)


async def test_plain_functions_run_at_once_up_to_the_concurrency_and_report_progress(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    agent, all_run = build_agent(server, prefix, concurrency=20), threading.Barrier(20)

    @agent.on("work")
    def work(task: Task) -> None:
        task.progress(percent=50)
        all_run.wait()

    async with running(agent):
        for number in range(20):
            await send(engine, f"c{number}")
        records = [await wait_for_status(engine, f"c{number}", "succeeded") for number in range(20)]
    assert {record["percent"] for record in records} == {"50"}


async def test_a_plain_function_keeps_its_slot_until_it_returns(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """A cancelled one too: no other command starts meanwhile, and no outcome is sent."""
    agent, events, release = build_agent(server, prefix), list[str](), threading.Event()

    @agent.on("work")
    def work(task: Task) -> None:
        events.append(f"{task.command.id} starts")
        while not task.cancelled and not release.is_set():
            release.wait(0.01)
        events.append(f"{task.command.id} sees its cancellation" if task.cancelled else f"{task.command.id} works")
        release.wait()
        events.append(f"{task.command.id} ends")

    async with running(agent):
        await send(engine, "c1")
        await wait_for_status(engine, "c1", "acked")
        await send(engine, "c2")
        await engine.ask({"id": "x1", "type": "cancel", "payload": {"command_id": "c1"}})
        await eventually(lambda: "c1 sees its cancellation" in events)
        release.set()
        await wait_for_status(engine, "c2", "succeeded")
    assert events == ["c1 starts", "c1 sees its cancellation", "c1 ends", "c2 starts", "c2 works", "c2 ends"]
    assert (await engine.command("c1"))["status"] == "cancelled"
    assert await engine.dead_letters() == []


async def test_a_stop_is_complete_only_when_no_handler_works_any_more(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """So a command never runs twice at the same time. A plain function that outlives the stop still has its outcome."""
    agent, release = build_agent(server, prefix), threading.Event()
    leave_no_time(agent)

    @agent.on("work")
    def work(_: Task) -> dict[str, Any]:
        release.wait()
        return {"done": True}

    with capture_logs() as logs:
        async with running(agent) as stopping:
            await send(engine, "c1")
            await wait_for_status(engine, "c1", "acked")
            stopping.set()
            await eventually(lambda: [each for each in logs if each["event"] == "stop_waits_for_handlers"])
            assert ((await engine.command("c1"))["status"], await has_left(engine)) == ("acked", False)
            release.set()
    assert (await wait_for_status(engine, "c1", "succeeded", "failed"))["status"] == "succeeded"
    await eventually(partial(has_left, engine))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_an_agent(number: signal.Signals) -> None:
    async def run(stopping: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stopping.wait()

    asyncio.run(run_until_signal(run))


def test_an_ignored_sighup_stays_ignored() -> None:
    """As under nohup."""

    async def run(_: asyncio.Event) -> None:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(run_until_signal(run))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_handler_can_be_registered_for_cancellations() -> None:
    with pytest.raises(ValueError, match="sent by the engine itself"):
        Agent(ID, type="worker").on("cancel")


async def test_commands_beyond_the_concurrency_stay_in_the_list(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    agent, gate, busy, most = build_agent(server, prefix, concurrency=2), asyncio.Event(), 0, 0

    @agent.on("work")
    async def work(_: Task) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await gate.wait()
        busy -= 1

    async with running(agent):
        for number in range(6):
            await send(engine, f"c{number}")
        await eventually(lambda: busy == 2)
        assert await engine.call("LLEN", engine.keys.commands(ID)) == 4
        gate.set()
        for number in range(6):
            await wait_for_status(engine, f"c{number}", "succeeded")
    assert most == 2


async def test_a_cancellation_reaches_a_busy_agent(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    """The handler is cancelled, and no outcome is sent."""
    agent, cancelled = build_agent(server, prefix, stop_timeout_s=0.1), asyncio.Event()

    @agent.on("work")
    async def work(_: Task) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with running(agent):
        await send(engine, "c1")
        await wait_for_status(engine, "c1", "acked")
        await send(engine, "c2")
        await engine.ask({"id": "x1", "type": "cancel", "payload": {"command_id": "c1"}})
        await cancelled.wait()
        await wait_for_status(engine, "c2", "acked")
    assert (await engine.command("c1"))["status"] == "cancelled"
    assert await engine.dead_letters() == []


async def test_a_command_that_is_delivered_again_is_not_executed_again(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """Its outcome is sent again under the same id, or its ack while it is running."""
    agent, times, gate = build_agent(server, prefix, concurrency=2), 0, asyncio.Event()

    @agent.on("work")
    async def work(_: Task) -> None:
        nonlocal times
        times += 1
        await gate.wait()

    async with running(agent):
        await send(engine, "c1")
        await wait_for_status(engine, "c1", "acked")
        body = await engine.client.hget(engine.keys.command("c1"), "body")
        await engine.call("LPUSH", engine.keys.commands(ID), body)
        await eventually(lambda: _is_empty(engine))
        gate.set()
        await wait_for_status(engine, "c1", "succeeded")
        await engine.call("LPUSH", engine.keys.commands(ID), body)
        await eventually(lambda: _is_empty(engine))
    assert times == 1


async def has_left(engine: Running) -> bool:
    return (await engine.record(ID))["liveness"] == "left"


async def _is_empty(engine: Running) -> bool:
    return not await engine.call("LLEN", engine.keys.commands(ID))


async def test_a_result_survives_an_outage(own: EmbeddedServer, prefix: str) -> None:
    """Messages wait while Redis is away; then each is sent once, in order."""
    agent, gate = build_agent(own, prefix), asyncio.Event()

    @agent.on("work")
    async def work(task: Task) -> dict[str, Any]:
        await gate.wait()
        await task.progress(percent=99)
        return {"done": True}

    async with running_engine(own, prefix) as engine, running(agent):
        await send(engine, "c1")
        await wait_for_status(engine, "c1", "acked")
        own.kill()
        gate.set()
        await eventually(lambda: not agent._tasks.running)
        own.start()
        async with plain_client(own) as client:
            engine.client = client
            record = await wait_for_status(engine, "c1", "succeeded")
            assert (record["percent"], json.loads(record["result"])) == ("99", {"done": True})


@pytest.mark.parametrize(
    ("in_time", "fact", "restarts"), [(True, "command_succeeded", "0"), (False, "command_retried", "1")]
)
async def test_stop_finishes_running_commands_or_hands_them_back(
    engine: Running, server: EmbeddedServer, prefix: str, *, in_time: bool, fact: str, restarts: str
) -> None:
    """A handler that does not finish in time is cancelled, and its command is delivered again: that is no failure."""
    agent, gate = build_agent(server, prefix), asyncio.Event()
    if not in_time:
        leave_no_time(agent)

    @agent.on("work")
    async def work(_: Task) -> None:
        await gate.wait()

    async with running(agent) as stopping:
        await send(engine, "c1")
        await wait_for_status(engine, "c1", "acked")
        stopping.set()
        if in_time:
            await asyncio.sleep(0)  # let the agent begin to stop
            gate.set()
    facts = await eventually(lambda: engine.audit("command_succeeded", "command_retried"))
    assert [each["event"] for each in facts] == [fact]
    record = await engine.command("c1")
    assert (record["failures"], record["restarts"]) == ("0", restarts)


async def test_an_agent_waits_for_server_and_engine(own: EmbeddedServer, prefix: str) -> None:
    own.kill()
    agent = build_agent(own, prefix)
    agent.client._reply_timeout_s = 0.2
    async with running(agent):
        own.start()
        async with running_engine(own, prefix) as engine:
            await eventually(partial(engine.audit, "agent_registered"))


async def test_stop_does_not_wait_for_a_reply(own: EmbeddedServer, prefix: str) -> None:
    """Without an engine, the agent waits for the reply to its registration; the stop interrupts the wait."""
    stopping, agent = asyncio.Event(), build_agent(own, prefix)
    agent.client._reply_timeout_s = 3600
    task = asyncio.create_task(agent.run(stopping))
    async with plain_client(own) as client:
        await eventually(lambda: client.llen(f"{prefix}:engine:response_queue"))
        stopping.set()
        await task


async def test_a_forgotten_agent_registers_again(own: EmbeddedServer, prefix: str) -> None:
    """After the server has lost its data, the engine knows type and capabilities again."""
    async with running_engine(own, prefix) as engine, running(build_agent(own, prefix)):
        await eventually(partial(engine.audit, "agent_registered"))
        await engine.client.flushall()

        async def is_known() -> bool:
            return (await engine.record(ID)).get("capabilities") == '["ack"]'

        await eventually(is_known)


async def test_a_result_that_is_too_large_is_an_error(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    agent = build_agent(server, prefix, codec="msgpack")

    @agent.on("work")
    def work(_: Task) -> dict[str, Any]:
        return {"text": "\x01" * 250_000}

    async with running(agent):
        await send(engine, "c1")
        assert (await wait_for_status(engine, "c1", "failed"))["code"] == "result_too_large"


def test_an_invalid_id_is_refused() -> None:
    with pytest.raises(ValueError, match="not a valid agent id"):
        Agent("a b", type="worker")
