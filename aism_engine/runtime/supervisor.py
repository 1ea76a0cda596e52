"""Keeps the parts of the engine running, and stops them in order.

Guaranteed
    Each component runs in a task of its own, which is held here. Whatever ends it is logged with its reason: nothing
    dies in silence, and the failure of one never touches another. One that fails is started again after an exponential
    backoff with full jitter, so that parts that fail together do not come back together.

    A component fails when it raises, when it returns, and when it lets a CancelledError escape that no one sent it (a
    task it awaited was cancelled): otherwise it would look stopped while everyone else believes that it works.

    Each component may be restarted `restarts` times; a run of at least `healthy_after_s` gives the whole budget back.
    Who fails with nothing left of it takes the engine down: all others are stopped in order, then `run` raises
    GaveUpError with the last failure as its cause. A new process may do better; a limping one helps no one.

    To stop is to cancel the components one by one in reverse start order, each when the one after it has ended, so that
    what a component still needs to finish is there. A wait for a restart ends at once. Nothing is restarted any more; a
    failure on the way out is logged and changes nothing.

What can fail
    A component may take long to stop, or swallow its cancellation. It gets at most half of the time that is left of
    `stop_timeout_s`, so whoever comes after it is always asked, with time to answer. When the time is over those who
    are left are cancelled once more, named in the log, and left behind.

    `run` itself may be cancelled: it stops everything in the same way. Cancelled while it stops, it cancels all who are
    left at once and waits no longer.

Not guaranteed
    A component that blocks the loop blocks the supervisor too; the watchdog is there for that. A task that was left
    behind still exists: `asyncio.Runner` waits for it without a bound, so after `stop_timed_out` it takes a kill, or
    `os._exit`, to end the process. SystemExit and KeyboardInterrupt are not failures of a component: they go through.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Protocol

import structlog

from aism_engine.clock import Clock
from aism_engine.errors import GaveUpError
from aism_engine.runtime.component import Component

log = structlog.get_logger(component="supervisor")


class ReturnedError(Exception):
    """A component ended by itself."""


class Observer(Protocol):
    """Who wants to know what runs: the metrics. Each call of `started` is followed by one of the other two."""

    def started(self, name: str) -> None: ...

    def failed(self, name: str, error: BaseException) -> None: ...

    def stopped(self, name: str) -> None: ...


class Supervisor:
    """Runs components side by side until it is told to stop, or has to give one of them up."""

    def __init__(  # noqa: PLR0913 - all of these are settings
        self,
        components: Sequence[Component],
        *,
        restarts: int,
        healthy_after_s: float,
        backoff_initial_s: float,
        backoff_max_s: float,
        stop_timeout_s: float,
        clock: Clock,
        observer: Observer | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._components = components
        self._restarts = restarts
        self._healthy_after_s = healthy_after_s
        self._backoff_initial_s = backoff_initial_s
        self._backoff_max_s = backoff_max_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock
        self._observer = observer or _Unobserved()
        self._jitter = jitter or random.Random()  # noqa: S311 - it spreads restarts, it hides nothing
        self._stopping = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Run all components until `stopping` is set. Raises GaveUpError when a restart budget is spent."""
        keepers = [asyncio.create_task(self._keep(component), name=component.name) for component in self._components]
        stop = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            await asyncio.wait([stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            await self._stop(keepers)
        for keeper in keepers:
            if keeper.done() and not keeper.cancelled():
                keeper.result()

    async def _keep(self, component: Component) -> None:
        """Start a component again and again, until we stop or its budget is spent."""
        name, spent = component.name, 0
        while True:
            log.info("component_started", component=name)
            self._observer.started(name)
            started_at = self._clock.monotonic()
            error = await _ending(component)
            if self._stopping and isinstance(error, ReturnedError | asyncio.CancelledError):
                log.info("component_stopped", component=name)
                self._observer.stopped(name)
                return
            if self._clock.monotonic() - started_at >= self._healthy_after_s:
                spent = 0
            log.warning("component_failed", component=name, restarts_left=self._restarts - spent, exc_info=error)
            self._observer.failed(name, error)
            if self._stopping:
                return
            if spent == self._restarts:
                log.error("component_gave_up", component=name, failures=spent + 1, error=repr(error))
                raise GaveUpError(f"{name} failed {spent + 1} times without a healthy run: {error!r}") from error
            await asyncio.sleep(self._backoff_s(spent))
            spent += 1

    def _backoff_s(self, spent: int) -> float:
        """Full jitter: anything between nothing and the exponential bound."""
        doublings = min(spent, 32)  # any sane bound is reached long before, and no float overflows
        return self._jitter.uniform(0, min(self._backoff_max_s, self._backoff_initial_s * 2**doublings))

    async def _stop(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        self._stopping = True
        now = asyncio.get_running_loop().time
        deadline = now() + self._stop_timeout_s
        try:
            for keeper in reversed(keepers):
                keeper.cancel()
                await asyncio.wait([keeper], timeout=max(0, deadline - now()) / 2)
            if left := _unfinished(keepers):
                await asyncio.wait(left, timeout=max(0, deadline - now()))
        finally:
            if left := _unfinished(keepers):
                for keeper in left:
                    keeper.cancel()
                log.error("stop_timed_out", components=[keeper.get_name() for keeper in left])


async def _ending(component: Component) -> BaseException:
    """Run a component once and return what ended it."""
    try:
        await component.run()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the supervisor answers to all of them
        return error
    return ReturnedError("run() returned, but a component goes on until it is cancelled")


def _unfinished(keepers: Sequence[asyncio.Task[None]]) -> list[asyncio.Task[None]]:
    return [keeper for keeper in keepers if not keeper.done()]


class _Unobserved:
    """Nobody wants to know."""

    def started(self, name: str) -> None: ...

    def failed(self, name: str, error: BaseException) -> None: ...

    def stopped(self, name: str) -> None: ...
