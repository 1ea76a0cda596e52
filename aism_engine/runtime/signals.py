"""Handles signals: the first SIGTERM or SIGINT requests an orderly stop; later ones are ignored."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

log = structlog.get_logger(component="signals")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def install(
    loop: asyncio.AbstractEventLoop,
    stop: Callable[[str], None],
    others: Mapping[signal.Signals, Callable[[], None]] | None = None,
) -> Iterator[None]:
    """Install handlers while the context lasts; call it in the main thread.

    `stop` is called once, with the name of the first stop signal; later ones are only logged. A callback in `others` is
    called each time its signal arrives. On exit the stop signals have their default effect in Python again.
    """
    first: signal.Signals | None = None

    def receive(received: signal.Signals) -> None:
        nonlocal first
        if first is not None:
            log.warning("signal_ignored", signal=received.name, stopping_since=first.name)
            return
        first = received
        log.info("signal_received", signal=received.name)
        stop(received.name)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, receive, number)
    for other, callback in (others or {}).items():
        loop.add_signal_handler(other, callback)
    try:
        yield
    finally:
        for number in (*(others or {}), *STOP_SIGNALS):
            loop.remove_signal_handler(number)


def ignore() -> None:
    """Ignore all stop signals. Call it when the stop is complete and the process only has to exit."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
