"""Laws of `aism run`, run as a process, and of the programs that it runs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from aism_engine.agent.executable import Executable
from aism_engine.store.embedded import EmbeddedServer
from tests.agent.agents import (
    ID,
    build_agent,
    has_left,
    is_alive,
    leave_no_time,
    read_pids,
    running,
    send,
    wait_for_status,
)
from tests.support.engine import Running, eventually, running_engine

Start: TypeAlias = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(server: EmbeddedServer, prefix: str) -> Iterator[Start]:
    """Run a shell script as the agent; the end of the test kills it."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *options: str) -> subprocess.Popen[str]:
        tool = [sys.executable, "-c", "from aism_engine.agent.tool import main; main()"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")} | {"PATH": path}
        own = ["--agent", ID, "--redis", server.url, "--prefix", prefix]
        words = [*tool, *own, "run", "--type", "shell", *options, "--", "sh", "-c", script]
        process = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


SCRIPTS = {
    "json": "cat",
    "exit": "echo sorry >&2; exit 3",
    "text": "echo hello",
    "signal": "kill -9 $$",
    "nothing": "true",
    "endless": "yes",
    "environment": 'printf "%s" "$AISM_COMMAND_ID $AISM_COMMAND_TYPE $AISM_ATTEMPT $AISM_AGENT_ID"',
    "tool": "aism() { python -c 'from aism_engine.agent.tool import main; main()' \"$@\"; }; aism whoami",
    "missing": "exec no-such-program",
}
"""A program for each type of command. Failures alternate with successes, so that the backoff stays short."""


async def test_output_and_exit_code_are_the_outcome(engine: Running, start: Start) -> None:
    start(f"case $AISM_COMMAND_TYPE in {' '.join(f'{kind}) {script};;' for kind, script in SCRIPTS.items())} esac")
    for kind in SCRIPTS:
        await send(engine, kind, kind)
    records = {kind: await wait_for_status(engine, kind, "succeeded", "failed") for kind in SCRIPTS}
    results = {kind: json.loads(record["result"]) for kind, record in records.items() if "result" in record}
    assert results == {
        "json": {"n": 1},
        "text": {"output": "hello"},
        "nothing": {},
        "environment": {"output": f"environment environment 1 {ID}"},
        "tool": {"agent_id": ID, "state": "bootstrap"},
    }
    codes = {kind: record["code"] for kind, record in records.items() if record["status"] == "failed"}
    assert codes == {"exit": "exit_3", "signal": "signal_9", "endless": "output_too_large", "missing": "exit_127"}
    assert records["exit"]["reason"] == "sorry"


WITH_CHILD = "sleep 600 & echo $! >> {file}; echo $$ >> {file}; wait"
"""A program that starts a child."""


@pytest.mark.parametrize("how", ["limit", "cancel"])
async def test_the_program_and_its_child_are_ended(engine: Running, start: Start, tmp_path: Path, how: str) -> None:
    """At the limit, and by a cancellation."""
    file = tmp_path / "pids"
    start(WITH_CHILD.format(file=file), *(["--limit", "0.1"] if how == "limit" else []))
    await send(engine, "c1")
    if how == "limit":
        assert (await wait_for_status(engine, "c1", "failed"))["code"] == "timeout"
        await eventually(lambda: not any(map(is_alive, read_pids(file))))
        return
    pids = await eventually(partial(read_pids, file, 2))
    await engine.ask({"id": "x1", "type": "cancel", "payload": {"command_id": "c1"}})
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_a_stop_of_the_agent_ends_the_program(
    engine: Running, server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    """With its child, and the command may be delivered again."""
    agent, file = build_agent(server, prefix), tmp_path / "pids"
    leave_no_time(agent)
    agent.on("*")(Executable(["sh", "-c", WITH_CHILD.format(file=file)], timeout_s=None))
    async with running(agent):
        await send(engine, "c1")
        pids = await eventually(partial(read_pids, file, 2))
    await eventually(lambda: not any(map(is_alive, pids)))
    await eventually(partial(engine.audit, "command_retried"))


async def test_a_program_dies_with_its_agent(engine: Running, start: Start, tmp_path: Path) -> None:
    """With its child, even if `aism run` is killed by SIGKILL."""
    file = tmp_path / "pids"
    process = start(WITH_CHILD.format(file=file))
    await send(engine, "c1")
    pids = await eventually(partial(read_pids, file, 2))
    process.kill()
    await eventually(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_the_result_of_a_run_is_printed(engine: Running, start: Start, number: int) -> None:
    """At the stop: one object, exit code 0, and the engine knows that the agent has left."""
    process = start("cat")
    await send(engine, "c1")
    await wait_for_status(engine, "c1", "succeeded")
    process.send_signal(number)
    out, _ = process.communicate()
    assert (process.returncode, json.loads(out)) == (0, {"ok": True, "agent_id": ID, "succeeded": 1, "failed": 0})
    await eventually(partial(has_left, engine))


async def test_a_refused_registration_ends_the_run_with_its_reason(
    server: EmbeddedServer, prefix: str, start: Start
) -> None:
    async with running_engine(server, prefix, agents__max_agents=1) as engine:
        await engine.say({"type": "heartbeat", "agent_id": "other"})
        await eventually(partial(engine.record, "other"))
        process = start("cat")
        _, errors = await asyncio.to_thread(process.communicate)
    assert (process.returncode, "the fleet is full" in errors, "Traceback" in errors) == (1, True, False)


async def test_the_deadline_does_not_depend_on_the_clock_of_the_agent(
    engine: Running, server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, agent = time.time, build_agent(server, prefix)
    agent.on("*")(Executable(["cat"], timeout_s=None))
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    async with running(agent):
        await send(engine, "c1", ttl=3600)
        assert (await wait_for_status(engine, "c1", "succeeded", "failed"))["status"] == "succeeded"
