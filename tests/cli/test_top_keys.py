"""Laws of `top` and `dev` on a terminal: keys, colours, and the mode of the terminal afterwards."""

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call, Start
from tests.support.engine import eventually

Terminals = Callable[..., Any]
_TERMINAL_VARIABLES: Final = frozenset({"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"})
BUG: Final = """
import asyncio
from aism_engine.cli.keyboard import Keyboard
async def main():
    with Keyboard(asyncio.Queue(), handle_sigterm=True) as keyboard:
        raise RuntimeError("a bug" if keyboard.is_reading else "no keyboard")
asyncio.run(main())
"""


class Terminal:
    """A pseudo-terminal with a program in its foreground."""

    def __init__(self, start: Start, *arguments: str, no_color: bool = False, **options: Any) -> None:  # noqa: ANN401
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._mode = termios.tcgetattr(self._theirs)
        self._text = ""
        environ = {name: value for name, value in os.environ.items() if name not in _TERMINAL_VARIABLES}
        environ |= {"TERM": "xterm"} | ({"NO_COLOR": "1"} if no_color else {})
        options |= dict.fromkeys(("stdin", "stdout", "stderr"), self._theirs)
        # login_tty makes it the controlling terminal of the program, which is in the foreground then.
        self.process = start(*arguments, env=environ, preexec_fn=partial(os.login_tty, self._theirs), **options)
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def _read(self) -> None:
        self._text += os.read(self._ours, 65536).decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    async def shows(self, pattern: str) -> str:
        """Wait until what was written since the last call matches, and return the match."""
        await eventually(lambda: re.search(pattern, self._text, re.DOTALL) is not None)
        found = re.search(pattern, self._text, re.DOTALL)
        assert found is not None
        self._text = self._text[found.end() :]
        return found[0]

    async def ended(self) -> int:
        """Wait for the end of the program, check that the terminal is as before, and return the exit code."""
        await eventually(lambda: self.process.poll() is not None)
        assert termios.tcgetattr(self._theirs) == self._mode
        return int(self.process.returncode)

    def restore_mode(self) -> None:
        termios.tcsetattr(self._theirs, termios.TCSANOW, self._mode)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)
        os.close(self._theirs)

    @property
    def is_reading_keys(self) -> bool:
        return not termios.tcgetattr(self._theirs)[3] & termios.ICANON


@pytest.fixture
async def terminal(start: Start) -> AsyncIterator[Terminals]:
    """Start `aism-engine` on a terminal."""
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, **options: Any) -> Terminal:  # noqa: ANN401
        opened.append(Terminal(start, *arguments, **options))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.fixture
def top(terminal: Terminals, server: EmbeddedServer, prefix: str) -> Terminals:
    """Start `top` on a terminal, for the fleet of this test."""
    return partial(terminal, "top", "--interval", "100ms", "--redis", server.url, "--prefix", prefix)


@pytest.mark.usefixtures("engine")
async def test_keys_sort_select_and_open(top: Terminals) -> None:
    shown = top()
    await shown.shows(r"\x1b\[7mw-0")
    shown.press("j\x1b[B")
    await shown.shows(r"\x1b\[7mw-2")
    shown.press("\r")
    await shown.shows(r"capabilities +ack.*measurements")
    shown.press("\x1b")
    await shown.shows(r"NO PROBLEM: 3")
    shown.press("s")
    await shown.shows("sorted by time")
    shown.press("?")
    await shown.shows("Esc, q +go back")
    shown.press("q")
    await shown.shows(r"NO PROBLEM: 3")
    shown.press("q")
    assert await shown.ended() == 0


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("end", ["\x03", "\x1c", signal.SIGTERM, signal.SIGINT])
async def test_the_terminal_is_restored_by_a_signal(top: Terminals, end: str | signal.Signals) -> None:
    shown = top()
    await shown.shows("NO PROBLEM: 3")
    assert shown.is_reading_keys
    if isinstance(end, str):
        shown.press(end)
    else:
        shown.process.send_signal(end)
    assert await shown.ended() == 0


async def test_the_terminal_is_restored_after_an_error(terminal: Terminals) -> None:
    """A bug prints its traceback on a terminal that works."""
    shown = terminal(program=BUG)
    assert await shown.ended() == 1
    await shown.shows("a bug")


async def test_top_needs_redis_at_its_start(terminal: Terminals) -> None:
    shown = terminal("top", "--redis", "redis://127.0.0.1:1")
    assert await shown.ended() == 69
    await shown.shows("127.0.0.1:1")


@pytest.mark.usefixtures("engine")
async def test_keys_are_read_again_after_a_stop(top: Terminals) -> None:
    """A shell that stops a program restores its own mode of the terminal."""
    shown = top()
    await shown.shows("NO PROBLEM: 3")
    shown.process.send_signal(signal.SIGSTOP)
    shown.restore_mode()
    shown.process.send_signal(signal.SIGCONT)
    await eventually(lambda: shown.is_reading_keys)
    shown.press("q")
    assert await shown.ended() == 0


@pytest.mark.usefixtures("engine")
async def test_problems_are_coloured_unless_no_color_is_set(top: Terminals, fleet: Call) -> None:
    await fleet("pause", "w-1", "--reason", "quota")
    assert await top().shows(r"\S*HELD: 1") == "\x1b[1;34mHELD: 1"
    assert await top(no_color=True).shows(r"\S*HELD: 1") == "\x1b[1mHELD: 1"


async def test_top_survives_an_outage_of_redis(terminal: Terminals, prefix: str) -> None:
    with EmbeddedServer() as server:
        shown = terminal("top", "--interval", "100ms", "--redis", server.url, "--prefix", prefix)
        await shown.shows("0 agents")
        server.kill()
        await shown.shows(r"\x1b\[1;31m")
        server.start()
        await shown.shows(r"\x1b\[H(?!\x1b\[1;31m)[^\x1b]*fleet")
        shown.press("q")
        assert await shown.ended() == 0


async def test_q_ends_dev(terminal: Terminals) -> None:
    """The summary is printed on the terminal as it was before."""
    shown = terminal("dev", "--agents", "3", "--seed", "7")
    await shown.shows("architect-")
    shown.press("q")
    await shown.shows("responses_per_second")
    assert await shown.ended() == 0
