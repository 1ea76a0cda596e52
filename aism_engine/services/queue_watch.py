"""Waits for the next message of a queue, without polling while the server can block."""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from aism_engine.errors import ServerUnavailableError
from aism_engine.services.wakeup import Wakeup
from aism_engine.store.doorbell import Doorbell
from aism_engine.store.queue_tail import QueueTail

log = structlog.get_logger(component="queue_watch")

_RECHECK_S: Final = 2.0
"""Time between polls while the server blocks; an arbitrary number.

The poll finds a message even if the connection of the blocking call is dead, which is noticed later.
"""
_RETRY_S: Final = 5.0
"""Pause after a failed call, an arbitrary number. The queue is polled meanwhile."""


class QueueWatch:
    """Sets the wakeup of a consumer when its queue has a message.

    A call to the server blocks until then. If the consumer wakes up for another reason, the call keeps blocking. While
    the call fails, the consumer polls. The doorbell, if the queue has one, is a second hint.
    """

    def __init__(self, tail: QueueTail, doorbell: Doorbell | None, wakeup: Wakeup) -> None:
        self._tail = tail
        self._doorbell = doorbell
        self.wakeup = wakeup
        self._listening: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._message: bytes | None = None
        self._blocks = False
        """Whether the last call to the server blocked, or found a message."""
        self._is_denied = False

    async def wait(self, poll_interval_s: float, max_bytes: int) -> bytes | None:
        """Wait until there may be a message. Return the oldest one of the queue if it is known.

        `poll_interval_s` is the longest wait while the server cannot block. A message of more than `max_bytes` is not
        returned.
        """
        self._take()
        if self._doorbell is not None and (self._listening is None or self._listening.done()):
            if self._listening is not None:
                self._listening.result()  # raises the exception that ended the task: a bug
            self._listening = asyncio.create_task(self._listen(self._doorbell))
        if not self.wakeup.is_set and (self._task is None or self._task.done()):
            if self._task is not None:
                self._task.result()  # raises the exception that ended the task: a bug
            self._task = asyncio.create_task(self._watch(max_bytes))
        await self.wakeup.wait(max(poll_interval_s, _RECHECK_S) if self._blocks else poll_interval_s)
        return self._take() or None

    async def close(self) -> None:
        """End the calls to the server. Idempotent."""
        tasks = [task for task in (self._task, self._listening) if task is not None]
        self._task, self._listening, self._blocks = None, None, False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self) -> bytes | None:
        message, self._message = self._message, None
        return message

    async def _watch(self, max_bytes: int) -> None:
        """Set the wakeup as soon as the queue has a message."""
        while True:
            try:
                message = await self._tail.wait(max_bytes)
            except ServerUnavailableError as error:
                self._handle_failure(error)
                await asyncio.sleep(_RETRY_S)
                continue
            self._blocks, self._is_denied = True, False
            if message is not None:
                self._message = message
                self.wakeup.set()
                return

    async def _listen(self, doorbell: Doorbell) -> None:
        while True:
            with suppress(ServerUnavailableError):
                await doorbell.listen(self.wakeup.set)
            await asyncio.sleep(_RETRY_S)

    def _handle_failure(self, error: ServerUnavailableError) -> None:
        if error.outage == "noperm" and not self._is_denied:
            self._is_denied = True
            log.warning("watch_denied", detail=str(error), consequence="the queue is polled")
        self._blocks = False
        self.wakeup.set()  # the consumer polls from now on
