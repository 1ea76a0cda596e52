"""Laws of the signal handlers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from aism_engine.runtime import signals


class Stops:
    """Records the calls of `stop`."""

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


async def send_and_wait(number: signal.Signals) -> None:
    """Send a signal to this process, and wait until the event loop has handled it."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, arrived.set)
    try:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)  # the loop handles signals in order
        await arrived.wait()
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
async def test_signal_requests_a_stop(stops: Stops, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    await stops.called.wait()
    assert stops.names == [number.name]


async def test_second_signal_is_only_logged(stops: Stops) -> None:
    with capture_logs() as logs:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            await send_and_wait(number)
    assert stops.names == ["SIGTERM"]
    assert [(line["event"], line["signal"]) for line in logs] == [
        ("signal_received", "SIGTERM"),
        ("signal_ignored", "SIGINT"),
        ("signal_ignored", "SIGTERM"),
    ]


async def test_handlers_are_removed_with_the_context() -> None:
    """The signals then have their default effect in Python."""
    with signals.install(asyncio.get_running_loop(), Stops()):
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_other_signals_keep_their_handlers() -> None:
    """Whatever these are: under `nohup` the tests run with SIGHUP ignored."""
    others = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in others]
    with signals.install(asyncio.get_running_loop(), Stops()):
        assert [signal.getsignal(number) for number in others] == before
