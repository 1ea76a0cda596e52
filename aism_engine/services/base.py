"""What all services share: the main loop, the handling of outages, and the context with their dependencies."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from aism_engine.backoff import Backoff
from aism_engine.clock import Clock
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.policy import Policy
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.metrics import Metrics, start_at_zero
from aism_engine.services.wakeup import Wakeups, Watermark
from aism_engine.store.leadership import Leadership
from aism_engine.store.outages import OUTAGE_NAMES
from aism_engine.store.records import CHUNK, chunks
from aism_engine.store.store import Store
from aism_engine.store.writer import Writer, decide_each

T = TypeVar("T")
log = structlog.get_logger(component="services")

FIRST_PAUSE_S: Final = 0.05
"""Longest pause after the first failed attempt to reach Redis."""
_RELOAD_PAUSE_S: Final = 0.01
"""Pause after a NotLeadingError. The next step waits for the lease, or loads the fleet again."""


class Outages:
    """Whether Redis is available, as seen by the services.

    An outage begins when one service cannot reach Redis, and ends when no service reports a failure any more.
    """

    def __init__(self, metrics: Metrics, set_status: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._set_status = set_status
        start_at_zero(metrics.redis_outages, OUTAGE_NAMES)
        self._failing: dict[str, str] = {}
        """The outage that each failing service met last, by service."""
        self._reported: set[str] = set()
        """Names of the outages that were reported since Redis was last available."""
        self._was_available = False

    @property
    def current(self) -> str | None:
        """Name of the outage; None while Redis is available; `connecting` until Redis is first available."""
        return next(iter(self._failing.values()), None if self._was_available else "connecting")

    def begin(self, service: str, error: ServerUnavailableError) -> None:
        """Record that a service could not reach Redis.

        Each kind of outage is reported once. When Redis is available again, all kinds can be reported again.
        """
        self._failing[service] = error.outage
        if error.outage not in self._reported:
            self._reported.add(error.outage)
            self._metrics.redis_up.set(0)
            self._metrics.redis_outages.labels(error.outage).inc()
            self._set_status(f"Redis is unavailable: {error.outage}")
            log.warning("redis_unavailable", outage=error.outage, detail=str(error), hint=error.hint, service=service)

    def end(self, service: str) -> None:
        """Record that Redis served a service."""
        self._was_available = True
        self.forget(service)
        if not self._failing:
            self._metrics.redis_up.set(1)
            if self._reported:
                log.info("redis_available", outages=sorted(self._reported))
                self._reported.clear()

    def forget(self, service: str) -> None:
        """Ignore the failures of a service that sends nothing to Redis now, because this engine does not lead."""
        self._failing.pop(service, None)


@dataclass(kw_only=True)
class ServiceContext:
    """The dependencies of every service."""

    clock: Clock
    metrics: Metrics
    leadership: Leadership
    outages: Outages
    store: Store
    writer: Writer
    policy: Policy
    """The policy in force. A reload replaces it as a whole, between two decisions."""
    backoff: Backoff
    """Pauses while Redis is unavailable."""
    wakeups: Wakeups
    watermark: Watermark


class Service(ABC):
    """A component that repeats `run_once()` and `wait()` until it is cancelled.

    While Redis is unavailable the service retries with backoff; that is an outage, not a failure of the service.
    """

    name: str
    leads_only = True
    """Whether the service works only while this engine leads."""
    times_idle_steps = False
    """Whether steps without decisions are timed too. By default they are not: most of them find nothing to do."""

    def __init__(self, context: ServiceContext, interval_s: float = 0.0) -> None:
        """`interval_s` is the pause between two steps, unless the service overrides `wait`."""
        self._context = context
        self._clock = context.clock
        self._store = context.store
        self._writer = context.writer
        self._interval_s = interval_s
        self.step_started_at = context.clock.monotonic()
        """Start of the last step: a leading service that starts no step for a long time is stuck."""

    @property
    def _policy(self) -> Policy:
        return self._context.policy

    @abstractmethod
    async def run_once(self) -> bool:
        """Do one step. Return whether there may be more to do at once."""

    async def wait(self) -> None:
        """Wait until there may be something to do."""
        await asyncio.sleep(self._interval_s)

    async def release(self) -> None:  # noqa: B027 - most services hold nothing
        """Release what only a running service needs. Idempotent.

        Called when the service ends, and before it waits for this engine to lead.
        """

    async def run(self) -> None:
        try:
            await self._repeat()
        finally:
            await self.release()
        raise asyncio.CancelledError

    async def _repeat(self) -> None:
        context, failures = self._context, 0
        while not _is_cancelled():
            if self.leads_only and context.leadership.token is None:
                context.outages.forget(self.name)
                await self.release()
                await context.leadership.wait_leading()
            self.step_started_at = self._clock.monotonic()
            try:
                more = await self.run_once()
            except ServerUnavailableError as error:
                context.outages.begin(self.name, error)
                failures += 1
                await asyncio.sleep(context.backoff.pause_s(failures))
            except NotLeadingError:
                await asyncio.sleep(_RELOAD_PAUSE_S)
            else:
                context.outages.end(self.name)
                failures = 0
                if not more and not _is_cancelled():
                    await self.wait()

    async def _commit_each(
        self,
        fleet: Fleet,
        kind: str,
        items: Collection[T],
        decide_one: Callable[[Draft, Policy, T], Decision],
        lookups: Lookups | None = None,
    ) -> list[Decision]:
        """Decide on each item by itself, and commit all decisions at once. Without items, commit nothing."""
        if not items:
            return []
        decide = decide_each(kind, list(items), lambda draft, item: decide_one(draft, self._policy, item))
        return await self._writer.commit(decide, fleet=fleet, lookups=lookups)

    def _record_step(self, started_at: float, decisions: Sequence[Decision] = ()) -> None:
        """Count a finished step and its decisions in the metrics."""
        seconds = self._clock.monotonic() - started_at if decisions or self.times_idle_steps else None
        self._context.metrics.record_step(self.name, seconds, decisions, self._clock.wall())


async def agents_in_batches(fleet: Fleet, ids: Collection[str], size: int = CHUNK) -> AsyncIterator[list[AgentRecord]]:
    """Yield these agents in batches, without those that are forgotten meanwhile. Other tasks run after each batch."""
    for some in chunks(list(ids), size):
        yield [agent for agent_id in some if (agent := fleet.agents.get(agent_id)) is not None]
        await asyncio.sleep(0)


def _is_cancelled() -> bool:
    """Return whether this task was cancelled, even if the cancellation was swallowed.

    `asyncio.wait_for`, in which redis-py sends, swallows a cancellation in Python 3.11 if the awaited send ends in the
    same iteration of the loop (cpython#86296, fixed in 3.12).
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
