"""The shape that all services share: one step at a time, while we lead, whatever becomes of Redis meanwhile."""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from aism_engine.clock import Clock
from aism_engine.domain.decision import Decision
from aism_engine.domain.policy import Policy
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.metrics import Metrics, start_at_zero
from aism_engine.services.wakeup import Watermark
from aism_engine.store.client import OUTAGE_NAMES
from aism_engine.store.leadership import Leadership
from aism_engine.store.store import Store
from aism_engine.store.writer import Writer

log = structlog.get_logger(component="services")


class Outages:
    """Whether Redis serves, as the services find it. An outage begins with the first that meets it, and ends with the
    last.
    """

    def __init__(self, metrics: Metrics, tell: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._tell = tell
        start_at_zero(metrics.redis_outages, OUTAGE_NAMES)
        self._met: dict[str, str] = {}
        self._names: set[str] = set()
        self._served = False

    @property
    def current(self) -> str | None:
        """The name of the outage, none while everybody is served; before anybody was, it is `connecting`."""
        return next(iter(self._met.values()), None if self._served else "connecting")

    def met(self, error: ServerUnavailableError, service: str) -> None:
        self._met[service] = error.outage
        if error.outage not in self._names:  # each name is told once in an outage: refused, then loading, …
            self._names.add(error.outage)
            self._metrics.redis_up.set(0)
            self._metrics.redis_outages.labels(error.outage).inc()
            self._tell(f"Redis is away: {error.outage}")
            log.warning("redis_unavailable", outage=error.outage, detail=str(error), service=service)

    def over(self, service: str) -> None:
        """Note that a service was served."""
        self._served = True
        self.leave(service)
        if not self._met:
            self._metrics.redis_up.set(1)
            if self._names:
                log.info("redis_available", outages=sorted(self._names))
                self._names.clear()

    def leave(self, service: str) -> None:
        """Note that a service asks for nothing any more."""
        self._met.pop(service, None)


@dataclass
class PolicyHolder:
    """The rules in force. They are exchanged as a whole, between two decisions."""

    policy: Policy


@dataclass(frozen=True, kw_only=True)
class ServiceContext:
    """What every service needs. The elector alone has a store of its own, whose timeouts are short."""

    clock: Clock
    metrics: Metrics
    leadership: Leadership
    outages: Outages
    store: Store
    writer: Writer
    policy_holder: PolicyHolder
    watermark: Watermark
    backoff_max_s: float = 1.0


class Service(ABC):
    """A service: `run_once()` does one step and says whether there was anything to do, `run()` goes on until cancelled.

    Redis being away is no failure of a service: it waits, with growing pauses, and begins anew with what it finds.
    """

    name: str
    leads_only = True
    polls = True
    """Looks many times a second, most often for nothing: its idle steps are not timed."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._clock = context.clock
        self._store = context.store
        self._writer = context.writer
        self.step_started_at = context.clock.monotonic()
        """When the last step began: a service that stands still while it leads is stuck."""

    @property
    def _policy(self) -> Policy:
        """The rules as they are now: whoever decides on several things takes them once."""
        return self._context.policy_holder.policy

    @abstractmethod
    async def run_once(self) -> bool:
        """Do one step; tell whether there may be more to do at once."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until there may be something to do."""

    async def on_standby(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of what only a leader needs."""

    async def run(self) -> None:
        context, pause_s = self._context, 0.0
        while not _is_cancelled():
            if self.leads_only and context.leadership.token is None:
                context.outages.leave(self.name)
                await self.on_standby()
                await context.leadership.wait_leading()
            self.step_started_at = self._clock.monotonic()
            try:
                more = await self.run_once()
            except ServerUnavailableError as error:
                context.outages.met(error, self.name)
                pause_s = min(context.backoff_max_s, max(0.05, 2 * pause_s))
                await asyncio.sleep(pause_s)
            except NotLeadingError:
                await asyncio.sleep(0.01)  # lost, or the fleet is to be loaded again: not a matter of waiting long
            else:
                context.outages.over(self.name)
                pause_s = 0.0
                if not more and not _is_cancelled():
                    await self.wait()
        raise asyncio.CancelledError

    def _record_step(self, began: float, decisions: Iterable[Decision]) -> None:
        outcomes = Counter((decision.kind, decision.outcome, decision.code) for decision in decisions)
        seconds = self._clock.monotonic() - began if outcomes or not self.polls else None
        self._context.metrics.record_step(self.name, seconds, outcomes, self._clock.wall())


def _is_cancelled() -> bool:
    """Tell whether this task was cancelled, even if the cancellation was swallowed on its way.

    Python 3.11's `asyncio.wait_for`, in which redis-py sends, returns as if nothing had happened when what it waits for
    ends in the same turn (cpython#86296, mended in 3.12).
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
