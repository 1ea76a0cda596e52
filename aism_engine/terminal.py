"""What both command-line tools do with their arguments, their output and the end of the process.

Output is never lost to a traceback: what the encoding of a terminal lacks is escaped. A reader that closes the pipe
early, such as `head`, is no error.
"""

import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Final, NoReturn, TextIO

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_INTERRUPTED: Final = 130
_GC_THRESHOLD: Final = 200_000
"""More objects than the imports of a command make: collecting them takes a tenth of the time of a short command."""


class ExitCode(IntEnum):
    """Exit code of a command; 64 and 69 are those of sysexits.h."""

    DONE = 0
    REFUSED = 1
    TIMED_OUT = 2
    USAGE = 64
    UNAVAILABLE = 69


EXIT_CODES: Final = "Exit codes: 0 done, 1 refused or failed, 2 timed out, 64 wrong usage, 69 Redis not reachable."


class OutputError(Exception):
    """The result cannot be written to standard output."""


class ClosedPipeError(OutputError):
    """The reader of standard output has closed it, as `head` does."""


def run(
    command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None, report: Callable[[str], None]
) -> NoReturn:
    """Run a tool with its arguments, and exit with the code that it returns. `report` prints an error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    gc.set_threshold(_GC_THRESHOLD)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # a closed stream is None
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = command(arguments)
        if sys.stdout is not None:
            _guarded(sys.stdout.flush)
    except ClosedPipeError:
        code = ExitCode.DONE
        _discard_output()
    except OutputError as error:
        report(str(error))
        code = ExitCode.REFUSED
        _discard_output()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def invalid_argument(arguments: Sequence[str]) -> str | None:
    """Return a description of the first argument that is not valid text, such as invalid UTF-8."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return f"{argument!a} is not valid UTF-8"
    return None


def print_line(text: str) -> None:
    """Print a line on standard output, and flush it. Raises OutputError, or ClosedPipeError."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    _guarded(lambda: print(text, flush=True))  # noqa: T201  all results are printed here


def print_error_line(text: str) -> None:
    """Print a line on standard error, without control characters. A standard error that is closed is no error."""
    with suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201  all messages are printed here


def is_encodable(text: str, stream: TextIO | None = None) -> bool:
    """Return whether standard output can write a text without escapes."""
    try:
        text.encode(getattr(stream or sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Escape control characters: text that an agent sent must not control the terminal, nor forge a line."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _guarded(write: Callable[[], object]) -> None:
    try:
        write()
    except BrokenPipeError:
        raise ClosedPipeError("standard output is closed") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"standard output: {getattr(error, 'strerror', None) or error}") from None


def _discard_output() -> None:
    """Let Python write the rest of its buffer to nowhere when it exits: a second error would change the exit code."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
