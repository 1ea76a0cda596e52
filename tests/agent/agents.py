"""Agents in the event loop of the test."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from aism_engine.agent.agent import Agent
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually

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


async def has_left(engine: Running) -> bool:
    return bool((await engine.record(ID))["liveness"] == "left")


def read_pids(file: Path, count: int = 0) -> list[int]:
    found = file.read_text().split() if file.exists() else []
    return [int(each) for each in found] if len(found) >= count else []


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False
