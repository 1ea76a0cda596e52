"""Engine processes: `aism-engine run`, and every way to ill-treat one."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

_PROGRAM: Final = (sys.executable, "-c", "from aism_engine.cli.main import main; main()", "run")
_WORST: Final = frozenset({"error", "critical"})
_UNKNOWN: Final = 255
"""What asyncio says of a process that was reaped by another: `Popen.send_signal` polls it, and may be the first. An
engine has no such exit code.
"""


class EngineProcess:
    """One engine, which may be started many times. What it says is kept as far as the verdict needs it."""

    def __init__(self, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.tokens: set[str] = set()
        """The leases it has held."""
        self.complaints: list[dict[str, Any]] = []
        """Lines of the level error, and the end of every process that nobody ended."""
        self.kills = 0
        self._program = (*_PROGRAM, *arguments)
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")} | dict(
            environ
        )
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._stopped = False
        self._ended_by_us = False
        self._began = False
        self._tail: list[str] = []

    @property
    def alive(self) -> bool:
        """Whether the process is there and runs."""
        return self._process is not None and self._process.returncode is None and not self._stopped

    async def start(self) -> None:
        """Start it where it does not run. Two faults may ask for that at once: a second process would be nobody's."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            process = await asyncio.create_subprocess_exec(
                *self._program, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env=self._environ, limit=1 << 20
            )
            self._process = process  # from here on: until then, the flags are those of the one before it
            self._stopped = self._ended_by_us = self._began = False
            self._reader = asyncio.create_task(self._read(self._process))

    async def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._signal(signal.SIGKILL):
            self.kills += 1
            await self._gone()

    async def terminate(self) -> None:
        """End it in order; whoever does not end is killed, and that is noted."""
        self.resume()
        if not self._signal(signal.SIGTERM):
            return
        try:
            async with asyncio.timeout(12):
                await self._gone()
        except TimeoutError:
            self.complaints.append({"event": "does not end", "engine": self.name, "tail": self._tail[-30:]})
            await self.kill()
        else:
            # One that had not begun yet has nobody who would hear a SIGTERM; another fault may have killed it
            # meanwhile.
            code = self._process.returncode if self._process is not None and self._began else 0
            if code not in {0, -signal.SIGKILL, _UNKNOWN}:
                self.complaints.append({"event": "ended badly", "engine": self.name, "code": code})

    def pause(self) -> None:
        """Stop it where it stands."""
        if os.name == "posix" and self._process is not None and self._process.returncode is None:
            self._stopped = True
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
        self._stopped = False

    def _signal(self, what: signal.Signals) -> bool:
        if self._process is None or self._process.returncode is not None:
            return False
        self._ended_by_us = True
        with suppress(ProcessLookupError):
            self._process.send_signal(what)
        return True

    async def _gone(self) -> None:
        assert self._process is not None
        await self._process.wait()
        self._stopped = False

    async def _read(self, process: Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self._tail = [*self._tail[-200:], line.decode(errors="replace").rstrip()]
            try:
                event = json.loads(line)
            except ValueError:
                continue
            self._began = True
            if event.get("event") == "lease_taken":
                self.tokens.add(event["token"])
            if event.get("level") in _WORST or event.get("event") in {"component_failed", "decision_failed"}:
                self.complaints.append(event | {"engine": self.name})
        code = await process.wait()
        if process is self._process and not self._ended_by_us:
            self.complaints.append(
                {"event": "ended by itself", "engine": self.name, "code": code, "tail": self._tail[-30:]}
            )

    @property
    def tail(self) -> list[str]:
        """The last lines that it has said."""
        return self._tail
