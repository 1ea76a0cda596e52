"""What both command-line tools do with their arguments, their output and the end of the process.

Characters that the encoding of a terminal lacks are escaped, so no output ends in a traceback. A reader that closes the
pipe early, such as `head`, is no error. A standard output that was closed from the start is an error only for commands
that call `check_output`.
"""

import atexit
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO, TypeVar

T = TypeVar("T")

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_USAGE: Final = {
    r"Invalid value(?: for '(.+?)')?: (?:Value error, )?(.*)": r"\1: \2",
    r"argument (?:-h/)?(\S+): ignored explicit argument .*": r"\1 takes no value",
    r"argument (\S+): expected (?:one|at least one) argument": r"\1 needs a value",
    r"argument COMMAND: invalid choice: '?(.*?)'? \(choose from (.*)\)": r"there is no command \1. Choose from: \2",
    r"argument (\S+): (.*)": r"\1: \2",
    r"the following arguments are required: (.*)": r"missing: \1",
    r"unrecognized arguments: (-\S+).*": r"there is no option \1",
    r"unrecognized arguments: (.*)": r"unexpected: \1",
    r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)": r"unexpected: \1",
    r"No such option: (\S+) \(Possible options: (.*)\)": r"there is no option \1. Choose from: \2",
    r"No such option: (\S+)": r"there is no option \1",
    r"No such command '(.*?)'": r"there is no command \1",
    r"Missing (?:argument|option) '(.*?)'(.*)": r"missing: \1\2",
    r"Option '(.*?)' requires an argument": r"\1 needs a value",
    r"Option '(.*?)' does not take a value": r"\1 takes no value",
    r"((?:\S+: )?)('.*') is not one of (.*)": r"\1expected one of \3, got \2",
}
"""Messages of argparse and of typer, and the same in our words."""
_MAX_MESSAGE: Final = 500
_INTERRUPTED: Final = 130
GC_THRESHOLD: Final = 200_000
"""More objects than a short command creates, so that no garbage is collected: that would take a tenth of its time."""


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


class _Output:
    """Standard output that raises OutputError, so that no library handles a closed pipe in its own way."""

    buffer = None
    """None, so that no library writes to the buffer and bypasses `write`: some do if the encoding is ASCII."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return _guarded(lambda: self._stream.write(text))

    def flush(self) -> None:
        _guarded(self._stream.flush)


def run(
    command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None, report: Callable[[str], None]
) -> NoReturn:
    """Run a tool with its arguments, and exit with the code that it returns. `report` prints an error."""
    if arguments is None:  # this process runs only the tool, so nothing needs to be collected at its end
        atexit.register(gc.freeze)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    gc.set_threshold(GC_THRESHOLD)
    # A stream that was closed before Python started is None.
    output, sys.stderr = sys.stdout or _discard(), sys.stderr or _discard()
    for stream in (output, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code: int | str | None
    try:
        with redirect_stdout(_Output(output)):
            try:
                code = command(arguments)
            except SystemExit as ended:
                code = ended.code
            sys.stdout.flush()
    except ClosedPipeError:
        code = ExitCode.DONE
        _discard_rest(output)
    except OutputError as error:
        report(str(error))
        code = ExitCode.REFUSED
        _discard_rest(output)
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


def words_to_complete() -> list[str]:
    """Return the words of the command line that is being completed. typer's completion scripts pass them in variables.

    Bash splits a word at `:` and `=`. This function joins the parts again. It also changes the variables, because typer
    reads them later.
    """
    if "COMP_WORDS" not in os.environ:
        return os.environ.get("_TYPER_COMPLETE_ARGS", "").split()[1:]
    words = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
    words = re.sub(r"\n?([:=]+)\n?", r"\1", "\n".join(words)).split("\n")
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    return words[1:]


def describe_usage_error(message: str) -> str:
    """Rewrite a message of argparse or typer: both tools say the same in the same words."""
    message = " ".join(message.split()).rstrip(".")
    for pattern, words in _USAGE.items():
        if found := re.fullmatch(pattern, message):
            message = found.expand(words).removeprefix(": ")
    return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}…"


def print_line(text: str) -> None:
    """Print a line on standard output, and flush it. Raises OutputError, or ClosedPipeError."""
    print(text, flush=True)  # noqa: T201  all results are printed here


def print_error_line(text: str) -> None:
    """Print a line on standard error, without control characters. If standard error is closed, print nothing."""
    with suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201  all messages are printed here


def check_output() -> None:
    """Raise OutputError if standard output was closed from the start: whatever is printed would be discarded."""
    if sys.__stdout__ is None:
        raise OutputError("standard output is closed")


def print_json(text: str) -> None:
    """Print JSON as `print_line` does. Characters that standard output cannot encode are written as JSON escapes."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), separators=(",", ":"))
    print_line(text)


def printable(text: str) -> str:
    """Escape control characters: text that an agent sent must not control the terminal, nor forge a line."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _guarded(write: Callable[[], T]) -> T:
    try:
        return write()
    except BrokenPipeError:
        raise ClosedPipeError("standard output is closed") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"standard output: {getattr(error, 'strerror', None) or error}") from None


def _discard() -> TextIO:
    return Path(os.devnull).open("w")


def _discard_rest(output: TextIO) -> None:
    """Let Python write the rest of its buffer to nowhere when it exits: a second error would change the exit code."""
    with suppress(OSError, ValueError), _discard() as nowhere:
        os.dup2(nowhere.fileno(), output.fileno())
