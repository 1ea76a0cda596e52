"""Rules of the fault proxy, each for single requests, and the framing of RESP that they need."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import hiredis

Request: TypeAlias = Sequence[bytes]
Match: TypeAlias = Callable[[Request], bool]
Action: TypeAlias = Literal["watch", "drop reply", "hold request", "hold reply"]

_GUARD_S: Final = 300.0
"""Only guards against hanging."""
_INCOMPLETE: Final = object()


class Frames:
    """Splits a stream of RESP into its requests or replies."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._lines: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[tuple[bytes, Any]]:
        """Add received bytes; yield the bytes of each frame that is complete, and its value. An error is a value."""
        for line in data.splitlines(keepends=True):  # every frame ends with a line
            self._lines.append(line)
            self._reader.feed(line)
            if (value := self._reader.gets()) is not _INCOMPLETE:
                frame = b"".join(self._lines)
                self._lines.clear()
                yield frame, value


class Rule:
    """Applies an action to the next `times` requests that match."""

    def __init__(self, match: Match, action: Action, times: float = 1, *, cut: bool = False) -> None:
        self.matched: list[Request] = []
        """The requests to which the action was applied."""
        self.replies: list[Any] = []
        """What the server has answered to those, whether or not the client has received it. Errors are exceptions."""
        self.action = action
        self.cut = cut
        self.released = asyncio.Event()
        self._match = match
        self._times = times
        self._changed = asyncio.Event()

    async def wait_matched(self, times: int = 1) -> None:
        """Wait until the action was applied `times` times."""
        await self._wait(lambda: len(self.matched) >= times)

    async def wait_answered(self, times: int = 1) -> list[Any]:
        """Wait until the server has answered `times` of the matched requests, and return the replies."""
        await self._wait(lambda: len(self.replies) >= times)
        return self.replies

    def release(self) -> None:
        """Deliver what is held, and disable the rule."""
        self._times = 0
        self.released.set()

    def takes(self, request: Request) -> bool:
        """Tell the proxy whether the action applies to this request, and count it."""
        if self._times <= 0 or not self._match(request):
            return False
        self._times -= 1
        self.matched.append(request)
        self._changed.set()
        return True

    def answered(self, reply: object) -> None:
        self.replies.append(reply)
        self._changed.set()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_GUARD_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()
