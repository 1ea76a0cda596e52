"""Laws of the signals."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from aism_engine.runtime import signals


class Stops:
    """Writes down each call of stop()."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.called = asyncio.Event()

    def __call__(self, name: str) -> None:
        self.names.append(name)
        self.called.set()


@pytest.fixture
async def stops() -> AsyncIterator[Stops]:
    stops = Stops()
    with signals.install(asyncio.get_running_loop(), stops):
        yield stops


async def handled(number: signal.Signals) -> None:
    """Send ourselves a signal, and await the loop's turn in which it has been handled."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, arrived.set)
    try:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)  # handled after the one before it: the loop reads them in order
        await arrived.wait()
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
async def test_a_signal_asks_for_a_stop(stops: Stops, number: signal.Signals) -> None:
    """SIGTERM and SIGINT each call stop() with their name."""
    os.kill(os.getpid(), number)
    await stops.called.wait()
    assert stops.names == [number.name]


async def test_a_second_signal_changes_nothing(stops: Stops) -> None:
    """Whatever comes after the first signal is logged, and no more."""
    with capture_logs() as logs:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            await handled(number)
    assert stops.names == ["SIGTERM"]
    assert [(line["event"], line["signal"]) for line in logs] == [
        ("signal_received", "SIGTERM"),
        ("signal_ignored", "SIGINT"),
        ("signal_ignored", "SIGTERM"),
    ]


async def test_the_handlers_leave_with_the_context() -> None:
    """At exit both signals mean again what they mean to Python."""
    with signals.install(asyncio.get_running_loop(), Stops()):
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_no_other_signal_is_touched(stops: Stops) -> None:
    """SIGHUP, SIGQUIT and the rest keep their meaning while we listen."""
    assert stops.names == []
    assert {signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)} == {signal.SIG_DFL}
