"""Keeps the components of the engine running, and stops them in order.

Guaranteed
    Each component runs in a task of its own. Every end of a component is logged with its reason. A failed component is
    restarted after an exponential backoff with full jitter, so that components that fail together do not restart
    together. The other components continue meanwhile.

    A component fails when it raises, when it returns, and when it raises a CancelledError although the supervisor did
    not cancel it: a task that it awaited was cancelled.

    Each component may be restarted `restarts` times. A run of at least `healthy_after` seconds restores the budget. A
    component that fails with no restarts left ends the engine: all others are stopped in order, then `run` raises
    GaveUpError with the last failure as its cause.

    A stop cancels the components one by one, in reverse start order, and waits for each before it cancels the next. So
    a component can finish its step with the help of those that started before it. During a stop nothing is restarted,
    and a failure is only logged.

What can fail
    A component may take long to stop, or swallow its cancellation. It gets at most half of the time that is left of
    `shutdown_timeout`, so that each of the others is cancelled in time to finish. When the time is over, the components
    that still run are cancelled once more, named in the log and abandoned.

    `run` itself may be cancelled: it then stops everything in the same way. If it is cancelled during a stop, it
    cancels all remaining components at once and does not wait for them.

Not guaranteed
    A component that blocks the event loop blocks the supervisor as well; the watchdog handles that case. An abandoned
    task still exists, and `asyncio.Runner` waits for it without a limit: after `stop_timed_out`, only a kill or
    `os._exit` ends the process. SystemExit and KeyboardInterrupt are not failures of a component: they propagate.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from aism_engine.backoff import Backoff
from aism_engine.clock import Clock
from aism_engine.errors import GaveUpError
from aism_engine.settings import SupervisorSettings

log = structlog.get_logger(component="supervisor")


class Component(Protocol):
    """A part of the engine that runs until it is cancelled, and then finishes the step that it has begun."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None:
        """Run until cancelled. Returning earlier is a failure, as raising is."""


class ReturnedError(Exception):
    """A component returned although it was not cancelled."""


class Observer(Protocol):
    """Is notified of each start and end of a component, for the metrics."""

    def started(self, name: str) -> None: ...

    def failed(self, name: str, error: BaseException) -> None: ...

    def stopped(self, name: str) -> None: ...


class Supervisor:
    """Runs components until it is stopped, or until one of them has no restarts left."""

    def __init__(
        self,
        components: Sequence[Component],
        settings: SupervisorSettings,
        *,
        clock: Clock,
        observer: Observer,
        pause_s: Callable[[int], float] | None = None,
    ) -> None:
        """`pause_s` replaces the backoff: it returns the pause after a number of consecutive failures."""
        self._components = components
        self._settings = settings
        self._clock = clock
        self._observer = observer
        self._pause_s = pause_s or Backoff(settings.backoff_initial, settings.backoff_max).pause_s
        self._stopping = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Run all components until `stopping` is set. Raises GaveUpError when a component has no restarts left."""
        tasks = [asyncio.create_task(self._supervise(each), name=each.name) for each in self._components]
        stop = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            await self._stop(tasks)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _supervise(self, component: Component) -> None:
        """Run a component and restart it, until the stop or until it has no restarts left."""
        name, failures = component.name, 0
        while True:
            log.info("component_started", component=name)
            self._observer.started(name)
            started_at = self._clock.monotonic()
            error = await _run_to_end(component)
            if self._stopping and isinstance(error, ReturnedError | asyncio.CancelledError):
                log.info("component_stopped", component=name)
                self._observer.stopped(name)
                return
            if self._clock.monotonic() - started_at >= self._settings.healthy_after:
                failures = 0
            restarts_left = self._settings.restarts - failures
            failures += 1
            log.warning("component_failed", component=name, restarts_left=restarts_left, exc_info=error)
            self._observer.failed(name, error)
            if self._stopping:
                return
            if restarts_left == 0:
                log.error("component_gave_up", component=name, failures=failures, error=repr(error))
                raise GaveUpError(f"{name} failed {failures} times without a healthy run: {error!r}") from error
            await asyncio.sleep(self._pause_s(failures))

    async def _stop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._stopping = True
        now = asyncio.get_running_loop().time
        deadline = now() + self._settings.shutdown_timeout
        try:
            for task in reversed(tasks):
                task.cancel()
                await asyncio.wait([task], timeout=max(0, deadline - now()) / 2)
            if tasks:
                await asyncio.wait(tasks, timeout=max(0, deadline - now()))
        finally:
            if unfinished := [task for task in tasks if not task.done()]:
                for task in unfinished:
                    task.cancel()
                log.error("stop_timed_out", components=[task.get_name() for task in unfinished])


async def _run_to_end(component: Component) -> BaseException:
    """Run a component once and return what ended it."""
    try:
        await component.run()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the supervisor handles every failure
        return error
    return ReturnedError("run() returned although the component was not cancelled")
