"""What an agent does while Redis is not available: it tries again, and logs the start and the end of the outage."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from aism_engine.backoff import Backoff
from aism_engine.errors import ServerUnavailableError

T = TypeVar("T")
log = structlog.get_logger(component="agent")

_BACKOFF: Final = Backoff(0.5, 5.0)


class Outages:
    """Repeats calls while Redis is not available. An outage lasts as long as any of the calls fails."""

    def __init__(self) -> None:
        self._failing: dict[object, str] = {}
        """Name of the latest outage of each failing call. The key is an object that stands for the call."""

    @property
    def current(self) -> str | None:
        """Name of the outage; None while Redis is available."""
        return next(iter(self._failing.values()), None)

    async def retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until Redis is available. Raises other errors of the call."""
        key, failures = object(), 0
        try:
            while True:
                try:
                    return await call()
                except ServerUnavailableError as error:
                    failures += 1
                    if not self._failing:
                        log.warning("redis_unavailable", outage=error.outage, detail=str(error), hint=error.hint)
                    self._failing[key] = error.outage
                    await asyncio.sleep(_BACKOFF.pause_s(failures))
        except asyncio.CancelledError:
            self._failing.pop(key, None)  # keeps `finally` from logging the end of an outage that goes on
            raise
        finally:
            if self._failing.pop(key, None) and not self._failing:
                log.info("redis_available")
