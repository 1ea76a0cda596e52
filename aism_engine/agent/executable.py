"""`aism run`: makes an agent of any executable.

Each command starts the program once, with the payload as JSON on its standard input. What the program prints is the
result: a JSON object as it is, other text under `output`. An exit code other than 0 is an error, with the end of
standard error as message. The program runs in a session of its own, so that all its children end with it: at the
deadline, when the command is cancelled, and when the agent stops. They get SIGTERM, and five seconds later SIGKILL.
"""

import asyncio
import os
import signal
import sys
import time
from asyncio import timeout
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog

from aism_engine.agent.agent import Agent
from aism_engine.agent.client import CommandMessage
from aism_engine.agent.tasks import CommandFailedError, Task
from aism_engine.backoff import Backoff
from aism_engine.clock import from_iso
from aism_engine.die_with_parent import die_with_parent

_MAX_OUTPUT_BYTES: Final = 262_144
"""Longer output is an error: a truncated result would look like a complete one."""
_ERROR_TAIL_BYTES: Final = 2000
_CHUNK: Final = 65_536
_KILL_AFTER_S: Final = 5.0
_POLL_INTERVAL_S: Final = 0.02
_BACKOFF: Final = Backoff(0.5, 60.0)
"""Pause before the next command after failures in a row."""


class Executable:
    """Handler that runs a program once for each command, with backoff after failures in a row."""

    def __init__(self, program: Sequence[str], *, timeout_s: float | None) -> None:
        self._program = program
        self._timeout_s = timeout_s
        self._failures_in_a_row = 0
        self.done = 0
        self.failed = 0

    async def __call__(self, task: Task) -> Mapping[str, Any]:
        """Run the program. Raises CommandFailedError if it fails or takes too long."""
        if self._failures_in_a_row:
            await asyncio.sleep(_BACKOFF.limit_s(self._failures_in_a_row))
        try:
            result = await self._run(task.command)
        except CommandFailedError:
            self._failures_in_a_row, self.failed = self._failures_in_a_row + 1, self.failed + 1
            raise
        self._failures_in_a_row, self.done = 0, self.done + 1
        return result

    async def _run(self, command: CommandMessage) -> Mapping[str, Any]:
        own = {"AISM_COMMAND_ID": command.id, "AISM_COMMAND_TYPE": command.type, "AISM_ATTEMPT": str(command.attempt)}
        environ, pipe = {**os.environ, **own}, asyncio.subprocess.PIPE
        process: Any = await asyncio.create_subprocess_exec(  # Any: mypy does not know that it has all three pipes
            *die_with_parent(self._program), stdin=pipe, stdout=pipe, stderr=pipe, env=environ, start_new_session=True
        )
        try:
            async with timeout(self._time_left_s(command)):
                write = _write(process.stdin, msgspec.json.encode(command.payload))
                read = _read_output(process.stdout), _read_error_tail(process.stderr)
                _, output, errors = await asyncio.gather(write, *read)
                code = await process.wait()
        except TimeoutError:
            raise CommandFailedError("timeout", "the program took too long and was ended") from None
        finally:
            await _uncancelled(_end(process))
        if code != 0:
            raise CommandFailedError(f"exit_{code}" if code > 0 else f"signal_{-code}", errors or f"exit code {code}")
        return _parse_result(output)

    def _time_left_s(self, command: CommandMessage) -> float | None:
        """Return the timeout, or the time until the command's deadline by the local clock if that is shorter."""
        limits = [self._timeout_s] if self._timeout_s is not None else []
        if command.deadline is not None:
            limits.append(max(0.0, from_iso(command.deadline) - time.time()))
        return min(limits, default=None)


async def _write(stdin: asyncio.StreamWriter, payload: bytes) -> None:
    with suppress(ConnectionError):  # the program may not read its input
        stdin.write(payload)
        await stdin.drain()
    stdin.close()


async def _read_output(stdout: asyncio.StreamReader) -> bytes:
    output = b""
    while chunk := await stdout.read(_CHUNK):
        output += chunk
        if len(output) > _MAX_OUTPUT_BYTES:
            raise CommandFailedError("output_too_large", f"the program has printed more than {_MAX_OUTPUT_BYTES} bytes")
    return output


async def _read_error_tail(stderr: asyncio.StreamReader) -> str:
    tail = b""
    while chunk := await stderr.read(_CHUNK):
        tail = (tail + chunk)[-_ERROR_TAIL_BYTES:]
    return tail.decode(errors="replace").strip()


def _parse_result(output: bytes) -> Mapping[str, Any]:
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        value = msgspec.json.decode(output)
        if isinstance(value, dict):
            return value
    text = output.decode(errors="replace").strip()
    return {"output": text} if text else {}


async def _uncancelled(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await a coroutine to its end even if this task is cancelled meanwhile; raise the cancellation afterwards."""
    task, cancelled = asyncio.ensure_future(coroutine), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and all its children: first by SIGTERM, then by SIGKILL."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        number, ends_at = int(sent), time.monotonic() + _KILL_AFTER_S
        while number or time.monotonic() < ends_at:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:  # no process of the group is left
                await process.wait()
                return
            number = 0  # the signal is sent once; signal 0 only checks whether a process is left
            await asyncio.sleep(_POLL_INTERVAL_S)


def run(agent: Agent, program: Sequence[str], *, timeout_s: float | None) -> dict[str, Any]:
    """Run an agent until SIGTERM or SIGINT; return how many commands were done and how many have failed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the result
    executable = Executable(program, timeout_s=timeout_s)
    agent.on("*")(executable)
    agent.main()
    return {"ok": True, "agent_id": agent.client.agent_id, "done": executable.done, "failed": executable.failed}
