"""Laws of the verbs of `Agent` and `Task`, of its inbox, and of `Operator`."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

import aism_engine
from aism_engine import Agent, AismError, CommandFailedError, MalformedError, Message, Operator, RefusalError, Task
from aism_engine.store.embedded import EmbeddedServer
from tests.agent.agents import ID, build_agent, has_left, send, wait_for_status
from tests.support.engine import Running, eventually, running_engine


@pytest.fixture
async def operator(engine: Running, server: EmbeddedServer, prefix: str) -> AsyncIterator[Operator]:  # noqa: ARG001
    async with Operator(url=server.url, prefix=prefix, reply_timeout_s=600) as operator:
        yield operator


async def test_an_agent_declares_states_and_measurements(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    async with build_agent(server, prefix) as agent:
        assert agent.state == "bootstrap"
        assert await agent.transition("inbox", reason="ready") == "inbox"
        await agent.measure({"gpu/0": 1}, context_used=0.5)
        with pytest.raises(RefusalError) as refusal:
            await agent.transition("bootstrap")
        assert (refusal.value.code, refusal.value.details["current"], agent.state) == ("not_allowed", "inbox", "inbox")
        measured = await eventually(lambda: engine.call("HGETALL", engine.keys.agent_measurements(ID)))
    assert measured == {b"context_used": b"0.5", b"gpu/0": b"1.0"}
    await eventually(partial(has_left, engine))


@pytest.mark.parametrize("plain", [False, True])
async def test_the_start_handler_runs_before_the_first_command(
    engine: Running, server: EmbeddedServer, prefix: str, *, plain: bool
) -> None:
    """So an idle agent has a state of its own. To declare the current state again is accepted."""
    agent = build_agent(server, prefix)

    async def enter(agent: Agent) -> None:
        assert [await agent.transition("inbox"), await agent.transition("inbox")] == ["inbox", "inbox"]

    def enter_in_a_thread(agent: Agent) -> None:
        agent.transition("inbox")

    agent.on_start(enter_in_a_thread if plain else enter)
    agent.on("work")(lambda task: {"state": task.state})
    async with agent:
        await send(engine, "c1")
        assert (await wait_for_status(engine, "c1", "succeeded", "failed"))["result"] == '{"state":"inbox"}'


async def test_an_error_of_the_start_handler_ends_the_agent(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    agent = build_agent(server, prefix)

    @agent.on_start
    async def enter(agent: Agent) -> None:
        await agent.transition("deep_work")

    with pytest.raises(RefusalError, match="not_allowed"):
        await agent.run(asyncio.Event())
    await eventually(partial(has_left, engine))


async def test_the_state_follows_what_the_engine_decides(
    engine: Running, server: EmbeddedServer, prefix: str, operator: Operator
) -> None:
    """With the next heartbeat."""
    async with build_agent(server, prefix) as agent:
        command_id = await operator.send(ID, "state_transition", {"target": "inbox"})
        assert (await operator.wait(command_id)).ok
        await eventually(lambda: agent.state == "inbox")
    assert (await engine.audit("state_changed"))[1]["new_state"] == "inbox"


@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "plain"])
async def test_a_task_has_the_verbs_of_its_agent_in_the_order_of_the_calls(
    engine: Running, server: EmbeddedServer, prefix: str, *, plain: bool
) -> None:
    """In a plain function they need no await. A transition does not end the command."""
    agent = build_agent(server, prefix)

    async def work(task: Task) -> dict[str, Any]:
        await task.transition("inbox")
        await task.progress(percent=50)
        await task.transition("deep_work", context={"why": 1})
        await task.measure(words=3)
        return {"state": task.state}

    def work_in_a_thread(task: Task) -> dict[str, Any]:
        task.transition("inbox")
        task.progress(percent=50)
        task.transition("deep_work", context={"why": 1})
        task.measure(words=3)
        return {"state": task.state}

    agent.on("work")(work_in_a_thread if plain else work)
    async with agent:
        await send(engine, "c1")
        record = await wait_for_status(engine, "c1", "succeeded", "failed")
        facts = await engine.audit("command_acked", "state_changed", "command_succeeded")
    assert (record["status"], record["result"]) == ("succeeded", '{"state":"deep_work"}')
    happened = [fact.get("new_state") or fact["event"] for fact in facts]
    assert happened == ["bootstrap", "command_acked", "inbox", "deep_work", "command_succeeded"]


async def test_a_refused_verb_fails_the_command_with_its_code(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    agent = build_agent(server, prefix)

    @agent.on("work")
    async def work(task: Task) -> None:
        await task.transition("deep_work")

    async with agent:
        await send(engine, "c1")
        record = await wait_for_status(engine, "c1", "failed")
    assert (record["code"], record["failures"]) == ("not_allowed", "0")


async def test_messages_are_handled_in_order_and_can_be_answered(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """A handler that raises, even SystemExit, loses its message only. One of the handlers is a plain function."""
    first, second = build_agent(server, prefix), Agent("worker-2", type="worker", url=server.url, prefix=prefix)
    answers, done = list[tuple[str, Any, str | None]](), asyncio.Event()

    @first.on_message
    async def take(message: Message) -> None:
        answers.append((message.sender, message.content, message.thread_id))
        if len(answers) == 2:
            done.set()

    @second.on_message
    def answer(message: Message) -> None:
        if message.content is None:
            raise SystemExit
        message.reply(message.content + 1)

    with capture_logs() as logs:
        async with first, second:
            await first.message("worker-2", 1, thread_id="t1")
            await first.message("worker-2", None)
            await first.message("worker-2", 2)
            await done.wait()
            with pytest.raises(RefusalError, match="unknown_recipient"):
                await first.message("nobody", 1)
    assert answers == [("worker-2", 2, "t1"), ("worker-2", 3, None)]
    assert [each["event"] for each in logs if each["log_level"] == "error"] == ["message_failed"]
    assert await engine.call("LLEN", engine.keys.inbox(ID)) == 0


async def test_a_message_that_arrives_at_a_stop_waits_for_the_next_process(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    """A stop finishes the message in work, and takes no other."""
    agent, taken, release = build_agent(server, prefix), asyncio.Event(), asyncio.Event()

    @agent.on_message
    async def take(_: Message) -> None:
        taken.set()
        await release.wait()

    async with agent, Agent("worker-2", type="worker", url=server.url, prefix=prefix) as other:
        await other.message(ID, 1)
        await taken.wait()
        await other.message(ID, 2)
        agent._stopping.set()
        release.set()
        await eventually(partial(has_left, engine))
    assert await engine.call("LLEN", engine.keys.inbox(ID)) == 1


async def test_a_verb_waits_while_redis_is_away(own: EmbeddedServer, prefix: str) -> None:
    async with running_engine(own, prefix), build_agent(own, prefix) as agent:
        own.kill()
        transition = asyncio.ensure_future(agent.transition("inbox"))
        own.start()
        assert await transition == "inbox"


@pytest.mark.usefixtures("engine")
async def test_verbs_need_a_running_agent(server: EmbeddedServer, prefix: str) -> None:
    """Before it has started, and after its end."""
    agent = build_agent(server, prefix)
    with pytest.raises(AismError, match="does not run"):
        await agent.transition("inbox")
    async with agent:
        pass
    with pytest.raises(AismError, match="does not run"):
        await agent.transition("inbox")


async def test_an_event_loop_in_a_thread_can_await_verbs(engine: Running, server: EmbeddedServer, prefix: str) -> None:
    agent = build_agent(server, prefix)

    @agent.on("work")
    def work(task: Task) -> dict[str, Any]:
        async def transition() -> str:
            return await task.transition("inbox")

        return {"state": asyncio.run(transition())}

    async with agent:
        await send(engine, "c1")
        assert (await wait_for_status(engine, "c1", "succeeded", "failed"))["result"] == '{"state":"inbox"}'


async def test_an_agent_that_is_refused_does_not_start(server: EmbeddedServer, prefix: str) -> None:
    second = Agent("worker-2", type="worker", url=server.url, prefix=prefix)
    async with running_engine(server, prefix, agents__max_agents=1), build_agent(server, prefix):
        with pytest.raises(AismError, match="refused to register"):
            await second.__aenter__()


# --- operators --------------------------------------------------------------------------------------------------------


async def test_an_operator_sends_waits_and_selects(operator: Operator, server: EmbeddedServer, prefix: str) -> None:
    agent = build_agent(server, prefix, labels={"team": "a"}, concurrency=2)

    @agent.on("work")
    async def work(task: Task) -> dict[str, Any]:
        if task.payload.get("fail"):
            raise CommandFailedError("no_paper", "the printer is empty")
        return {"seen": task.payload}

    async with agent:
        (found,) = await operator.select("type=worker,label.team=a")
        assert (found.id, found.state, found.labels, found.open_commands) == (ID, "bootstrap", {"team": "a"}, 0)
        assert await operator.select("type=other") == []
        done = await operator.wait(await operator.send(ID, "work", {"n": 1}, command_id="c1", ttl=600))
        assert (done.ok, done.id, done.result) == (True, "c1", {"seen": {"n": 1}})
        failed = await operator.wait(await operator.send_any("type=worker", "work", {"fail": True}))
        assert (failed.ok, failed.code, failed.reason) == (False, "no_paper", "the printer is empty")
        group = await operator.wait(await operator.send_all("type=worker", "work", quorum="100%"))
        assert (group.ok, group.counts["succeeded"]) == (True, 1)
        with pytest.raises(RefusalError, match="unknown_agent"):
            await operator.send("nobody", "work")
    assert await operator.select("type=worker") == []
    with pytest.raises(AismError, match="no command or group"):
        await operator.wait("c9")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (object(), "cannot be encoded: a value of the type object cannot be encoded"),
        ("\ud800", "cannot be encoded: text that is not valid UTF-8"),
        (float("nan"), "JSON has no NaN and no infinity"),
    ],
)
async def test_a_payload_that_cannot_be_encoded_is_refused_at_once(
    operator: Operator, value: object, problem: str
) -> None:
    with pytest.raises(MalformedError, match=f"invalid_message: {problem}"):
        await operator.send(ID, "work", {"a": value})


async def test_waiting_for_an_outcome_can_time_out(operator: Operator, server: EmbeddedServer, prefix: str) -> None:
    async with build_agent(server, prefix):
        command_id = await operator.send(ID, "work", start_in=3600)
        with pytest.raises(TimeoutError):
            await operator.wait(command_id, timeout_s=0)


async def test_an_operator_needs_a_connection() -> None:
    with pytest.raises(AismError, match="not connected"):
        await Operator().select("type=worker")


# --- the package ------------------------------------------------------------------------------------------------------


def test_every_public_name_is_imported_from_the_package() -> None:
    assert {name for name in aism_engine.__all__ if getattr(aism_engine, name).__name__ != name} == set()
    with pytest.raises(AttributeError):
        _ = aism_engine.nothing  # type: ignore[attr-defined]  # as a type checker says


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    """And agents import neither the engine nor the command line."""
    heavy = ("redis", "msgspec", "structlog", "asyncio")
    engine = (
        "aism_engine.engine",
        "aism_engine.config",
        "aism_engine.services",
        "typer",
        "uvicorn",
        "prometheus_client",
    )
    script = (
        "import sys, aism_engine\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "from aism_engine import Agent, Operator\n"
        f"print([name for name in {engine} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
