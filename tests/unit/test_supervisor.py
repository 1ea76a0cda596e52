"""Laws of the supervisor: restarts, the restart budget, and the order and the time limit of a stop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from aism_engine.errors import GaveUpError
from aism_engine.runtime.supervisor import ReturnedError, Supervisor
from aism_engine.settings import SupervisorSettings
from tests.support.clock import FakeClock

PATIENT = SupervisorSettings(restarts=3, shutdown_timeout=600)


class Journal:
    """An observer that records each notification, and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[BaseException] = []
        self._changed = asyncio.Event()

    def add(self, line: str) -> None:
        self.lines.append(line)
        self._changed.set()

    def started(self, name: str) -> None:
        self.add(f"{name} started")

    def failed(self, name: str, error: BaseException) -> None:
        self.errors.append(error)
        self.add(f"{name} failed")

    def stopped(self, name: str) -> None:
        self.add(f"{name} stopped")

    async def wait_for(self, line: str, times: int = 1) -> None:
        while self.lines.count(line) < times:
            self._changed.clear()
            await self._changed.wait()


class Part:
    """A component that ends its first runs in the given ways, and then runs until it is cancelled."""

    def __init__(self, name: str, *ends: Callable[[], object]) -> None:
        self.name = name
        self.ends = list(ends)

    async def run(self) -> None:
        if self.ends:
            self.ends.pop(0)()
        else:
            await asyncio.Event().wait()


class SlowToStop(Part):
    """A component that finishes only when the test lets it."""

    def __init__(self, name: str, journal: Journal) -> None:
        super().__init__(name)
        self.journal = journal
        self.may_finish = asyncio.Event()

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self.journal.add(f"{self.name} finishing")
            await self.may_finish.wait()


