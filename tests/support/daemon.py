"""`aism-engine run` as a process of its own.

Daemons are forked from a server process that has imported the engine once: a start costs a tenth of the CPU time of a
new interpreter.
"""

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from aism_engine.cli.main import main

FORK_SERVER: Final = get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["aism_engine.cli.run", "tests.crash.crash_points", "uvloop"])
_GUARD_S: Final = 300.0
"""Only guards against hanging."""
_LINE_BYTES: Final = 1 << 20
_ERRORS: Final = frozenset({"component_failed", "decision_failed"})


class Daemon:
    """A running `aism-engine run`. Its log events are collected as they are written."""

    def __init__(self, process: Any, reader: asyncio.StreamReader) -> None:  # noqa: ANN401 - the class has no public name
        self.events: list[dict[str, Any]] = []
        self._process = process
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(process.sentinel, self._on_exit, loop)
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def start(cls, arguments: Sequence[str], environ: Mapping[str, str]) -> Self:
        """Start the daemon with these arguments and environment variables; others named `AISM_*` are removed."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")}
        ours, theirs = FORK_SERVER.Pipe(duplex=False)
        process = FORK_SERVER.Process(
            target=_run, args=(theirs, ["run", *arguments], inherited | dict(environ)), daemon=True
        )
        process.start()
        theirs.close()
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        pipe = os.fdopen(os.dup(ours.fileno()), "rb")
        ours.close()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return cls(process, reader)

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        code: int | None = self._process.exitcode
        return code

    def count(self, event: str, **fields: Any) -> int:  # noqa: ANN401
        """Return how often this event was logged."""
        return sum(_matches(each, event, fields) for each in self.events)

    async def wait_event(self, event: str, *, times: int = 1, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        """Wait until the event was logged `times` times, and return the last of those."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GUARD_S):
                while self.count(event, **fields) < times and not self._reading.done():
                    self._changed.clear()
                    await self._changed.wait()
        found = [each for each in self.events if _matches(each, event, fields)]
        assert len(found) >= times, f"no {event} {fields}; the last events are {self.events[-20:]}"
        return found[times - 1]

    async def wait_exit(self) -> int:
        """Wait until the process has ended, and return its exit code, negative for a signal."""
        async with asyncio.timeout(_GUARD_S):
            await self._ended.wait()
            await self._reading
        assert self.exit_code is not None
        return self.exit_code

    async def get(self, path: str) -> tuple[int, str]:
        """Send a GET request to the daemon, and return the status and the body."""
        _, port = (await self.wait_event("engine_starting"))["http"]
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{port}{path}")

    async def metric(self, name: str) -> float:
        """Return the value of a metric, named with its labels as in the exposition; 0 where it is missing."""
        _, text = await self.get("/metrics")
        return next((float(line.split()[-1]) for line in text.splitlines() if line.rpartition(" ")[0] == name), 0.0)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            self.events.append(json.loads(line) if line.startswith(b"{") else {"event": "", "text": line.decode()})
            self._changed.set()
        self._changed.set()

    def _on_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._process.sentinel)
        self._ended.set()


class EngineProcess:
    """One engine, which may run many times. It keeps the events of all its runs."""

    def __init__(self, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.kills = 0
        self._arguments = ("--log-format", "json", *arguments)
        self._environ = environ
        self._runs: list[Daemon] = []
        self._starting = asyncio.Lock()
        self._ended_by_us: set[Daemon] = set()

    def holds(self, token: str) -> bool:
        """Tell whether the engine has taken the lease with this token."""
        return any(run.count("lease_taken", token=token) for run in self._runs)

    async def start(self) -> None:
        """Start the engine unless it runs."""
        async with self._starting:  # two faults may ask for it at once
            if not self._runs or self._runs[-1].exit_code is not None:
                self._runs.append(await Daemon.start(self._arguments, self._environ))

    async def kill(self) -> None:
        self.kills += await self._end(signal.SIGKILL)

    async def terminate(self) -> None:
        """Stop the engine by SIGTERM."""
        await self.resume()
        await self._end(signal.SIGTERM)

    async def suspend(self) -> None:
        self._runs[-1].signal(signal.SIGSTOP)

    async def resume(self) -> None:
        self._runs[-1].signal(signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> bool:
        if not self._runs or (run := self._runs[-1]).exit_code is not None:
            return False
        self._ended_by_us.add(run)
        run.signal(number)
        await run.wait_exit()
        return True

    def complaints(self) -> list[str]:
        """Return the errors that the engine logged, and its unexpected exits."""
        found: list[Any] = []
        for run in self._runs:
            found += [e for e in run.events if e.get("level") in {"error", "critical"} or e["event"] in _ERRORS]
            # Before it logs anything an engine has no handler for SIGTERM yet. A second fault may kill what stops.
            if run not in self._ended_by_us or (run.exit_code not in {0, -signal.SIGKILL} and run.events):
                found.append({"event": "unexpected exit", "code": run.exit_code, "last": run.events[-20:]})
        return [f"{self.name}: {each}" for each in found]


@asynccontextmanager
async def daemon(url: str, prefix: str, **settings: object) -> AsyncIterator[Daemon]:
    """Run the daemon with the default settings, except for these (`section__key`). It is killed in the end."""
    given = {"redis__url": url, "redis__prefix": prefix, "http__port": 0, **settings}
    environ = {f"AISM_{name.upper()}": str(value) for name, value in given.items()}
    running = await Daemon.start(["--log-format", "json"], environ)
    try:
        yield running
    finally:
        running.signal(signal.SIGKILL)
        await running.wait_exit()


def _run(stderr: Connection, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become the daemon, in a process of the fork server."""
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
    os.environ.clear()
    os.environ.update(environ)
    main(arguments)


def _matches(logged: dict[str, Any], event: str, fields: dict[str, Any]) -> bool:
    return logged["event"] == event and all(logged.get(name) == value for name, value in fields.items())


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=_GUARD_S) as answer:  # noqa: S310 - the daemon's own address
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
