"""Laws of `aism run`, run as a process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.agent.test_agent import ID, has_left, send, wait_for_status
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


@pytest.mark.parametrize("how", ["limit", "deadline", "cancel", "stop"])
async def test_the_program_and_its_children_are_ended(engine: Running, start: Start, tmp_path: Path, how: str) -> None:
    """At the limit, at the deadline, by a cancellation, and when the agent stops; even if a child ignores SIGTERM."""
    file = tmp_path / "pids"
    child = f"sh -c 'trap \"\" TERM; echo $$ >> {file}; while :; do sleep 0.1; done'"
    process = start(f"{child} & echo $$ >> {file}; wait", *(["--limit", "3"] if how == "limit" else []))
    await send(engine, "c1", ttl=5.0 if how == "deadline" else 60.0)
    pids = await eventually(partial(read_pids, file, 2))
    if how == "cancel":
        await engine.ask({"id": "x1", "type": "cancel", "payload": {"command_id": "c1"}})
    elif how == "stop":
        process.send_signal(signal.SIGTERM)
    await eventually(lambda: not any(map(is_alive, pids)))
    if how == "limit":
        assert (await wait_for_status(engine, "c1", "failed"))["code"] == "timeout"


async def test_a_stop_during_the_end_of_a_program_leaves_nothing_behind(
    engine: Running, start: Start, tmp_path: Path
) -> None:
    """The limit has passed, a child ignores SIGTERM, and then the agent is stopped as well."""
    file = tmp_path / "pids"
    child = f"sh -c 'trap \"\" TERM; echo $$ >> {file}; while :; do sleep 0.1; done'"
    process = start(f"{child} & echo $$ >> {file}; wait", "--limit", "3")
    await send(engine, "c1")
    pids = await eventually(partial(read_pids, file, 2))
    process.send_signal(signal.SIGTERM)
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_a_program_dies_with_its_agent(engine: Running, start: Start, tmp_path: Path) -> None:
    """Even if `aism run` is killed by SIGKILL."""
    file = tmp_path / "pids"
    process = start(f"echo $$ >> {file}; exec sleep 60")
    await send(engine, "c1")
    (pid,) = await eventually(partial(read_pids, file, 1))
    process.kill()
    await eventually(lambda: not is_alive(pid))


async def test_failures_in_a_row_cause_a_backoff(engine: Running, start: Start, tmp_path: Path) -> None:
    """A broken program does not fail all waiting commands at once."""
    file = tmp_path / "times"
    start(f"date +%s%N >> {file}; exit 1")
    for number in range(3):
        await send(engine, f"c{number}")
    for number in range(3):
        await wait_for_status(engine, f"c{number}", "failed")
    first, second, third = (int(line) / 1e9 for line in file.read_text().split())
    assert second - first >= 0.5
    assert third - second >= 1.0


async def test_the_result_of_a_run_is_printed(engine: Running, start: Start) -> None:
    """At the stop: one object, exit code 0, and the engine knows that the agent has left."""
    process = start("cat")
    await send(engine, "c1")
    await wait_for_status(engine, "c1", "succeeded")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert (process.returncode, json.loads(out)) == (0, {"ok": True, "agent_id": ID, "done": 1, "failed": 0})
    await eventually(partial(has_left, engine))


def read_pids(file: Path, count: int) -> list[int]:
    found = file.read_text().split() if file.exists() else []
    return [int(each) for each in found] if len(found) >= count else []


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False
