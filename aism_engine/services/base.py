"""The shape that all services share: one step at a time, while we lead, whatever becomes of Redis meanwhile."""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from aism_engine.clock import Clock
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.metrics import Metrics
from aism_engine.model.decisions.common import Decision, Rules
from aism_engine.services.hints import Backlog
from aism_engine.store.leadership import Leadership
from aism_engine.store.store import Store
from aism_engine.store.writer import Writer

log = structlog.get_logger(component="services")


class Outages:
    """Whether Redis serves, as the services find it: an outage has a name, begins once and ends once."""

    def __init__(self, metrics: Metrics) -> None:
        self.current: str | None = None
        self._metrics = metrics
        metrics.redis_up.set(1)

    def met(self, error: ServerUnavailableError, service: str) -> None:
        if self.current != error.outage:
            self.current = error.outage
            self._metrics.redis_up.set(0)
            self._metrics.outages.labels(error.outage).inc()
            log.warning("redis_unavailable", outage=error.outage, detail=str(error), service=service)

    def over(self) -> None:
        if self.current is not None:
            log.info("redis_available", outage=self.current)
            self.current = None
            self._metrics.redis_up.set(1)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every service needs. The elector alone has a store of its own, whose timeouts are short."""

    clock: Clock
    metrics: Metrics
    leadership: Leadership
    outages: Outages
    store: Store
    writer: Writer
    rules: Rules
    backlog: Backlog
    backoff_max_s: float = 1.0


class Service(ABC):
    """A service: `run_once()` does one step and says whether there was anything to do, `run()` goes on until cancelled.

    Redis being away is no failure of a service: it waits, with growing pauses, and begins anew with what it finds.
    """

    name: str
    leads_only = True

    def __init__(self, context: Context) -> None:
        self._context = context
        self._clock = context.clock
        self._store = context.store
        self._writer = context.writer
        self._rules = context.rules
        self.stepped_at = context.clock.monotonic()
        """When the last step began: a service that stands still while it leads is stuck."""

    @abstractmethod
    async def run_once(self) -> bool:
        """Do one step; tell whether there may be more to do at once."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until there may be something to do."""

    async def run(self) -> None:
        context, pause_s = self._context, 0.0
        while True:
            if self.leads_only:
                await context.leadership.wait_leading()
            self.stepped_at = self._clock.monotonic()
            try:
                more = await self.run_once()
            except ServerUnavailableError as error:
                context.outages.met(error, self.name)
                pause_s = min(context.backoff_max_s, max(0.05, 2 * pause_s))
                await asyncio.sleep(pause_s)
                continue
            except NotLeadingError:
                await asyncio.sleep(
                    0.01
                )  # the lease was lost, or the fleet is to be loaded again: not a matter of waiting long
                continue
            context.outages.over()
            pause_s = 0.0
            if not more:
                await self.wait()

    def _worked(self, began: float, decisions: Iterable[Decision]) -> None:
        outcomes = Counter((decision.kind, decision.outcome, decision.code) for decision in decisions)
        self._context.metrics.worked(self.name, self._clock.monotonic() - began, outcomes, self._clock.wall())
