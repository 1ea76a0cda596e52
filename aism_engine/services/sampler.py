"""The sampler: depths and counts, on a timer, so that a scrape never has to ask Redis."""

import asyncio
from collections import Counter
from collections.abc import Callable

from aism_engine.model.fleet import Liveness
from aism_engine.services.base import Context, Service


class Sampler(Service):
    """Measures what has a length, leading or standing by."""

    name = "sampler"
    leads_only = False

    def __init__(self, context: Context, *, interval_s: float, tell: Callable[[str], None]) -> None:
        super().__init__(context)
        self._interval_s = interval_s
        self._tell = tell

    async def run_once(self) -> bool:
        metrics, began = self._context.metrics, self._clock.monotonic()
        for where, depth in (await self._store.depths()).items():
            metrics.depth.labels(where).set(depth)
        fleet = self._writer.fleet
        by_liveness = Counter(agent.liveness for agent in fleet.agents.values())
        for liveness in Liveness:
            metrics.agents.labels(liveness.value).set(by_liveness[liveness])
        metrics.commands.set(len(fleet.commands))
        self._tell(f"{self._context.leadership.role}; {len(fleet.agents)} agents, {len(fleet.commands)} open commands")
        self._worked(began, ())
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._interval_s)
