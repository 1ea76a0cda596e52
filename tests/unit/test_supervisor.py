"""Laws of the supervisor. Time moves only where a law is about the bound of a stop."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from aism_engine.clock import FakeClock
from aism_engine.errors import GaveUpError
from aism_engine.runtime.supervisor import ReturnedError, Supervisor


class Journal:
    """An observer that writes down what it hears, and lets a test await a line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[BaseException] = []
        self._changed = asyncio.Event()

    def note(self, line: str) -> None:
        self.lines.append(line)
        self._changed.set()

    def started(self, name: str) -> None:
        self.note(f"{name} started")

    def failed(self, name: str, error: BaseException) -> None:
        self.errors.append(error)
        self.note(f"{name} failed")

    def stopped(self, name: str) -> None:
        self.note(f"{name} stopped")

    async def wait_for(self, line: str, times: int = 1) -> None:
        while self.lines.count(line) < times:
            self._changed.clear()
            await self._changed.wait()


class Part:
    """A component that meets the given ends, one a run, and then works until it is cancelled."""

    def __init__(self, name: str, *ends: Callable[[], object]) -> None:
        self.name = name
        self.ends = list(ends)

    async def run(self) -> None:
        if self.ends:
            self.ends.pop(0)()
        else:
            await asyncio.Event().wait()


class Careful(Part):
    """A component with something in hand that takes a while to finish when it is cancelled."""

    def __init__(self, name: str, journal: Journal) -> None:
        super().__init__(name)
        self.journal = journal
        self.may_finish = asyncio.Event()

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self.journal.note(f"{self.name} finishing")
            await self.may_finish.wait()


class Stubborn(Part):
    """A component that swallows its cancellations: the first, and the one when the stop's time is over."""

    async def run(self) -> None:
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await super().run()
        await super().run()


class Bounds(random.Random):
    """A jitter that writes down its bounds and always takes the lower one."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.drawn.append((a, b))
        return a


class Longest(random.Random):
    """A jitter that always takes the upper bound."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


def fail() -> None:
    raise ValueError("broken")


def leak_cancellation() -> None:
    raise asyncio.CancelledError


def return_early() -> None:
    pass


def supervise(journal: Journal, *parts: Part, **settings: Any) -> Supervisor:  # noqa: ANN401
    defaults: dict[str, Any] = {
        "restarts": 3,
        "healthy_after_s": 60,
        "backoff_initial_s": 0,
        "backoff_max_s": 0,
        "stop_timeout_s": 60,
        "clock": FakeClock(),
        "observer": journal,
    }
    return Supervisor(parts, **(defaults | settings))


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[tuple[asyncio.Task[None], asyncio.Event]]:
    stopping = asyncio.Event()
    task = asyncio.create_task(supervisor.run(stopping))
    try:
        yield task, stopping
    finally:
        stopping.set()
        await asyncio.wait([task])


async def test_starts_in_order_and_stops_in_reverse() -> None:
    """Components start in the order given and stop in the reverse one."""
    journal = Journal()
    async with running(supervise(journal, Part("a"), Part("b"), Part("c"))) as (task, stopping):
        await journal.wait_for("c started")
        stopping.set()
        await task
    assert journal.lines == ["a started", "b started", "c started", "c stopped", "b stopped", "a stopped"]


async def test_a_component_finishes_before_the_one_under_it_is_asked() -> None:
    """What a component has in hand when it is cancelled, it may finish; until then nobody before it is cancelled."""
    journal = Journal()
    under, above = Careful("under", journal), Careful("above", journal)
    async with running(supervise(journal, under, above)) as (task, stopping):
        await journal.wait_for("above started")
        stopping.set()
        await journal.wait_for("above finishing")
        assert "under finishing" not in journal.lines
        above.may_finish.set()
        await journal.wait_for("under finishing")
        under.may_finish.set()
        await task
    assert journal.lines[2:] == ["above finishing", "above stopped", "under finishing", "under stopped"]


@pytest.mark.parametrize(
    ("end", "error"),
    [(fail, ValueError), (return_early, ReturnedError), (leak_cancellation, asyncio.CancelledError)],
)
async def test_who_fails_starts_again_and_touches_no_other(end: Callable[[], None], error: type[BaseException]) -> None:
    """A component that raises, returns, or leaks a cancellation that nobody sent is started again; others go on."""
    journal = Journal()
    async with running(supervise(journal, Part("a"), Part("b", end))):
        await journal.wait_for("b started", times=2)
        assert journal.lines == ["a started", "b started", "b failed", "b started"]
        assert [type(e) for e in journal.errors] == [error]


async def test_a_spent_budget_takes_all_down() -> None:
    """After `restarts` restarts the next failure stops the others, then raises, with the last failure as the cause."""
    journal = Journal()
    with pytest.raises(GaveUpError, match=r"^b failed 3 times") as gave_up:
        await supervise(journal, Part("a"), Part("b", *[fail] * 3), restarts=2).run(asyncio.Event())
    assert gave_up.value.__cause__ is journal.errors[-1]
    assert journal.lines.count("b started") == 3
    assert journal.lines[-1] == "a stopped"


async def test_budgets_are_apart() -> None:
    """The failures of one component cost another nothing."""
    journal = Journal()
    async with running(supervise(journal, Part("a", fail), Part("b", fail), restarts=1)):
        await journal.wait_for("a started", times=2)
        await journal.wait_for("b started", times=2)


