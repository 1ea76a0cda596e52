"""Keys that are pressed on a terminal, without waiting for Enter.

The terminal echoes nothing meanwhile. Its mode is restored in any case but SIGKILL: after Ctrl-C, Ctrl-\\, SIGTERM or
an error.
"""

import asyncio
import os
import re
import signal
import sys
import termios
import tty
from contextlib import suppress
from typing import Any, Final, Self

_SEQUENCE: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|[^\x1b]")
_INCOMPLETE: Final = re.compile(r"\x1b(\[[0-9;]*|O)?\Z")
_NAMES: Final = {
    **dict.fromkeys(("\x1b[A", "\x1bOA", "k"), "up"),
    **dict.fromkeys(("\x1b[B", "\x1bOB", "j"), "down"),
    **dict.fromkeys(("\r", "\n"), "enter"),
}
_ESCAPE_S: Final = 0.1
"""Longest time between the bytes of one sequence. The key Escape is a sequence that does not continue."""


class Keyboard:
    """Reads the keys of the terminal at standard input into `events`, until the context ends.

    A change of the window size is the event `resize`. SIGTERM, SIGQUIT (the key Ctrl-\\) and the end of the input are
    `quit`. Without a terminal, or in the background, there are no keys. After Ctrl-Z and `fg` the keys are read again.
    """

    def __init__(self, events: asyncio.Queue[str], *, handle_sigterm: bool) -> None:
        self._events = events
        ends = (signal.SIGQUIT, signal.SIGTERM) if handle_sigterm else (signal.SIGQUIT,)
        self._signals = {signal.SIGWINCH: "resize"} | dict.fromkeys(ends, "quit")
        self._pending = ""
        self._timer: asyncio.TimerHandle | None = None
        self._saved: list[Any] | None = None

    @property
    def is_reading(self) -> bool:
        return self._saved is not None

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for number, event in self._signals.items():
            self._loop.add_signal_handler(number, self._events.put_nowait, event)
        if is_foreground_terminal():
            self._saved = termios.tcgetattr(sys.stdin)
            self._loop.add_reader(sys.stdin, self._read)
            self._loop.add_signal_handler(signal.SIGCONT, self._set_mode)
            self._set_mode()
        return self

    def _set_mode(self) -> None:
        tty.setcbreak(sys.stdin)
        self._events.put_nowait("resize")

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            self._loop.remove_reader(sys.stdin)
            self._loop.remove_signal_handler(signal.SIGCONT)
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)
        for number in self._signals:
            self._loop.remove_signal_handler(number)

    def _read(self) -> None:
        try:
            found = os.read(sys.stdin.fileno(), 1024)
        except OSError:
            found = b""
        if not found:
            self._loop.remove_reader(sys.stdin)
            self._events.put_nowait("quit")
        if self._timer is not None:
            self._timer.cancel()
        keys, self._pending = parse_keys(self._pending + found.decode(errors="replace"))
        for key in keys:
            self._events.put_nowait(key)
        if self._pending:
            self._timer = self._loop.call_later(_ESCAPE_S, self._end_sequence)

    def _end_sequence(self) -> None:
        if self._pending == "\x1b":
            self._events.put_nowait("escape")
        self._pending = ""


def parse_keys(text: str) -> tuple[list[str], str]:
    """Return the names of the keys in a text from a terminal, and the incomplete sequence at its end, if any."""
    incomplete = _INCOMPLETE.search(text)
    pending = incomplete[0] if incomplete else ""
    keys = _SEQUENCE.findall(text.removesuffix(pending))
    return [_NAMES.get(key, key) for key in keys], pending


def is_foreground_terminal() -> bool:
    """Return whether keys can be read from standard input: a background process would be stopped."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # closed, no terminal, or not the controlling one
        return False