class Stubborn(Part):
    """A component that swallows two cancellations: the first one, and the one after the shutdown timeout."""

    async def run(self) -> None:
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await super().run()
        await super().run()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves to the next timer as soon as nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def skip(timeout: float | None) -> Any:  # noqa: ANN401
            self._now += timeout or 0.0
            return select(timeout if timeout is None else 0)

        self._selector.select = skip  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def in_virtual_time(law: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test of timeouts that no pause of the machine can shorten."""

    def test() -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(law())

    test.__doc__ = law.__doc__
    return test


def fail() -> None:
    raise ValueError("broken")


def leak_cancellation() -> None:
    raise asyncio.CancelledError


def return_early() -> None:
    pass


def no_pause(_failures: int) -> float:
    return 0


def supervise(journal: Journal, *parts: Part, settings: SupervisorSettings = PATIENT, **options: Any) -> Supervisor:  # noqa: ANN401
    defaults: dict[str, Any] = {"clock": FakeClock(), "observer": journal, "pause_s": no_pause}
    return Supervisor(parts, settings, **(defaults | options))


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[tuple[asyncio.Task[None], asyncio.Event]]:
    stopping = asyncio.Event()
    task = asyncio.create_task(supervisor.run(stopping))
    try:
        yield task, stopping
    finally:
        stopping.set()
        await asyncio.wait([task])


async def test_components_start_in_order_and_stop_in_reverse() -> None:
    journal = Journal()
    async with running(supervise(journal, Part("a"), Part("b"), Part("c"))) as (task, stopping):
        await journal.wait_for("c started")
        stopping.set()
        await task
    assert journal.lines == ["a started", "b started", "c started", "c stopped", "b stopped", "a stopped"]


async def test_a_component_finishes_before_the_previous_one_is_cancelled() -> None:
    journal = Journal()
    first, second = SlowToStop("first", journal), SlowToStop("second", journal)
    async with running(supervise(journal, first, second)) as (task, stopping):
        await journal.wait_for("second started")
        stopping.set()
        await journal.wait_for("second finishing")
        assert "first finishing" not in journal.lines
        second.may_finish.set()
        await journal.wait_for("first finishing")
        first.may_finish.set()
        await task
    assert journal.lines[2:] == ["second finishing", "second stopped", "first finishing", "first stopped"]


@pytest.mark.parametrize(
    ("end", "error"),
    [(fail, ValueError), (return_early, ReturnedError), (leak_cancellation, asyncio.CancelledError)],
)
async def test_a_failed_component_is_restarted_and_no_other(
    end: Callable[[], None], error: type[BaseException]
) -> None:
    """To raise, to return, and to leak a CancelledError that the supervisor did not send are failures."""
    journal = Journal()
    async with running(supervise(journal, Part("a"), Part("b", end))):
        await journal.wait_for("b started", times=2)
        assert journal.lines == ["a started", "b started", "b failed", "b started"]
        assert [type(each) for each in journal.errors] == [error]


async def test_a_component_without_restarts_left_stops_everything() -> None:
    """`run` raises after all others have stopped, with the last failure as its cause."""
    journal = Journal()
    supervisor = supervise(journal, Part("a"), Part("b", *[fail] * 3), settings=SupervisorSettings(restarts=2))
    with pytest.raises(GaveUpError, match=r"^b failed 3 times") as gave_up:
        await supervisor.run(asyncio.Event())
    assert gave_up.value.__cause__ is journal.errors[-1]
    assert journal.lines.count("b started") == 3
    assert journal.lines[-1] == "a stopped"


async def test_each_component_has_a_restart_budget_of_its_own() -> None:
    journal = Journal()
    async with running(supervise(journal, Part("a", fail), Part("b", fail), settings=SupervisorSettings(restarts=1))):
        await journal.wait_for("a started", times=2)
        await journal.wait_for("b started", times=2)


@pytest.mark.parametrize(("ran_s", "survives"), [(60, True), (59.9, False)])
async def test_a_healthy_run_restores_the_restart_budget(ran_s: float, *, survives: bool) -> None:
    """A run of `healthy_after` seconds restores the whole budget, a shorter one restores nothing."""
    journal, clock = Journal(), FakeClock()

    def work_then_fail() -> None:
        clock.advance(ran_s)
        fail()

    settings = SupervisorSettings(restarts=1, healthy_after=60)
    part = Part("a", fail, work_then_fail)
    async with running(supervise(journal, part, settings=settings, clock=clock)) as (task, _):
        await asyncio.wait(
            [task, asyncio.create_task(journal.wait_for("a started", 3))], return_when=asyncio.FIRST_COMPLETED
        )
        assert task.done() is not survives


async def test_the_pause_follows_the_number_of_consecutive_failures() -> None:
    """The count starts again at 1 after a healthy run. tests/unit/test_backoff.py checks the pauses themselves."""
    journal, clock = Journal(), FakeClock()
    counts: list[int] = []

    def work_then_fail() -> None:
        clock.advance(60)
        fail()

    def count(failures: int) -> float:
        counts.append(failures)
        return 0

    settings = SupervisorSettings(restarts=5, healthy_after=60)
    part = Part("a", *[fail] * 3, work_then_fail)
    async with running(supervise(journal, part, settings=settings, clock=clock, pause_s=count)):
        await journal.wait_for("a started", times=5)
    assert counts == [1, 2, 3, 1]


async def test_a_stop_drops_a_pending_restart() -> None:
    journal = Journal()
    async with running(supervise(journal, Part("a", fail), pause_s=lambda _: 3600)) as (task, stopping):
        await journal.wait_for("a failed")
        stopping.set()
        await task
    assert journal.lines == ["a started", "a failed"]


@in_virtual_time
async def test_a_component_that_does_not_stop_is_abandoned_after_the_timeout() -> None:
    """It is named in the log; all others are stopped in order."""
    journal, stubborn = Journal(), Stubborn("b")
    settings = SupervisorSettings(shutdown_timeout=0.1)
    with capture_logs() as logs:
        async with running(supervise(journal, Part("a"), stubborn, Part("c"), settings=settings)) as (task, stopping):
            await journal.wait_for("c started")
            stopping.set()
            await task
    assert journal.lines[3:] == ["c stopped", "a stopped"]
    assert [line["components"] for line in logs if line["event"] == "stop_timed_out"] == [["b"]]


@in_virtual_time
async def test_each_component_is_cancelled_before_the_stop_times_out() -> None:
    """However many others do not stop."""
    journal = Journal()
    first, stubborn = SlowToStop("first", journal), [Stubborn("b"), Stubborn("c")]
    settings = SupervisorSettings(shutdown_timeout=0.2)
    with capture_logs() as logs:
        async with running(supervise(journal, first, *stubborn, settings=settings)) as (_, stopping):
            await journal.wait_for("c started")
            stopping.set()
            await journal.wait_for("first finishing")
            assert "stop_timed_out" not in {line["event"] for line in logs}
            first.may_finish.set()
            await journal.wait_for("first stopped")


@in_virtual_time
async def test_a_slow_component_may_use_all_the_time_that_is_left() -> None:
    """It needs more than its half of the time, and is not abandoned, because the others need less."""
    journal = Journal()
    slow = SlowToStop("slow", journal)
    with capture_logs() as logs:
        settings = SupervisorSettings(shutdown_timeout=3)
        async with running(supervise(journal, Part("a"), slow, settings=settings)) as (task, stopping):
            await journal.wait_for("slow started")
            stopping.set()
            await journal.wait_for("a stopped")
            slow.may_finish.set()
            await task
    assert journal.lines[2:] == ["slow finishing", "a stopped", "slow stopped"]
    assert "stop_timed_out" not in {line["event"] for line in logs}


async def test_cancelling_the_supervisor_stops_all_components() -> None:
    journal = Journal()
    async with running(supervise(journal, Part("a"), Part("b", fail))) as (task, _):
        await journal.wait_for("b started", times=2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert journal.lines[-2:] == ["b stopped", "a stopped"]


async def test_cancelling_a_stop_cancels_all_remaining_components_at_once() -> None:
    journal = Journal()
    async with running(supervise(journal, Part("a"), SlowToStop("b", journal))) as (task, stopping):
        await journal.wait_for("b started")
        stopping.set()
        await journal.wait_for("b finishing")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await journal.wait_for("a stopped")
        await journal.wait_for("b stopped")


async def test_a_failure_during_a_stop_causes_no_restart() -> None:
    """It is logged and reported, and does not spend the restart budget."""

    class FailingToStop(Part):
        async def run(self) -> None:
            try:
                await super().run()
            finally:
                fail()

    journal = Journal()
    settings = SupervisorSettings(restarts=0)
    async with running(supervise(journal, Part("a"), FailingToStop("b"), settings=settings)) as (task, stopping):
        await journal.wait_for("b started")
        stopping.set()
        await task
    assert journal.lines == ["a started", "b started", "b failed", "a stopped"]


async def test_every_start_and_end_is_logged_with_its_component() -> None:
    journal = Journal()
    supervisor = supervise(journal, Part("a"), Part("b", fail, fail), settings=SupervisorSettings(restarts=1))
    with capture_logs() as logs, pytest.raises(GaveUpError):
        await supervisor.run(asyncio.Event())
    assert [(line["event"], line["component"]) for line in logs] == [
        ("component_started", "a"),
        ("component_started", "b"),
        ("component_failed", "b"),
        ("component_started", "b"),
        ("component_failed", "b"),
        ("component_gave_up", "b"),
        ("component_stopped", "a"),
    ]
    assert [line["exc_info"] for line in logs if line["event"] == "component_failed"] == journal.errors


async def test_a_supervisor_without_components_runs_until_the_stop() -> None:
    async with running(supervise(Journal())) as (task, stopping):
        stopping.set()
        await task
