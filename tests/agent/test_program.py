"""One program of `aism agent --exec`, without an agent."""

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from aism_engine.agent import executable, launcher, program
from aism_engine.agent.client import AgentClient, CommandMessage
from aism_engine.agent.executable import Executable
from aism_engine.agent.outages import Outages
from aism_engine.agent.outbox import Outbox
from aism_engine.agent.task import CommandFailedError, Task
from tests.agent.agents import ID, is_alive, read_pids
from tests.support.engine import eventually


@pytest.fixture
async def timer(monkeypatch: pytest.MonkeyPatch) -> "Timer":
    """The timeout of a program: it ends when the test says so. SIGKILL follows SIGTERM soon."""
    timer = Timer()
    monkeypatch.setattr(program, "KILL_AFTER_S", 0.05)
    monkeypatch.setattr(executable, "timeout", timer.start)
    return timer


class Timer:
    """Replaces `asyncio.timeout`."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(None)
        self._started = asyncio.Event()

    def start(self, _delay_s: float | None) -> asyncio.Timeout:
        self._started.set()
        return self._timeout

    async def fire(self) -> None:
        await self._started.wait()  # a program may write its id before asyncio has returned it
        self._timeout.reschedule(asyncio.get_running_loop().time())


@pytest.mark.parametrize("how", ["timeout", "cancel", "timeout_then_cancel"])
async def test_a_child_that_ignores_sigterm_is_killed(timer: Timer, tmp_path: Path, how: str) -> None:
    """Also if the agent is stopped while a program is being ended."""
    file = tmp_path / "pids"
    child = f"sh -c 'trap \"\" TERM; echo $$ >> {file}; while :; do sleep 0.1; done'"
    running = asyncio.create_task(run_once(Executable(["sh", "-c", f"{child} & echo $$ >> {file}; wait"], timeout_s=3)))
    pids = await eventually(partial(read_pids, file, 2))
    if how != "cancel":
        await timer.fire()
    if how == "timeout_then_cancel":
        await eventually(lambda: not is_alive(pids[0]) or not is_alive(pids[1]))  # SIGTERM was sent
    if how != "timeout":
        running.cancel()
    with pytest.raises(CommandFailedError if how == "timeout" else asyncio.CancelledError):
        await running
    await eventually(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize(
    ("timeout_s", "deadline_in_s", "expected"),
    [(None, None, None), (3.0, None, 3.0), (3.0, 1e9, 3.0), (3.0, -1.0, 0.0)],
)
def test_the_time_of_a_program_ends_at_its_limit_or_its_deadline(
    timeout_s: float | None, deadline_in_s: float | None, expected: float | None
) -> None:
    expires_at = None if deadline_in_s is None else time.monotonic() + deadline_in_s
    task = task_of()
    task.expires_at = expires_at
    assert Executable(["true"], timeout_s=timeout_s)._time_left_s(task) == expected


@pytest.mark.parametrize("child", ["sh -c '{}'", "setsid sh -c '{}'", "setsid sh -c \"setsid sh -c '{}' &\""])
async def test_the_exit_of_the_program_is_the_outcome_and_its_children_are_ended(tmp_path: Path, child: str) -> None:
    """The children hold the output of the program open, and some have left its process group."""
    file = tmp_path / "pids"
    child = child.format(
        f"echo \\$\\$ > {file}; exec sleep 600" if '"' in child else f"echo $$ > {file}; exec sleep 600"
    )
    script = f"{child} & while ! [ -s {file} ]; do sleep 0.01; done; echo done"
    assert await run_once(Executable(["sh", "-c", script], timeout_s=None)) == {"output": "done"}
    (pid,) = read_pids(file)
    assert not is_alive(pid)


async def test_the_whole_output_is_the_result() -> None:
    """More than a pipe holds, and not more than is allowed."""
    script = "head -c 200000 /dev/zero | tr '\\0' a"
    assert await run_once(Executable(["sh", "-c", script], timeout_s=None)) == {"output": "a" * 200_000}


STANDARD_SIGNALS = (1 << 31) - 1
"""The signals 1 to 31, as a mask. The C library keeps the next two for itself."""


async def test_all_signals_have_their_default_action_in_the_program() -> None:
    """Although Python ignores SIGPIPE, and nohup ignores SIGHUP. Otherwise `yes | head -1` would never end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found = await run_once(Executable(["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"], timeout_s=None))
    finally:
        signal.signal(signal.SIGHUP, before)
    masks = [int(each, 16) & STANDARD_SIGNALS for each in found["output"].split()[1::2]]
    assert masks == [0, 0]


async def test_standard_error_of_a_successful_program_is_logged() -> None:
    with capture_logs() as logs:
        await run_once(Executable(["sh", "-c", "echo careful >&2"], timeout_s=None))
    assert [(each["event"], each["command_id"], each["text"]) for each in logs] == [("program_stderr", "c1", "careful")]


