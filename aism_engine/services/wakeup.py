"""How services notify each other without a reference to each other."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field


async def _nothing() -> None:
    pass


class Wakeup:
    """Wakes one service because there may be work. It is a hint: the service also checks by itself.

    The service mutes the wakeup while it is busy, so that notifications cost nothing then, and unmutes it before it
    sleeps. Notifications may be lost while it is muted, so the service must check for work once more after `unmute`.
    """

    def __init__(self) -> None:
        self.muted = False
        self._event = asyncio.Event()
        self._mute: Callable[[], Awaitable[None]] = _nothing
        self._unmute: Callable[[], Awaitable[None]] = _nothing

    def connect(self, mute: Callable[[], Awaitable[None]], unmute: Callable[[], Awaitable[None]]) -> None:
        """Set the functions that turn the source of notifications off and on."""
        self._mute, self._unmute = mute, unmute

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        """Forget the notifications so far, because the service now checks for work."""
        self._event.clear()

    async def mute(self) -> None:
        self.muted = True
        await self._mute()

    async def unmute(self) -> None:
        self.muted = False
        await self._unmute()

    async def wait(self, timeout_s: float) -> None:
        """Wait until the wakeup is set, or until the timeout. Clears the wakeup."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        self._event.clear()


@dataclass(frozen=True)
class Wakeups:
    """The wakeups that services set for each other, each named after the service that it wakes, or after its queue."""

    responses: Wakeup = field(default_factory=Wakeup)
    dispatcher: Wakeup = field(default_factory=Wakeup)


class Watermark:
    """How far the response queue has been applied: agents and commands are judged only up to `applied_until`.

    The consumer reports the length of the queue at each peek, and how many messages each commit applied. If a peek
    found 5 messages, then all of them are applied once 5 more messages have been applied.
    """

    def __init__(self, request_peek: Callable[[], None]) -> None:
        """`request_peek` makes the consumer peek soon. An idle consumer seldom peeks by itself."""
        self.request_peek = request_peek
        self._applied = 0
        self._pending: tuple[float, int] | None = None
        """A peek that found unread messages: its instant, and the value of `_applied` that covers all of them."""
        self.applied_until = float("-inf")
        """Monotonic instant: every message that was in the queue at this instant has been applied."""
        self._observed_at = float("-inf")
        """Monotonic instant of the last peek."""
        self._observed = asyncio.Event()

    @property
    def has_unread(self) -> bool:
        """Whether messages found by an earlier peek are not applied yet."""
        return self._pending is not None

    def observe(self, at: float, length: int) -> None:
        """Record the length of the queue at a monotonic instant."""
        self._observed_at = at
        if length == 0:
            self._pending = None
            self.applied_until = at
        elif self._pending is None:
            self._pending = (at, self._applied + length)
        self._observed.set()

    def advance(self, count: int) -> None:
        """Record that this many messages were applied."""
        self._applied += count
        if self._pending is not None and self._applied >= self._pending[1]:
            self.applied_until, _ = self._pending
            self._pending = None
            self._observed.set()

    async def refresh(self, at: float) -> None:
        """Wait for a peek that began at this monotonic instant or later, so that `applied_until` is up to date."""
        while self._observed_at < at:
            await self._wait_observed()

    async def wait_until(self, at: float) -> None:
        """Wait until everything that was in the queue at this monotonic instant has been applied."""
        while self.applied_until < at:
            await self._wait_observed()

    async def _wait_observed(self) -> None:
        self.request_peek()
        self._observed.clear()
        await self._observed.wait()
