"""Laws of the examples: each works unchanged, on the default prefix."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine
from tests.support.server import OwnServer

EXAMPLES = Path(__file__).parents[2] / "examples"
AGENT = "scribe-1"


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A server of their own: the examples use the default prefix."""
    with OwnServer(append_only=False) as server:
        yield server


@pytest.fixture
async def engine(server: EmbeddedServer) -> AsyncIterator[Running]:
    async with running_engine(server, "aism") as engine:
        yield engine


async def outcome(engine: Running, kind: str, **payload: Any) -> tuple[str, str]:  # noqa: ANN401
    """Send a command and wait for its end; return its status, and its result or code."""
    request = {"agent_id": AGENT, "command": {"type": kind, "payload": payload}}
    await engine.ask({"id": kind, "type": "send", "payload": request})
    assert (await engine.replied(kind))["ok"]

    async def ended() -> dict[str, str]:
        record = await engine.command(kind)
        return record if "ended_at" in record else {}

    record = await eventually(ended)
    return record["status"], record.get("result") or record.get("code", "")


@pytest.mark.parametrize(
    ("program", "work", "result", "target"),
    [
        pytest.param(
            ["bash", "bare_agent.sh"],
            ("greet", {"name": "Ada"}),
            '{"done":"greet"}',
            "deep_work",
            marks=pytest.mark.skipif(shutil.which("redis-cli") is None, reason="needs redis-cli"),
            id="bare_agent.sh",
        ),
        pytest.param(
            [sys.executable, "agent.py"],
            ("count", {"text": "one two three"}),
            '{"words":3}',
            "deep_work",
            id="agent.py",
        ),
        pytest.param(
            [sys.executable, "reviewer.py"],
            ("review", {"branch": "main"}),
            '{"branch":"main","verdict":"good"}',
            "inbox",
            id="reviewer.py",
        ),
    ],
)
async def test_an_example_executes_commands(
    engine: Running,
    server: EmbeddedServer,
    program: list[str],
    work: tuple[str, dict[str, Any]],
    result: str,
    target: str,
) -> None:
    """It is discovered, succeeds, fails on an unknown type, and follows a state transition."""
    environ = {**os.environ, "AISM_REDIS_URL": server.url}
    agent = Popen([*program, AGENT], cwd=EXAMPLES, env=environ, stdout=DEVNULL, stderr=DEVNULL)  # noqa: ASYNC220
    try:
        await eventually(lambda: engine.state(AGENT))
        kind, payload = work
        assert await outcome(engine, kind, **payload) == ("succeeded", result)
        assert (await outcome(engine, "fail"))[0] == "failed"
        assert (await outcome(engine, "state_transition", target=target))[0] == "succeeded"
        assert await engine.state(AGENT) == target
    finally:
        agent.terminate()
        agent.wait()


async def test_the_example_in_python_ends_a_cancelled_command(engine: Running, server: EmbeddedServer) -> None:
    """It stops at work, answers the `cancel` with nothing, and executes the commands that were behind it."""
    environ = {**os.environ, "AISM_REDIS_URL": server.url}
    agent = Popen([sys.executable, "agent.py", AGENT], cwd=EXAMPLES, env=environ, stdout=DEVNULL, stderr=DEVNULL)  # noqa: ASYNC220
    try:
        await eventually(lambda: engine.state(AGENT))
        for command_id, pause in (("slow", 0.05), ("next", 0)):
            work = {"type": "count", "payload": {"text": "word " * 100_000 if pause else "word", "pause": pause}}
            await engine.ask(
                {"id": command_id, "type": "send", "payload": {"agent_id": AGENT, "command": work}},
            )
            assert (await engine.replied(command_id))["ok"]
        await eventually(partial(has_status, engine, "slow", "acked"))
        await engine.ask({"id": "stop", "type": "cancel", "payload": {"command_id": "slow"}})
        await eventually(partial(has_status, engine, "next", "succeeded"))
        assert (await engine.command("slow"))["status"] == "cancelled"
        assert await engine.dead_letters() == []
    finally:
        agent.terminate()
        agent.wait()


async def has_status(engine: Running, command_id: str, status: str) -> bool:
    return (await engine.command(command_id)).get("status") == status
