"""One run of a program for `aism run`: its input, its output, and its end together with all its descendants."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar

from aism_engine.agent import launcher

T = TypeVar("T")
_Control: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

MAX_OUTPUT_BYTES: Final = 262_144
"""Longer output is an error: a truncated result would look like a complete one."""
KILL_AFTER_S: Final = 5.0
"""Time between SIGTERM and SIGKILL."""
_ERROR_TAIL_BYTES: Final = 2000
_CHUNK: Final = 65_536
_DRAIN_S: Final = 30.0
"""Longest wait for the end of the output after the program and all its descendants have ended. The output normally ends
at once. It ends later on a busy machine, or if a process that is not a descendant holds it open."""
_DRAIN_LEFT_S: Final = 1.0
"""Longest wait for the end of the output if some processes could not be ended."""


class Status(NamedTuple):
    """How a program has ended: `exit` and its exit code, or `signal` and the number of the signal.

    `error` and an errno: it could not be started. `lost` and 0: the launcher died before the program ended.
    """

    kind: str
    number: int


class Program:
    """A running program. `running` starts one and ends it."""

    def __init__(self, process: Any, control: _Control, given: bytes) -> None:  # noqa: ANN401  mypy does not know that it has all three pipes
        self._process = process
        reports, self._control = control
        self._status: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        self.output = bytearray()
        self.output_too_large = False
        self.left = 0
        """At the end: the number of processes that could not be ended."""
        self._errors = b""
        self._launcher_has_finished = False
        self._reporting = asyncio.create_task(self._read_reports(reports))
        work = (self._write_input(given), self._read_output(), self._read_errors(), process.wait())
        self._work = [asyncio.create_task(each) for each in work]

    @classmethod
    @asynccontextmanager
    async def running(cls, command: Sequence[str], environ: Mapping[str, str], given: bytes) -> AsyncIterator[Self]:
        """Run a program with `given` as its standard input; at the end of the block, end it with all its descendants.

        Raises OSError if no process can be started. A cancellation takes effect when everything has ended.
        """
        starting = asyncio.ensure_future(cls._start(command, environ, given))
        try:
            yield await asyncio.shield(starting)
        finally:
            await uncancelled(_end(starting))

    @classmethod
    async def _start(cls, command: Sequence[str], environ: Mapping[str, str], given: bytes) -> Self:
        ours, theirs = socket.socketpair()
        with closing(theirs):
            control = await asyncio.open_unix_connection(sock=ours)
            try:
                pipe, fd = asyncio.subprocess.PIPE, theirs.fileno()
                words = [sys.executable, "-I", "-S", launcher.__file__, str(fd), str(KILL_AFTER_S), *command]
                process = await asyncio.create_subprocess_exec(
                    *words,
                    stdin=pipe,
                    stdout=pipe,
                    stderr=pipe,
                    env=dict(environ),
                    pass_fds=[fd],
                    start_new_session=True,
                )
            except BaseException:
                control[1].close()
                raise
        return cls(process, control, given)

    @property
    def errors(self) -> str:
        """The end of standard error."""
        return self._errors.decode(errors="replace").strip()

    async def exited(self) -> Status:
        """Wait until the program itself has ended, whatever its children do."""
        return await asyncio.shield(self._status)

    async def end(self) -> None:
        """End the program and all its descendants, and read the rest of its output."""
        self._ask_for_end()
        await self._reporting  # until the launcher has ended
        self._control.close()
        if not self._launcher_has_finished:
            launcher.kill_session(self._process.pid)
        is_over = self._launcher_has_finished and not self.left
        _, open_ = await asyncio.wait(self._work, timeout=_DRAIN_S if is_over else _DRAIN_LEFT_S)
        for task in open_:
            task.cancel()
        await asyncio.wait(self._work)
        self._process._transport.close()  # noqa: SLF001  no other way to close pipes that a process still holds

    def _ask_for_end(self) -> None:
        with suppress(OSError):  # the launcher has ended already
            self._control.write_eof()

    async def _read_reports(self, reports: asyncio.StreamReader) -> None:
        while line := await reports.readline():
            kind, _, number = line.decode().partition(" ")
            if kind == "left":
                self.left, self._launcher_has_finished = int(number), True
            else:
                self._status.set_result(Status(kind, int(number)))
        if not self._status.done():
            self._status.set_result(Status("lost", 0))

    async def _write_input(self, given: bytes) -> None:
        stdin = self._process.stdin
        with suppress(ConnectionError):  # the program may not read its input
            stdin.write(given)
            await stdin.drain()
        stdin.close()

    async def _read_output(self) -> None:
        while chunk := await self._process.stdout.read(_CHUNK):
            if self.output_too_large:
                continue  # asyncio notices the end of the output only if all of it is read
            self.output += chunk
            if len(self.output) > MAX_OUTPUT_BYTES:
                self.output_too_large = True
                self._ask_for_end()

    async def _read_errors(self) -> None:
        while chunk := await self._process.stderr.read(_CHUNK):
            self._errors = (self._errors + chunk)[-_ERROR_TAIL_BYTES:]


async def _end(starting: "asyncio.Future[Any]") -> None:
    await (await starting).end()


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end even if this task is cancelled meanwhile; raise the cancellation afterwards."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()
