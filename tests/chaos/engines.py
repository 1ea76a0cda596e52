"""Engine processes that are killed, suspended and restarted."""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.support.daemon import Daemon

_ERRORS: Final = frozenset({"component_failed", "decision_failed"})


class EngineProcess:
    """One engine, which may run many times. It keeps the events of all its runs."""

    def __init__(self, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.kills = 0
        self._arguments = ("--log-format", "json", *arguments)
        self._environ = environ
        self._runs: list[Daemon] = []
        self._starting = asyncio.Lock()
        self._suspended = False
        self._ended_by_us: set[Daemon] = set()

    @property
    def is_running(self) -> bool:
        return bool(self._runs) and self._runs[-1].exit_code is None and not self._suspended

    def holds(self, token: str) -> bool:
        """Tell whether the engine has taken the lease with this token."""
        return any(run.count("lease_taken", token=token) for run in self._runs)

    async def start(self) -> None:
        """Start the engine unless it runs."""
        async with self._starting:  # two faults may ask for it at once
            if not self._runs or self._runs[-1].exit_code is not None:
                self._runs.append(await Daemon.start(self._arguments, self._environ))
                self._suspended = False

    async def kill(self) -> None:
        self.kills += await self._end(signal.SIGKILL)

    async def terminate(self) -> None:
        """Stop the engine by SIGTERM."""
        self.resume()
        await self._end(signal.SIGTERM)

    def suspend(self) -> None:
        self._suspended = True
        self._runs[-1].signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._suspended = False
        self._runs[-1].signal(signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> bool:
        run = self._runs[-1]
        if run.exit_code is not None:
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
