"""Repeats reads until an outage of Redis is over, for CLI commands that watch a fleet, and reports the outage."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aism_engine.backoff import Backoff
from aism_engine.durations import format_age
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.inspector import Report

T = TypeVar("T")

_RETRIES: Final = Backoff(0.05, 1.0)
"""Pauses between attempts to reach the server."""


class Reconnect:
    """Repeats a read until the server can serve it. An outage before the first read has succeeded is raised."""

    def __init__(self, report: Report) -> None:
        """`report` gets a line of text when the connection is lost, and when it is back."""
        self._report = report
        self._has_read = False
        self._failures = 0
        self._lost_at = 0.0

    async def call(self, read: Callable[[], Awaitable[T]], note: Callable[[T], str] = lambda _: "") -> T:
        """Return what `read` returns. After an outage the report ends with `note` of that result."""
        while True:
            try:
                found = await read()
            except ServerUnavailableError as error:
                if not self._has_read:
                    raise
                self._failures += 1
                if self._failures == 1:
                    self._lost_at = time.monotonic()
                    self._report(f"the connection to Redis is lost ({error.outage}): waiting for it")
                await asyncio.sleep(_RETRIES.limit_s(self._failures))
                continue
            if self._failures:
                self._report(f"Redis is back after {format_age(time.monotonic() - self._lost_at)}{note(found)}")
            self._has_read, self._failures = True, 0
            return found
