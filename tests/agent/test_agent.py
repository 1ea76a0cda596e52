"""Laws of `Agent`: what a handler returns or raises is the outcome, even across outages of Redis."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from aism_engine.agent.agent import Agent, CommandFailedError, Task
from aism_engine.store.embedded import EmbeddedServer
from tests.agent.agents import ID, build_agent, has_left, running, send, wait_for_status
from tests.support.engine import Running, eventually


async def test_an_agent_registers_sends_heartbeats_and_leaves(
    engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    async with running(build_agent(server, prefix, labels={"team": "a"})):
        await eventually(partial(engine.audit, "agent_registered"))
        assert (await engine.record(ID))["labels"] == {"team": "a"}
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


def test_no_handler_can_be_registered_for_cancellations() -> None:
    with pytest.raises(ValueError, match="sent by the engine itself"):
        Agent(ID, type="worker").on("cancel")


def test_an_invalid_id_is_refused() -> None:
    with pytest.raises(ValueError, match="not a valid agent id"):
        Agent("a b", type="worker")
