"""The sampler: measures on a timer, so that a scrape of the metrics sends nothing to Redis."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Final, TypeAlias

import structlog

from aism_engine.domain.agents.agent import ABSENT, Hold, Liveness
from aism_engine.domain.fleet import Fleet
from aism_engine.ops.doctor.collector import FactCollector
from aism_engine.ops.doctor.findings import Severity
from aism_engine.ops.doctor.server import SERVER_CHECKS
from aism_engine.services.base import Service, ServiceContext, agents_in_batches
from aism_engine.settings import SamplerSettings
from aism_engine.store.records import MEASUREMENTS_CHUNK

log = structlog.get_logger(component="sampler")

_AgentValues: TypeAlias = tuple[str, Mapping[str, float]]
"""An agent id, and the latest value of each measurement by its name."""

_VALUES_PER_BATCH: Final = 4000
"""A batch takes a few milliseconds, after which other tasks run."""
_LOADING_SHARE: Final = 0.02
"""Share of the time that a new leader spends on loading the measurements taken before it led."""
_STATISTICS_SHARE: Final = 0.01
"""Share of a core that the statistics of measurements may take."""


class Sampler(Service):
    """Measures queues, ages, the fleet and the safety of the server, on the leader and on standbys."""

    name = "sampler"
    times_idle_steps = True
    leads_only = False

    def __init__(
        self,
        context: ServiceContext,
        collector: FactCollector,
        settings: SamplerSettings,
        report_status: Callable[[str], None],
    ) -> None:
        super().__init__(context, settings.poll_interval)
        self._metrics = context.metrics
        self._collector = collector
        self._settings = settings
        self._report_status = report_status
        self._server_examined_at = float("-inf")
        self._dangers: set[str] = set()
        self._has_clock_jumped = False
        self._statistics_due_at = float("-inf")

    async def run_once(self) -> bool:
        metrics, began_at = self._metrics, self._clock.monotonic()
        await self._compare_clocks()
        for queue, depth in (await self._store.lengths()).items():
            metrics.queue_depth.labels(queue).set(depth)
        leads = self._context.leadership.token is not None
        fleet = self._writer.fleet if leads else Fleet()  # only the leader reports the fleet
        by_liveness = await _count_shown_liveness(fleet)
        for liveness in Liveness:
            metrics.agents.labels(liveness.value).set(by_liveness[liveness])
        for hold in set(Hold) - {Hold.NONE}:
            metrics.agents_held.labels(hold.value).set(fleet.holds[hold])
            metrics.fleet_held.labels(hold.value).set(fleet.held.hold is hold)
        now, waiting = self._store.now, fleet.waiting_for_human
        metrics.agents_waiting.set(len(waiting))
        metrics.longest_wait.set(now - min((fleet.agents[agent_id].since for agent_id in waiting), default=now))
        metrics.agents_in_state.set(
            {
                (kind or "unregistered", state): count
                for state, kinds in fleet.occupants.items()
                for kind, count in kinds.items()
            }
        )
        metrics.commands_open.set(len(fleet.commands))
        await self._load_measurements(fleet)
        if began_at >= self._statistics_due_at or not fleet.measurements:
            await self._compute_statistics(fleet)
        await self._measure_ages(fleet, leads=leads)
        role, agents, commands = self._context.leadership.role, len(fleet.agents), len(fleet.commands)
        self._report_status(f"{role}; {agents} agents, {commands} open commands")
        if began_at - self._server_examined_at >= self._settings.safety_interval:
            await self._examine_server()
            self._server_examined_at = began_at
        self._record_step(began_at)
        return False

    async def _examine_server(self) -> None:
        """Report whether the configuration of the server can lose data, and log what has changed."""
        findings = {finding.code: finding for finding in SERVER_CHECKS.run(await self._collector.server())}
        dangers = {code for code, finding in findings.items() if finding.severity is Severity.DANGER}
        for code in SERVER_CHECKS.codes:
            self._metrics.redis_unsafe.labels(code).set(code in dangers)
        for code in sorted(dangers - self._dangers):
            log.warning("redis_unsafe", code=code, summary=findings[code].summary, fix=findings[code].fix)
        for code in sorted(self._dangers - dangers):
            log.info("redis_safe", code=code)
        self._dangers = dangers

    async def _load_measurements(self, fleet: Fleet) -> None:
        """Load some of the measurements that were taken before this engine led."""
        until = self._clock.monotonic() + _LOADING_SHARE * self._settings.poll_interval
        while fleet.unloaded_measurements and self._clock.monotonic() < until:
            page = list(islice(fleet.unloaded_measurements, MEASUREMENTS_CHUNK))
            for agent_id, values in (await self._store.measurements(page)).items():
                fleet.load_measurements(agent_id, values)

    async def _compute_statistics(self, fleet: Fleet) -> None:
        """Compute the statistics of measurements, and choose when to do so again: the more values, the later."""
        statistics, spent_s = self._metrics.measurements, 0.0
        for batch in _batches(list(fleet.measurements.items())):
            began_at = self._clock.monotonic()
            for agent_id, values in batch:
                agent = fleet.agents.get(agent_id)
                if agent is not None and agent.liveness not in ABSENT:
                    statistics.add(agent.registered_type or "unregistered", values)
            spent_s += self._clock.monotonic() - began_at
            await asyncio.sleep(0)
        statistics.export()
        self._statistics_due_at = self._clock.monotonic() + spent_s / _STATISTICS_SHARE

    async def _measure_ages(self, fleet: Fleet, *, leads: bool) -> None:
        """Measure the ages of the oldest unread response and the oldest undelivered command, from memory."""
        watermark = self._context.watermark
        unread_s = self._clock.monotonic() - watermark.applied_until if leads and watermark.has_unread else 0
        self._metrics.oldest_response_age.set(unread_s)
        oldest, agent_ids = self._store.now, fleet.queued | fleet.waiting
        async for agents in agents_in_batches(fleet, agent_ids):
            indexes = [fleet.command_index(agent.agent_id) for agent in agents]
            for command_id in chain.from_iterable(index.oldest_undelivered for index in indexes):
                if (command := fleet.commands.get(command_id)) is not None:
                    oldest = min(oldest, command.undelivered_since)
        self._metrics.oldest_undelivered_age.set(max(0.0, self._store.now - oldest) if leads and agent_ids else 0)

    async def _compare_clocks(self) -> None:
        """Compare the server's clock with the engine's time, and log when they begin or cease to differ."""
        await self._store.read_time()
        jumped_s = self._store.time.jumped_s
        self._metrics.clock_jump.set(jumped_s)
        if bool(jumped_s) != self._has_clock_jumped:
            self._has_clock_jumped = bool(jumped_s)
            if jumped_s:
                log.warning("clock_jumped", seconds=round(jumped_s, 3), consequence="deadlines ignore the jump")
            else:
                log.info("clock_agrees")


async def _count_shown_liveness(fleet: Fleet) -> Counter[Liveness]:
    """Count the agents by the liveness to display: a fresh agent that is silent counts as silent."""
    silent = 0
    async for agents in agents_in_batches(fleet, fleet.silent):
        silent += sum(agent.liveness is Liveness.FRESH for agent in agents)
    counts = fleet.liveness.copy()
    counts[Liveness.SILENT] += silent
    counts[Liveness.FRESH] -= silent
    return counts


def _batches(measurements: Sequence[_AgentValues]) -> Iterator[Sequence[_AgentValues]]:
    """Split agents into batches of about the same number of values: an agent may have one value, or sixty."""
    start, weight = 0, 0
    for index, (_, values) in enumerate(measurements):
        weight += 1 + len(values)
        if weight >= _VALUES_PER_BATCH:
            yield measurements[start : index + 1]
            start, weight = index + 1, 0
    yield measurements[start:]
