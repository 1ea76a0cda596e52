"""`aism run`: any executable becomes an agent.

Each command starts it once: the payload comes on its standard input, in JSON; what it prints is the result (a JSON
object as it is, other text under `output`); an exit code other than 0 is an error, with the end of its standard error.
It runs in a session of its own, so that all its children end with it: at the deadline, when the command is called off,
and when the agent stops, by SIGTERM and a while later by SIGKILL.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog

from aism_engine.agent.agent import Agent, CommandFailedError, Task
from aism_engine.backoff import Backoff
from aism_engine.clock import from_iso
from aism_engine.die_with_parent import die_with_parent
from aism_engine.domain.protocol.messages import CommandMessage

log = structlog.get_logger(component="run")

_OUTPUT_BYTES: Final = 262_144
"""Of standard output; more is an error: it could not be told from a result that was cut."""
_TAIL_BYTES: Final = 2000
_CHUNK: Final = 65_536
_GRACE_S: Final = 5.0
"""From SIGTERM to SIGKILL."""
_LOOK_EVERY_S: Final = 0.02
_BACKOFF: Final = Backoff(0.5, 60.0)
"""Pause before the next command after consecutive failures."""


class Executable:
    """Runs one program again and again, once for each command. After failures in a row it rests, longer each time."""

    def __init__(self, program: Sequence[str], *, timeout_s: float | None) -> None:
        self._program = program
        self._timeout_s = timeout_s
        self._failures = 0
        self.done = 0
        self.failed = 0

    async def __call__(self, task: Task) -> Mapping[str, Any]:
        """Do one command. Raises CommandFailedError where the program did not end well, or not in time."""
        if self._failures:
            await asyncio.sleep(_BACKOFF.limit_s(self._failures))
        try:
            result = await self._run(task.command)
        except CommandFailedError:
            self._failures, self.failed = self._failures + 1, self.failed + 1
            raise
        self._failures, self.done = 0, self.done + 1
        return result

    async def _run(self, command: CommandMessage) -> Mapping[str, Any]:
        environ = {
            **os.environ,
            "AISM_COMMAND_ID": command.id,
            "AISM_COMMAND_TYPE": command.type,
            "AISM_ATTEMPT": str(command.attempt),
        }
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(self._program), stdin=pipe, stdout=pipe, stderr=pipe, env=environ, start_new_session=True
        )
        try:
            async with asyncio.timeout(self._left_s(command)):
                output, errors = await _spoken(process, msgspec.json.encode(command.payload))
                code = await process.wait()
        except TimeoutError:
            raise CommandFailedError("timeout", "not done in time: it was ended") from None
        finally:
            await _in_any_case(_end(process))
        if code != 0:
            raise CommandFailedError(f"exit_{code}" if code > 0 else f"signal_{-code}", errors or f"exit code {code}")
        return _result(output)

    def _left_s(self, command: CommandMessage) -> float | None:
        """Give for how long it may go on: its own timeout, or what is left until the deadline by our clock."""
        left = [self._timeout_s] if self._timeout_s is not None else []
        if command.deadline is not None:
            left.append(max(0.0, from_iso(command.deadline) - time.time()))
        return min(left, default=None)


async def _spoken(process: asyncio.subprocess.Process, payload: bytes) -> tuple[bytes, str]:
    """Give it its payload, and read all that it says: of its errors the end is kept."""
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    if stdin is None or stdout is None or stderr is None:
        raise RuntimeError("it was started without pipes")
    _, output, errors = await asyncio.gather(_give(stdin, payload), _whole(stdout), _tail(stderr))
    return output, errors


async def _give(stdin: asyncio.StreamWriter, payload: bytes) -> None:
    with suppress(ConnectionError):  # it need not read it
        stdin.write(payload)
        await stdin.drain()
    stdin.close()


async def _whole(stdout: asyncio.StreamReader) -> bytes:
    output = b""
    while chunk := await stdout.read(_CHUNK):
        output += chunk
        if len(output) > _OUTPUT_BYTES:
            raise CommandFailedError("output_too_large", f"it has printed more than {_OUTPUT_BYTES} bytes")
    return output


async def _tail(stderr: asyncio.StreamReader) -> str:
    tail = b""
    while chunk := await stderr.read(_CHUNK):
        tail = (tail + chunk)[-_TAIL_BYTES:]
    return tail.decode(errors="replace").strip()


def _result(output: bytes) -> Mapping[str, Any]:
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        found = msgspec.json.decode(output)
        if isinstance(found, dict):
            return found
    text = output.decode(errors="replace").strip()
    return {"output": text} if text else {}


async def _in_any_case(what: Coroutine[Any, Any, None]) -> None:
    """Await something to its end, and hear of a cancellation after it."""
    doing, cancelled = asyncio.ensure_future(what), False
    while not doing.done():
        try:
            await asyncio.shield(doing)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it and all its children, whatever has become of it: first by asking, then by force."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        number, ends_at = int(ask), time.monotonic() + _GRACE_S
        while time.monotonic() < ends_at:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:  # nobody of them is left
                await process.wait()
                return
            number = 0  # it was asked once: from now on it is only looked
            await asyncio.sleep(_LOOK_EVERY_S)


def run(agent: Agent, program: Sequence[str], *, timeout_s: float | None) -> dict[str, Any]:
    """Be an agent until SIGTERM or SIGINT; gives how many commands were done, and how many have failed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the result has standard output
    executable = Executable(program, timeout_s=timeout_s)
    agent.on("*")(executable)
    agent.main()
    return {"ok": True, "agent_id": agent.client.agent_id, "done": executable.done, "failed": executable.failed}