@pytest.mark.parametrize("name", ["/no/such/program", "/etc/passwd"])
async def test_a_program_that_cannot_be_executed_is_a_final_failure(name: str) -> None:
    assert await failure(Executable([name], timeout_s=None)) == ("not_started", False)


async def test_a_process_that_cannot_be_created_is_a_failure_that_may_be_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fork(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fork)
    assert await failure(Executable(["true"], timeout_s=None)) == ("not_started", True)


def test_a_process_that_may_not_be_killed_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(_pid: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(launcher, "_descendants", lambda _: {10, 11})
    monkeypatch.setattr(os, "kill", kill)
    assert launcher.end_descendants(10, kill_after_s=3600, woken_fd=0) == 2


def test_without_proc_the_process_group_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "sleep 600 & wait"], start_new_session=True)
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    woken, _ = os.pipe()
    assert launcher.end_descendants(child.pid, kill_after_s=3600, woken_fd=woken) == 0
    child.wait()
    assert not is_alive(child.pid)


@pytest.mark.parametrize(
    ("lines", "code"), [("", "launcher_died"), ("left 2\n", "launcher_died"), ("exit 0\nleft 2\n", None)]
)
async def test_what_the_launcher_reports_is_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, code: str | None
) -> None:
    """Processes that could not be ended are logged and do not change the outcome."""
    script = tmp_path / "launcher.py"
    script.write_text(f"import os, sys; os.write(int(sys.argv[1]), {lines!r}.encode())")
    monkeypatch.setattr(launcher, "__file__", str(script))
    with capture_logs() as logs:
        found = await failure(Executable(["true"], timeout_s=None))
    assert found == (code and (code, False))
    assert [each["count"] for each in logs] == ([2] if "left" in lines else [])


async def test_a_program_whose_launcher_is_killed_is_ended(tmp_path: Path) -> None:
    """With its session, so that it does not go on beside its next run."""
    file = tmp_path / "pids"
    script = f"sleep 600 & echo $! $$ > {file}; kill -9 $PPID; exec sleep 600"
    assert await failure(Executable(["sh", "-c", script], timeout_s=None)) == ("launcher_died", False)
    await eventually(lambda: not any(map(is_alive, read_pids(file))))


IN_CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc"]
AS_INIT = """
import os, signal, sys, time
from pathlib import Path
from aism_engine.agent.executable import become_init

def read(file):
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""

become_init()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
if os.fork() == 0:
    os._exit(0) if os.fork() else os.execvp("sleep", ["sleep", "0.01"])
os.wait()
while [each for each in Path("/proc").glob("[0-9]*/stat") if "(sleep)" in read(each)]:
    time.sleep(0.01)
os.kill(1, signal.SIGTERM)
signal.pause()
"""
"""Starts an orphan, waits until it is gone, and asks process 1 to stop."""


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*IN_CONTAINER, "true"], check=False, capture_output=True).returncode != 0,
    reason="needs the permission to create a process namespace",
)
def test_process_1_reaps_orphans_and_passes_signals_on() -> None:
    done = subprocess.run([*IN_CONTAINER, sys.executable, "-c", AS_INIT], check=False)
    assert done.returncode == 7


async def test_failures_in_a_row_cause_a_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken program does not fail all waiting commands at once. A success ends the backoff."""
    pauses: list[int] = []

    class Recorder:
        def limit_s(self, failures: int) -> float:
            pauses.append(failures)
            return 0.0

    monkeypatch.setattr(executable, "_BACKOFF", Recorder())
    handler = Executable(["sh", "-c", "exit $AISM_ATTEMPT"], timeout_s=None)
    for code in (1, 1, 1, 0, 0, 1, 1):
        with suppress(CommandFailedError):
            await run_once(handler, attempt=code)
    assert pauses == [1, 2, 3, 1]
    assert (handler.succeeded, handler.failed) == (2, 5)


def command(**fields: Any) -> CommandMessage:  # noqa: ANN401
    return CommandMessage(id="c1", type="work", payload={}, timestamp="2026-01-01T00:00:00Z", **fields)


def task_of(**fields: Any) -> Task:  # noqa: ANN401
    return Task(command(**fields), Outbox(AgentClient(ID), Outages(), 1))


async def run_once(handler: Executable, **fields: Any) -> Mapping[str, Any]:  # noqa: ANN401
    return await handler(task_of(**fields))


async def failure(handler: Executable) -> tuple[str, bool] | None:
    """Run a program; return the code of its failure and whether it may be retried."""
    try:
        await run_once(handler)
    except CommandFailedError as error:
        return error.code, error.retryable
    return None
