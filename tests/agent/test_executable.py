"""Laws of `aism run`, as a process of its own: any executable is an agent."""

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
from tests.agent.test_agent import ID, has_left, send, until
from tests.support.engine import Running, eventually, running_engine

Start: TypeAlias = Callable[..., subprocess.Popen[str]]


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    async with running_engine(server, prefix, dispatcher__poll_interval=0.05) as running:
        yield running


@pytest.fixture
def start(server: EmbeddedServer, prefix: str) -> Iterator[Start]:
    """Let a line of shell be the agent; whatever is left of it at the end of the test is killed."""
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


@pytest.mark.parametrize(
    ("script", "status", "code", "result"),
    [
        ("cat", "succeeded", None, {"n": 1}),
        ("echo hello", "succeeded", None, {"output": "hello"}),
        ("true", "succeeded", None, {}),
        ('printf "%s" "$AISM_COMMAND_ID $AISM_COMMAND_TYPE"', "succeeded", None, {"output": "c1 work"}),
        ("echo sorry >&2; exit 3", "failed", "exit_3", None),
        ("kill -9 $$", "failed", "signal_9", None),
        ("yes", "failed", "output_too_large", None),
        ("exec no-such-program", "failed", "exit_127", None),
    ],
)
async def test_what_it_prints_and_how_it_ends_is_the_outcome(
    engine: Running, start: Start, script: str, status: str, code: str | None, result: dict[str, object] | None
) -> None:
    """The payload on standard input, the result on standard output, the exit code is the verdict."""
    start(script)
    await send(engine, "c1")
    record = await until(engine, "c1", "succeeded", "failed")
    assert (record["status"], record.get("code")) == (status, code)
    assert (json.loads(record["result"]) if "result" in record else None) == result
    assert code != "exit_3" or record["reason"] == "sorry"


@pytest.mark.parametrize("how", ["limit", "deadline", "cancel", "stop"])
async def test_it_and_its_children_are_ended(engine: Running, start: Start, tmp_path: Path, how: str) -> None:
    """When its time is over, when the command is called off, and when the agent stops; whether they listen or not."""
    file = tmp_path / "pids"
    child = f"sh -c 'trap \"\" TERM; echo $$ >> {file}; while :; do sleep 0.1; done'"
    process = start(f"{child} & echo $$ >> {file}; wait", *(["--limit", "0.5"] if how == "limit" else []))
    await send(engine, "c1", ttl=1.0 if how == "deadline" else 60.0)
    pids = await eventually(partial(written, file, 2), 15)
    if how == "cancel":
        await engine.ask({"id": "x1", "type": "cancel", "payload": {"command_id": "c1"}})
    elif how == "stop":
        process.send_signal(signal.SIGTERM)
    await eventually(lambda: not any(map(is_alive, pids)), 25)
    if how == "limit":
        assert (await until(engine, "c1", "failed"))["code"] == "timeout"


async def test_nothing_is_left_though_the_agent_loses_patience_meanwhile(
    engine: Running, start: Start, tmp_path: Path
) -> None:
    """The limit strikes, children do not listen, and then the agent shall stop, too: they are killed all the same."""
    file = tmp_path / "pids"
    child = f"sh -c 'trap \"\" TERM; echo $$ >> {file}; while :; do sleep 0.1; done'"
    process = start(f"{child} & echo $$ >> {file}; wait", "--limit", "1")
    await send(engine, "c1")
    pids = await eventually(partial(written, file, 2), 15)
    process.send_signal(signal.SIGTERM)
    await eventually(lambda: not any(map(is_alive, pids)), 25)


async def test_a_program_dies_with_its_agent_however_that_dies(engine: Running, start: Start, tmp_path: Path) -> None:
    """Kill -9 of `aism run` leaves nothing behind that works for nobody."""
    file = tmp_path / "pids"
    process = start(f"echo $$ >> {file}; exec sleep 60")
    await send(engine, "c1")
    (pid,) = await eventually(partial(written, file, 1), 15)
    process.kill()
    await eventually(lambda: not is_alive(pid))


async def test_after_failures_in_a_row_it_rests(engine: Running, start: Start, tmp_path: Path) -> None:
    """A broken program does not fail everything that waits at once; the pause is over with the next success."""
    file = tmp_path / "times"
    start(f"date +%s%N >> {file}; exit 1")
    for number in range(3):
        await send(engine, f"c{number}")
    for number in range(3):
        await until(engine, f"c{number}", "failed")
    first, second, third = (int(line) / 1e9 for line in file.read_text().split())
    assert second - first >= 0.5
    assert third - second >= 1.0


async def test_it_says_what_it_has_done(engine: Running, start: Start) -> None:
    """When it is stopped: one object, exit code 0; the engine knows that it has left."""
    process = start("cat")
    await send(engine, "c1")
    await until(engine, "c1", "succeeded")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, json.loads(out)) == (0, {"ok": True, "agent_id": ID, "done": 1, "failed": 0})
    await eventually(partial(has_left, engine))


def written(file: Path, count: int) -> list[int]:
    found = file.read_text().split() if file.exists() else []
    return [int(each) for each in found] if len(found) >= count else []


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False
