"""`aism run`: makes an agent of any executable.

Each command starts the program once, with the payload as JSON on its standard input. What the program prints is the
result: a JSON object as it is, other text under `output`. An exit code other than 0 is an error, with the end of
standard error as message. The command ends when the program itself exits: children that it left behind are ended. The
program and its children are also ended at the deadline, when the command is cancelled, and when the agent stops or
dies.
"""

import asyncio
import errno
import os
import signal
import sys
import time
from asyncio import timeout
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog

from aism_engine.agent.agent import Agent
from aism_engine.agent.program import MAX_OUTPUT_BYTES, Program, Status
from aism_engine.agent.task import CommandFailedError, Task
from aism_engine.backoff import Backoff

log = structlog.get_logger(component="agent")

_BACKOFF: Final = Backoff(0.5, 60.0)
"""Pause before the next command after failures in a row."""
_TEMPORARY: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Errors after which a later start may succeed: no process, memory or file descriptor is free now."""


class Executable:
    """Handler that runs a program once for each command, with backoff after failures in a row.

    `environ` is added to the environment of the program.
    """

    def __init__(
        self, program: Sequence[str], *, timeout_s: float | None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._program = program
        self._timeout_s = timeout_s
        self._environ = dict(environ or {})
        self._failures_in_a_row = 0
        self.succeeded = 0
        self.failed = 0

    async def __call__(self, task: Task) -> Mapping[str, Any]:
        """Run the program. Raises CommandFailedError if it fails or takes too long."""
        if self._failures_in_a_row:
            await asyncio.sleep(_BACKOFF.limit_s(self._failures_in_a_row))
        try:
            result = await self._run(task)
        except CommandFailedError:
            self._failures_in_a_row, self.failed = self._failures_in_a_row + 1, self.failed + 1
            raise
        self._failures_in_a_row, self.succeeded = 0, self.succeeded + 1
        return result

    async def _run(self, task: Task) -> Mapping[str, Any]:
        command, status = task.command, None
        own = {"AISM_COMMAND_ID": command.id, "AISM_COMMAND_TYPE": command.type, "AISM_ATTEMPT": str(command.attempt)}
        environ, given = {**os.environ, **self._environ, **own}, msgspec.json.encode(command.payload)
        try:
            async with Program.running(self._program, environ, given) as program:
                with suppress(TimeoutError):
                    async with timeout(self._time_left_s(task)):
                        status = await program.exited()
        except OSError as error:
            raise _not_started(self._program, error.errno or 0) from error
        if program.left:
            log.warning("processes_not_ended", command_id=command.id, count=program.left)
        if program.output_too_large:
            raise CommandFailedError("output_too_large", f"the program has printed more than {MAX_OUTPUT_BYTES} bytes")
        if status is None:
            left = f"; {program.left} of its processes could not be ended" if program.left else ""
            raise CommandFailedError("timeout", f"the program took too long and was ended{left}")
        self._raise_failure(status, program.errors)
        if program.errors:
            log.info("program_stderr", command_id=command.id, text=program.errors)
        return _parse_result(bytes(program.output))

    def _raise_failure(self, status: Status, errors: str) -> None:
        match status:
            case ("error", number):
                raise _not_started(self._program, number)
            case ("lost", _):
                raise CommandFailedError("launcher_died", "the process that watched the program was killed")
            case ("signal", number):
                raise CommandFailedError(f"signal_{number}", errors or f"ended by signal {number}")
            case ("exit", code) if code:
                raise CommandFailedError(f"exit_{code}", errors or f"exit code {code}")

    def _time_left_s(self, task: Task) -> float | None:
        """Return the timeout, or the time until the command's deadline if that is shorter."""
        limits = [self._timeout_s] if self._timeout_s is not None else []
        if task.expires_at is not None:
            limits.append(max(0.0, task.expires_at - time.monotonic()))
        return min(limits, default=None)


def _not_started(program: Sequence[str], number: int) -> CommandFailedError:
    message = f"cannot start {program[0]}: {os.strerror(number)}"
    return CommandFailedError("not_started", message, retryable=number in _TEMPORARY)


def _parse_result(output: bytes) -> Mapping[str, Any]:
    with suppress(ValueError):
        value = msgspec.json.decode(output)
        if isinstance(value, dict):
            return value
    text = output.decode(errors="replace").strip()
    return {"output": text} if text else {}


def run(agent: Agent, program: Sequence[str], *, timeout_s: float | None) -> dict[str, Any]:
    """Run an agent until SIGTERM, SIGINT or SIGHUP; return how many commands have succeeded and failed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the result
    become_init()
    executable = Executable(program, timeout_s=timeout_s, environ=agent.environ)
    agent.on("*")(executable)
    agent.main()
    counts = {"succeeded": executable.succeeded, "failed": executable.failed}
    return {"ok": True, "agent_id": agent.client.agent_id, **counts}


def become_init() -> None:
    """If this is process 1, as in a container, go on in a child; process 1 reaps orphans and passes signals on."""
    if os.getpid() != 1:
        return
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    child = os.fork()
    if child:
        for number in stops:
            signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    while child:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
