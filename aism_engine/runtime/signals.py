"""SIGTERM and SIGINT ask for one orderly stop; asking again neither hurries it nor starts a second one. What other
signals ask for is done each time.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

log = structlog.get_logger(component="signals")

HANDLED = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def install(
    loop: asyncio.AbstractEventLoop,
    stop: Callable[[str], None],
    others: Mapping[signal.Signals, Callable[[], None]] | None = None,
) -> Iterator[None]:
    """While the context lasts, call `stop` with the name of the first signal that comes; later ones are only logged.
    `others` are called whenever their signal comes.

    Only in the main thread. At exit both signals mean again what they mean to Python: the end of the process.
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

    for handled in HANDLED:
        loop.add_signal_handler(handled, receive, handled)
    for other, act in (others or {}).items():
        loop.add_signal_handler(other, act)
    try:
        yield
    finally:
        for other in others or {}:
            loop.remove_signal_handler(other)
        for handled in HANDLED:
            loop.remove_signal_handler(handled)


def ignore() -> None:
    """Hear of no further signal: to be called when the stop is done and nothing is left but to exit."""
    for handled in HANDLED:
        signal.signal(handled, signal.SIG_IGN)
