"""The sampler: depths and counts, on a timer, so that a scrape never has to ask Redis."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, TypeAlias

import structlog

from aism_engine.domain.agents.agent import Liveness, ShownLiveness
from aism_engine.domain.commands.command import Command
from aism_engine.domain.fleet import Fleet
from aism_engine.ops.diagnosis import Diagnosis
from aism_engine.ops.doctor.findings import Severity
from aism_engine.ops.doctor.server import CODES, examine_server
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.records import MEASURED_AT_ONCE

log = structlog.get_logger(component="sampler")

_Measured: TypeAlias = tuple[str, Mapping[str, float]]
"""An agent, and the latest value of each name."""

_AT_A_TIME: Final = 1000
"""Agents that are gone over without a break: a few milliseconds of the loop."""
_VALUES_AT_A_TIME: Final = 4000
"""Of what they measured: likewise."""
_RECALL_SHARE: Final = 0.02
"""Of the time, what a new leader takes to read what agents had measured before."""
_ROLLUP_SHARE: Final = 0.01
"""Of a core, what that may take."""
_AWAY: Final = frozenset({Liveness.LOST, Liveness.LEFT})


class Sampler(Service):
    """Measures what has a length, leading or standing by."""

    name = "sampler"
    polls = False
    leads_only = False

    def __init__(
        self,
        context: ServiceContext,
        diagnosis: Diagnosis,
        *,
        interval_s: float,
        safety_interval_s: float,
        tell: Callable[[str], None],
    ) -> None:
        super().__init__(context)
        self._diagnosis = diagnosis
        self._interval_s = interval_s
        self._safety_interval_s = safety_interval_s
        self._examined_at = float("-inf")
        self._dangers: set[str] = set()
        self._tell = tell
        self._has_jumped = False
        self._roll_up_at = float("-inf")

    async def run_once(self) -> bool:
        metrics, began = self._context.metrics, self._clock.monotonic()
        await self._compare_clocks()
        for where, depth in (await self._store.depths()).items():
            metrics.depth.labels(where).set(depth)
        leads = self._context.leadership.token is not None
        fleet = self._writer.fleet if leads else Fleet()  # what a standby remembers is another's to tell
        by_liveness = fleet.count_shown()
        for liveness in ShownLiveness:
            metrics.agents.labels(liveness.value).set(by_liveness[liveness])
        metrics.standing.show(
            {
                (kind or "unregistered", state): count
                for state, kinds in fleet.occupants.items()
                for kind, count in kinds.items()
            }
        )
        metrics.commands.set(len(fleet.commands))
        await self._recall(fleet)
        if began >= self._roll_up_at or not fleet.measurements:
            await self._roll_up(fleet)
        await self._tell_ages(fleet)
        self._tell(f"{self._context.leadership.role}; {len(fleet.agents)} agents, {len(fleet.commands)} open commands")
        if began - self._examined_at >= self._safety_interval_s:
            await self._examine()
            self._examined_at = began
        self._record_step(began, ())
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._interval_s)

    async def _examine(self) -> None:
        """Look whether the server can lose what it is given, and say so where that has changed."""
        findings = {finding.code: finding for finding in examine_server(await self._diagnosis.server())}
        dangers = {code for code, finding in findings.items() if finding.severity is Severity.DANGER}
        for code in CODES:
            self._context.metrics.unsafe.labels(code).set(code in dangers)
        for code in sorted(dangers - self._dangers):
            log.warning("redis_unsafe", code=code, what=findings[code].what, mend=findings[code].mend)
        for code in sorted(self._dangers - dangers):
            log.info("redis_safe", code=code)
        self._dangers = dangers

    async def _recall(self, fleet: Fleet) -> None:
        """Read what agents had measured before this engine led, some of it at each step."""
        until = self._clock.monotonic() + _RECALL_SHARE * self._interval_s
        while fleet.unloaded_measurements and self._clock.monotonic() < until:
            page = list(islice(fleet.unloaded_measurements, MEASURED_AT_ONCE))
            for agent_id, values in (await self._store.measurements(page)).items():
                fleet.load_measurements(agent_id, values)

    async def _roll_up(self, fleet: Fleet) -> None:
        """Sum up what agents have measured, without holding up others: where many do, less often."""
        rollup, spent_s = self._context.metrics.measurements, 0.0
        for measured in _in_parts(list(fleet.measurements.items())):
            began = self._clock.monotonic()
            for agent_id, values in measured:
                agent = fleet.agents.get(agent_id)
                if agent is not None and agent.liveness not in _AWAY:
                    rollup.add(agent.kind or "unregistered", values)
            spent_s += self._clock.monotonic() - began
            await asyncio.sleep(0)
        rollup.show()
        self._roll_up_at = self._clock.monotonic() + spent_s / _ROLLUP_SHARE

    async def _tell_ages(self, fleet: Fleet) -> None:
        """Tell how long the oldest that waits has waited, as far as that can be known without asking Redis."""
        metrics, leads = self._context.metrics, self._context.leadership.token is not None
        unread_s = self._clock.monotonic() - self._context.watermark.applied_until
        metrics.oldest_response.set(unread_s if leads and self._context.watermark.has_unread else 0)
        oldest, agent_ids = self._store.now, list(fleet.queued | fleet.waiting)
        for start in range(0, len(agent_ids), _AT_A_TIME):
            agents = [agent for each in agent_ids[start : start + _AT_A_TIME] if (agent := fleet.agents.get(each))]
            commands = [
                command
                for agent in agents
                for each in agent.oldest_undelivered
                if (command := fleet.commands.get(each))
            ]
            oldest = min([oldest, *(_due_since(command) for command in commands)])
            await asyncio.sleep(0)
        metrics.oldest_undelivered.set(max(0.0, self._store.now - oldest) if leads and agent_ids else 0)

    async def _compare_clocks(self) -> None:
        """Keep our time beside the server's, also while standing by, and say where they part."""
        await self._store.read_time()
        jumped_s = self._store.time.jumped_s
        self._context.metrics.clock_jump.set(jumped_s)
        if bool(jumped_s) != self._has_jumped:
            self._has_jumped = bool(jumped_s)
            if jumped_s:
                log.warning("clock_jumped", seconds=round(jumped_s, 3), consequence="deadlines keep to the time before")
            else:
                log.info("clock_agrees")


def _in_parts(measured: Sequence[_Measured]) -> Iterator[Sequence[_Measured]]:
    """Part what agents measured so that each part is a few milliseconds: one has a value, another has sixty."""
    start, weight = 0, 0
    for number, (_, values) in enumerate(measured):
        weight += 1 + len(values)
        if weight >= _VALUES_AT_A_TIME:
            yield measured[start : number + 1]
            start, weight = number + 1, 0
    yield measured[start:]


def _due_since(command: Command) -> float:
    """Give since when a command could have been taken: of one that was scheduled, that is not when it was accepted."""
    return command.status_since or command.accepted_at if command.bucket == "waiting" else command.accepted_at
