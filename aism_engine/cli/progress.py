"""What a person sees while something takes its time; a pipe sees nothing of it."""

import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

_AFTER_S: Final = 1.0
_EVERY_S: Final = 0.2
_WIDTH: Final = 79


class ProgressLine:
    """One line on standard error, written over and over, from a second on; `clear` takes it away."""

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._now = now
        self._next_at = now() + _AFTER_S
        self._shown = False

    def tell(self, text: str) -> None:
        if self._now() < self._next_at or not self._stream.isatty():
            return
        self._next_at = self._now() + _EVERY_S
        self._shown = True
        self._stream.write(f"\r{text[:_WIDTH]:<{_WIDTH}}")
        self._stream.flush()

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            self._stream.write(f"\r{'':<{_WIDTH}}\r")
            self._stream.flush()
