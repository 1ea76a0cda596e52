"""What the proxy can do to one request: which, and what. And where on the wire a request or a reply begins and ends."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, Self, TypeAlias

import hiredis

Request: TypeAlias = Sequence[bytes]
Match: TypeAlias = Callable[[Request], bool]


class Frames:
    """Cuts a stream of RESP into its requests, or its replies, byte for byte."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at = 0
        self._missing = 1

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in what has arrived, and give each frame that is whole by now."""
        self._bytes += data
        while self._skip_element():
            if self._missing == 0:
                frame = bytes(self._bytes[: self._at])
                del self._bytes[: self._at]
                self._at, self._missing = 0, 1
                yield frame

    def rest(self) -> bytes:
        """Give what is no whole frame yet, and forget it."""
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
        elif kind == ord("|"):  # attributes: they stand before what they belong to, and are part of its frame
            self._missing += 2 * int(size) + 1
        self._missing -= 1
        self._at = end
        return True


class Deed(Enum):
    WATCH = auto()
    DROP_REPLY = auto()
    HOLD_REQUEST = auto()
    HOLD_REPLY = auto()
    ANSWER = auto()


class Cue:
    """One request to wait for, and what is done when it comes: from the n-th that matches on, `times` times."""

    def __init__(self, match: Match, deed: Deed, *, nth: int, times: float, cut: bool, reply: bytes = b"") -> None:
        self.struck: list[Request] = []
        """The requests that it was done to."""
        self.replies: list[Any] = []
        """What the server has answered to those, whether the client came to know it or not; errors as exceptions."""
        self.deed = deed
        self.cut = cut
        self.reply = reply
        self._match = match
        self._waiting = nth - 1
        self._times = times
        self._changed = asyncio.Event()
        self._released = asyncio.Event()

    async def wait_struck(self, times: int = 1) -> Self:
        """Wait until it was done so often."""
        await self._wait(lambda: len(self.struck) >= times)
        return self

    async def wait_answered(self, times: int = 1) -> list[Any]:
        """Wait until the server has answered so many of the requests that it was done to; gives the replies."""
        await self._wait(lambda: len(self.replies) >= times)
        return self.replies

    def release(self) -> None:
        """Let go of all that is held, and hold nothing more."""
        self.lift()
        self._released.set()

    def lift(self) -> None:
        """Do it to nobody any more; what is held stays held."""
        self._times = 0

    # --- for the proxy ------------------------------------------------------------------------------------------------

    def takes(self, request: Request) -> bool:
        """Tell whether it is this request's turn; then it is counted as struck."""
        if self._times <= 0 or not self._match(request):
            return False
        if self._waiting:
            self._waiting -= 1
            return False
        self._times -= 1
        self.struck.append(request)
        self._changed.set()
        return True

    def answered(self, reply: bytes) -> None:
        self.replies.append(parsed(reply))
        self._changed.set()

    async def wait_released(self) -> None:
        await self._released.wait()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def parsed(frame: bytes) -> Any:  # noqa: ANN401 - a reply is what the command makes it
    """Read one frame; an error is given as an exception, not raised."""
    reader = hiredis.Reader()
    reader.feed(frame)
    return reader.gets()
