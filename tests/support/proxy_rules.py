"""Rules of the fault proxy, each for single requests, and the framing of RESP that they need."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, Self, TypeAlias

import hiredis

Request: TypeAlias = Sequence[bytes]
Match: TypeAlias = Callable[[Request], bool]


class Frames:
    """Splits a stream of RESP into the bytes of its requests or replies."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at = 0
        self._missing = 1

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add received bytes, and yield each frame that is complete."""
        self._bytes += data
        while self._skip_element():
            if self._missing == 0:
                frame = bytes(self._bytes[: self._at])
                del self._bytes[: self._at]
                self._at, self._missing = 0, 1
                yield frame

    def rest(self) -> bytes:
        """Return and forget the bytes of an incomplete frame."""
        rest = bytes(self._bytes)
        self._bytes.clear()
        self._at, self._missing = 0, 1
        return rest

    def _skip_element(self) -> bool:
        end = self._bytes.find(b"\r\n", self._at) + 2
        if end == 1:
            return False
        kind, size = self._bytes[self._at], self._bytes[self._at + 1 : end - 2]
        if kind in b"$=!":
            if size != b"-1":
                end += int(size) + 2
            if end > len(self._bytes):
                return False
        elif kind in b"*~>" and size != b"-1":
            self._missing += int(size)
        elif kind == ord("%"):
            self._missing += 2 * int(size)
        elif kind == ord("|"):  # attributes precede a value, and belong to its frame
            self._missing += 2 * int(size) + 1
        self._missing -= 1
        self._at = end
        return True


class Action(Enum):
    WATCH = auto()
    DROP_REPLY = auto()
    HOLD_REQUEST = auto()
    HOLD_REPLY = auto()


class Rule:
    """Applies an action to requests that match: to `times` of them, beginning with the n-th."""

    def __init__(self, match: Match, action: Action, *, nth: int = 1, times: float = 1, cut: bool = False) -> None:
        self.matched: list[Request] = []
        """The requests to which the action was applied."""
        self.replies: list[Any] = []
        """What the server has answered to those, whether or not the client has received it. Errors are exceptions."""
        self.action = action
        self.cut = cut
        self._match = match
        self._waiting = nth - 1
        self._times = times
        self._changed = asyncio.Event()
        self._released = asyncio.Event()

    async def wait_matched(self, times: int = 1) -> Self:
        """Wait until the action was applied `times` times."""
        await self._wait(lambda: len(self.matched) >= times)
        return self

    async def wait_answered(self, times: int = 1) -> list[Any]:
        """Wait until the server has answered `times` of the matched requests, and return the replies."""
        await self._wait(lambda: len(self.replies) >= times)
        return self.replies

    def release(self) -> None:
        """Deliver what is held, and disable the rule."""
        self.disable()
        self._released.set()

    def disable(self) -> None:
        """Apply the action to no further request. What is held stays held."""
        self._times = 0

    # --- used by the proxy --------------------------------------------------------------------------------------------

    def takes(self, request: Request) -> bool:
        """Tell whether the action applies to this request, and count it."""
        if self._times <= 0 or not self._match(request):
            return False
        if self._waiting:
            self._waiting -= 1
            return False
        self._times -= 1
        self.matched.append(request)
        self._changed.set()
        return True

    def answered(self, reply: bytes) -> None:
        self.replies.append(parsed(reply))
        self._changed.set()

    async def wait_released(self) -> None:
        await self._released.wait()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(300):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def parsed(frame: bytes) -> Any:  # noqa: ANN401 - a reply is what the command makes it
    """Parse one frame. An error is returned as an exception, not raised."""
    reader = hiredis.Reader()
    reader.feed(frame)
    return reader.gets()
