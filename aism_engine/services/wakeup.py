"""What services tell each other without knowing each other: that there may be work, and how far the queue has been
read.
"""

import asyncio
from collections.abc import Awaitable, Callable


async def _nothing() -> None:
    pass


class Wakeup:
    """Rings when there may be something in a queue. A hint is never needed: whoever waits for it polls as well.

    Its reader mutes it while it is busy, so that notifications cost nothing then, and unmutes it before it sleeps. What
    rang in between was missed, so the reader looks once more after `unmute`.
    """

    def __init__(self) -> None:
        self.muted = False
        self._event = asyncio.Event()
        self._mute: Callable[[], Awaitable[None]] = _nothing
        self._unmute: Callable[[], Awaitable[None]] = _nothing

    def connect(self, mute: Callable[[], Awaitable[None]], unmute: Callable[[], Awaitable[None]]) -> None:
        """Say how the source of the hint is turned off and on."""
        self._mute, self._unmute = mute, unmute

    def set(self) -> None:
        self._event.set()

    async def mute(self) -> None:
        self.muted = True
        await self._mute()

    async def unmute(self) -> None:
        self.muted = False
        await self._unmute()

    async def wait(self, timeout_s: float) -> None:
        """Wait until it rings, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()


class Watermark:
    """How far the response queue has been read: what lies in it unread, nobody may judge an agent or a command without.

    The reader says at each look how much lies there, and how much it has applied since. Everything that lay there at
    the moment of a look has been passed once as much has been applied as lay there then.
    """

    def __init__(self) -> None:
        self._applied = 0
        self._mark: tuple[float, int] | None = None
        self.applied_until = float("-inf")
        """Everything that lay in the queue at this instant of the monotonic clock has been applied."""

    @property
    def has_unread(self) -> bool:
        """Whether something lay there at the last look that has not been applied yet."""
        return self._mark is not None

    def observe(self, at: float, length: int) -> None:
        """Note that at this instant of the monotonic clock, so many lay in the queue."""
        if length == 0:
            self._mark = None
            self.applied_until = at
        elif self._mark is None:
            self._mark = (at, self._applied + length)

    def advance(self, count: int) -> None:
        self._applied += count
        if self._mark is not None and self._applied >= self._mark[1]:
            at, _ = self._mark
            self._mark = None
            self.applied_until = at
