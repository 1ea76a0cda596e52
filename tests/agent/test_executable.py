"""Laws of `aism run`, run as a process, and of the programs that it runs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from aism_engine.agent import executable
from aism_engine.agent.client import CommandMessage
from aism_engine.agent.executable import Executable
from aism_engine.agent.tasks import CommandFailedError, Task
from aism_engine.store.embedded import EmbeddedServer
from tests.agent.test_agent import ID, build_agent, has_left, leave_no_time, running, send, wait_for_status
from tests.support.engine import Running, eventually, running_engine

Start: TypeAlias = Callable[..., subprocess.Popen[str]]


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    async with running_engine(server, prefix, dispatcher__poll_interval=0.05) as running:
        yield running


@pytest.fixture
def start(server: EmbeddedServer, prefix: str) -> Iterator[Start]:
    """Run a shell script as the agent; the end of the test kills it."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *options: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-c", "from aism_engine.agent.tool import main; main()", "run", "--type", "shell"]
        environ = {**os.environ, "AISM_AGENT_ID": ID, "AISM_REDIS_URL": server.url, "AISM_REDIS__PREFIX": prefix}
        words = [*program, *options, "--", "sh", "-c", script]
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
    "environment": 'printf "%s" "$AISM_COMMAND_ID $AISM_COMMAND_TYPE $AISM_ATTEMPT"',
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
        "environment": {"output": "environment environment 1"},
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
    """Even if `aism run` is killed by SIGKILL."""
    file = tmp_path / "pids"
    process = start(f"echo $$ >> {file}; exec sleep 600")
    await send(engine, "c1")
    (pid,) = await eventually(partial(read_pids, file, 1))
    process.kill()
    await eventually(lambda: not is_alive(pid))


async def test_the_result_of_a_run_is_printed(engine: Running, start: Start) -> None:
    """At the stop: one object, exit code 0, and the engine knows that the agent has left."""
    process = start("cat")
    await send(engine, "c1")
    await wait_for_status(engine, "c1", "succeeded")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert (process.returncode, json.loads(out)) == (0, {"ok": True, "agent_id": ID, "done": 1, "failed": 0})
    await eventually(partial(has_left, engine))


# --- one program, without an agent ------------------------------------------------------------------------------------


@pytest.fixture
async def timer(monkeypatch: pytest.MonkeyPatch) -> "Timer":
    """The timeout of a program: it ends when the test says so. SIGKILL follows SIGTERM soon."""
    timer = Timer()
    monkeypatch.setattr(executable, "_KILL_AFTER_S", 0.05)
    monkeypatch.setattr(executable, "timeout", timer.start)
    return timer


class Timer:
    """Replaces `asyncio.timeout`."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(None)

    def start(self, _delay_s: float | None) -> asyncio.Timeout:
        return self._timeout

    def fire(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())


@pytest.mark.parametrize("how", ["timeout", "cancel", "timeout_then_cancel"])
async def test_a_child_that_ignores_sigterm_is_killed(timer: Timer, tmp_path: Path, how: str) -> None:
    """Also if the agent is stopped while a program is being ended."""
    file = tmp_path / "pids"
    child = f"sh -c 'trap \"\" TERM; echo $$ >> {file}; while :; do sleep 0.1; done'"
    running = asyncio.create_task(run_once(Executable(["sh", "-c", f"{child} & echo $$ >> {file}; wait"], timeout_s=3)))
    pids = await eventually(partial(read_pids, file, 2))
    if how != "cancel":
        timer.fire()
    if how == "timeout_then_cancel":
        await eventually(lambda: not is_alive(pids[0]) or not is_alive(pids[1]))  # SIGTERM was sent
    if how != "timeout":
        running.cancel()
    with pytest.raises(CommandFailedError if how == "timeout" else asyncio.CancelledError):
        await running
    await eventually(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize(
    ("timeout_s", "deadline", "expected"),
    [(None, None, None), (3.0, None, 3.0), (3.0, "2999-01-01T00:00:00Z", 3.0), (3.0, "2026-01-01T00:00:00Z", 0.0)],
)
def test_the_time_of_a_program_ends_at_its_limit_or_its_deadline(
    timeout_s: float | None, deadline: str | None, expected: float | None
) -> None:
    assert Executable(["true"], timeout_s=timeout_s)._time_left_s(command(deadline=deadline)) == expected


async def test_failures_in_a_row_cause_a_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken program does not fail all waiting commands at once. A success ends the backoff."""
    pauses: list[int] = []

    class Recorder:
        def limit_s(self, failures: int) -> float:
            pauses.append(failures)
            return 0.0

    monkeypatch.setattr(executable, "_BACKOFF", Recorder())
    program = Executable(["sh", "-c", "exit $AISM_ATTEMPT"], timeout_s=None)
    for code in (1, 1, 1, 0, 0, 1, 1):
        with suppress(CommandFailedError):
            await run_once(program, attempt=code)
    assert pauses == [1, 2, 3, 1]
    assert (program.done, program.failed) == (2, 5)


def command(**fields: Any) -> CommandMessage:  # noqa: ANN401
    return CommandMessage(id="c1", type="work", payload={}, timestamp="2026-01-01T00:00:00Z", **fields)


async def run_once(program: Executable, **fields: Any) -> None:  # noqa: ANN401
    async def send_nothing(*_: object) -> None:
        return None

    await program(Task(command(**fields), send_nothing))


def read_pids(file: Path, count: int = 0) -> list[int]:
    found = file.read_text().split() if file.exists() else []
    return [int(each) for each in found] if len(found) >= count else []


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False
