"""An agent that is busy, is stopped, or has no server."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from aism_engine.agent.agent import Task, run_until_signal
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.outages import OUTAGE_NAMES
from tests.agent.agents import ID, build_agent, has_left, leave_no_time, running, send, wait_for_status
from tests.support.engine import Running, eventually, plain_client, running_engine


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
    agent, cancelled = build_agent(server, prefix), asyncio.Event()
    leave_no_time(agent)

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
            return (await engine.record(ID)).get("capabilities") == ("ack",)

        await eventually(is_known)


async def test_a_result_that_is_too_large_is_an_error(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    agent = build_agent(server, prefix, codec="msgpack")

    @agent.on("work")
    def work(_: Task) -> dict[str, Any]:
        return {"text": "\x01" * 250_000}

    async with running(agent):
        await send(engine, "c1")
        assert (await wait_for_status(engine, "c1", "failed"))["code"] == "result_too_large"


async def test_an_agent_logs_the_begin_and_the_end_of_an_outage(own: EmbeddedServer, prefix: str) -> None:
    """Once each, although heartbeats, messages and commands all fail."""
    with capture_logs() as logs:
        async with running_engine(own, prefix), build_agent(own, prefix) as agent:
            own.kill()
            await eventually(lambda: len(agent._outages._failing) == 2)
            await agent.measure(words=1)
            await eventually(lambda: len(agent._outages._failing) == 3)
            own.start()
            await eventually(lambda: agent._outages.current is None)
    own_lines = [each for each in logs if each.get("component") == "agent" and each["event"].startswith("redis_")]
    assert [each["event"] for each in own_lines] == ["redis_unavailable", "redis_available"]
    assert own_lines[0]["outage"] in OUTAGE_NAMES


async def test_a_stop_during_an_outage_says_what_was_not_sent(own: EmbeddedServer, prefix: str) -> None:
    """The next process gets the command whose outcome was not sent."""
    agent, gate = build_agent(own, prefix), asyncio.Event()

    @agent.on("work")
    async def work(_: Task) -> dict[str, Any]:
        await gate.wait()
        return {"done": True}

    async with running_engine(own, prefix) as engine:
        stopping = asyncio.Event()
        with capture_logs() as logs:
            run = asyncio.create_task(agent.run(stopping))
            await send(engine, "c1")
            await wait_for_status(engine, "c1", "acked")
            own.kill()
            gate.set()
            await eventually(lambda: not agent._tasks.running)
            agent._stop_timeout_s = 0.0
            stopping.set()
            with pytest.raises(ServerUnavailableError, match="not sent: 2"):
                await run
        (line,) = [each for each in logs if each["event"] == "messages_not_sent"]
        assert (line["count"], line["outage"] in OUTAGE_NAMES) == (2, True)  # the result and the goodbye
        own.start()
        async with plain_client(own) as client, running(again := build_agent(own, prefix)):
            again.on("work")(lambda _: {"again": True})
            engine.client = client
            assert (await wait_for_status(engine, "c1", "succeeded"))["result"] == '{"again":true}'


async def test_a_stop_has_one_deadline_for_handlers_and_messages(
    own: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers of commands and of messages have nine tenths of the time; the last tenth is for unsent messages."""
    agent, keys = build_agent(own, prefix, stop_timeout_s=600.0), Keys(prefix)
    began: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("command", "message", "stop")}
    cancelled: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("command", "message")}
    stop_handlers, passed_s = agent._tasks.stop, 0.0

    async def work_forever(name: str) -> None:
        began[name].set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled[name].set()

    async def stop(timeout_s: float) -> None:
        began["stop"].set()
        await stop_handlers(timeout_s)

    agent.on("work")(lambda _: work_forever("command"))
    agent.on_message(lambda _: work_forever("message"))
    monkeypatch.setattr(agent._tasks, "stop", stop)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + passed_s)
    stopping = asyncio.Event()
    async with plain_client(own) as client:
        async with running_engine(own, prefix) as engine:
            run = asyncio.create_task(agent.run(stopping))
            await send(engine, "c1")
            content = {"from": "a", "content": 1, "thread_id": None}
            await client.lpush(keys.inbox(ID), json.dumps({"id": "m1", "type": "message", "payload": content}))
            for name in ("command", "message"):
                await began[name].wait()
        own.kill()
    stopping.set()
    await began["stop"].wait()
    passed_s = 541.0
    for name in ("command", "message"):
        await cancelled[name].wait()
    await eventually(lambda: agent._outbox._loop is None)  # it says goodbye
    assert not run.done()
    passed_s = 601.0
    with pytest.raises(ServerUnavailableError, match="not sent"):
        await run


async def test_a_program_whose_messages_were_not_sent_exits_with_69(own: EmbeddedServer) -> None:
    """The server is away from the start, and the program is stopped."""
    own.kill()
    program = f'from aism_engine import Agent; Agent("{ID}", type="worker", url="{own.url}", stop_timeout_s=0).main()'
    agent = await asyncio.create_subprocess_exec(sys.executable, "-uc", program, stdout=asyncio.subprocess.PIPE)
    assert agent.stdout is not None
    assert b"redis_unavailable" in await agent.stdout.readline()
    agent.terminate()
    printed, _ = await agent.communicate()
    assert (agent.returncode, b"messages_not_sent" in printed) == (69, True)