@pytest.mark.parametrize(("ran_s", "survives"), [(60, True), (59.9, False)])
async def test_a_healthy_run_refills_the_budget(ran_s: float, *, survives: bool) -> None:
    """A run of `healthy_after_s` gives the whole budget back, a shorter one gives nothing."""
    journal, clock = Journal(), FakeClock()

    def work_then_fail() -> None:
        clock.advance(ran_s)
        fail()

    part = Part("a", fail, work_then_fail)
    async with running(supervise(journal, part, restarts=1, clock=clock)) as (task, _):
        await asyncio.wait(
            [task, asyncio.create_task(journal.wait_for("a started", 3))], return_when=asyncio.FIRST_COMPLETED
        )
        assert task.done() is not survives


async def test_backoff_grows_with_full_jitter_up_to_its_bound() -> None:
    """Each wait is drawn from nothing up to a bound that doubles, and starts anew after a healthy run."""
    journal, clock, jitter = Journal(), FakeClock(), Bounds()

    def work_then_fail() -> None:
        clock.advance(60)
        fail()

    part = Part("a", *[fail] * 5, work_then_fail)
    settings = {"restarts": 5, "backoff_initial_s": 0.5, "backoff_max_s": 3, "clock": clock, "jitter": jitter}
    async with running(supervise(journal, part, **settings)):
        await journal.wait_for("a started", times=7)
    assert jitter.drawn == [(0, 0.5), (0, 1), (0, 2), (0, 3), (0, 3), (0, 0.5)]


async def test_backoff_never_overflows() -> None:
    """However often a component has failed, the next wait is a number."""
    supervisor = supervise(Journal(), backoff_initial_s=0.5, backoff_max_s=30, jitter=Longest())
    assert supervisor._backoff_s(100_000) == 30


async def test_a_stop_ends_a_backoff_at_once() -> None:
    """Who waits to be restarted is not waited for, and not started again."""
    journal = Journal()
    settings = {"backoff_initial_s": 3600, "backoff_max_s": 3600, "jitter": Longest()}
    async with running(supervise(journal, Part("a", fail), **settings)) as (task, stopping):
        await journal.wait_for("a failed")
        stopping.set()
        await task
    assert journal.lines == ["a started", "a failed"]


async def test_a_swallowed_cancellation_holds_the_stop_only_for_its_time() -> None:
    """A component that does not end is left behind by name when the time is over; all others are stopped in order."""
    journal, stubborn = Journal(), Stubborn("b")
    with capture_logs() as logs:
        async with running(supervise(journal, Part("a"), stubborn, Part("c"), stop_timeout_s=0.1)) as (task, stopping):
            await journal.wait_for("c started")
            stopping.set()
            await task
    assert journal.lines[3:] == ["c stopped", "a stopped"]
    assert [line["components"] for line in logs if line["event"] == "stop_timed_out"] == [["b"]]


async def test_everyone_is_asked_in_time() -> None:
    """However many hold up the stop, whoever comes after them is asked before its time is over."""
    journal, now = Journal(), asyncio.get_running_loop().time
    first, stubborn = Careful("first", journal), [Stubborn("b"), Stubborn("c")]
    async with running(supervise(journal, first, *stubborn, stop_timeout_s=1)) as (_, stopping):
        await journal.wait_for("c started")
        asked_until = now() + 1
        stopping.set()
        await journal.wait_for("first finishing")
        assert now() < asked_until
        first.may_finish.set()
        await journal.wait_for("first stopped")


async def test_who_is_slow_has_all_the_time_there_is() -> None:
    """A component that needs more than its share may still finish while the stop lasts, and is not left behind."""
    journal = Journal()
    slow = Careful("slow", journal)
    with capture_logs() as logs:
        async with running(supervise(journal, Part("a"), slow, stop_timeout_s=1)) as (task, stopping):
            await journal.wait_for("slow started")
            stopping.set()
            await journal.wait_for("a stopped")
            asyncio.get_running_loop().call_later(0.1, slow.may_finish.set)
            await task
    assert journal.lines[2:] == ["slow finishing", "a stopped", "slow stopped"]
    assert "stop_timed_out" not in {line["event"] for line in logs}


async def test_to_cancel_the_supervisor_stops_everything() -> None:
    """Cancelled, run() stops its components as it does when asked, and then is cancelled."""
    journal = Journal()
    async with running(supervise(journal, Part("a"), Part("b", fail))) as (task, _):
        await journal.wait_for("b started", times=2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert journal.lines[-2:] == ["b stopped", "a stopped"]


async def test_to_cancel_a_stop_is_to_wait_no_longer() -> None:
    """Cancelled while it stops, the supervisor cancels all who are left at once, and returns."""
    journal = Journal()
    async with running(supervise(journal, Part("a"), Careful("b", journal))) as (task, stopping):
        await journal.wait_for("b started")
        stopping.set()
        await journal.wait_for("b finishing")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await journal.wait_for("a stopped")
        await journal.wait_for("b stopped")


async def test_to_fail_on_the_way_out_is_no_reason_to_come_back() -> None:
    """A failure during the stop is logged and reported; nobody is restarted, nobody gives up."""

    class Clumsy(Part):
        async def run(self) -> None:
            try:
                await super().run()
            finally:
                fail()

    journal = Journal()
    async with running(supervise(journal, Part("a"), Clumsy("b"), restarts=0)) as (task, stopping):
        await journal.wait_for("b started")
        stopping.set()
        await task
    assert journal.lines == ["a started", "b started", "b failed", "a stopped"]


async def test_every_exit_is_logged() -> None:
    """Each start and each end of a component is one line that names it."""
    journal = Journal()
    with capture_logs() as logs, pytest.raises(GaveUpError):
        await supervise(journal, Part("a"), Part("b", fail, fail), restarts=1).run(asyncio.Event())
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


async def test_nothing_to_run_is_run_until_the_stop() -> None:
    """A supervisor of nothing waits for the stop like any other."""
    async with running(supervise(Journal())) as (task, stopping):
        stopping.set()
        await task
