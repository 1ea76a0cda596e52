"""Exit codes of all commands, and the error reports that go with them. The codes are a published interface."""

import sys
from enum import IntEnum
from typing import Final

from aism_engine.errors import AismError, ConfigError, ServerUnavailableError
from aism_engine.redact import redacted


class ExitCode(IntEnum):
    """Exit code of a command; 64 and 69 are those of sysexits.h."""

    DONE = 0
    REFUSED = 1
    TIMED_OUT = 2
    USAGE = 64
    UNAVAILABLE = 69


EXIT_CODES: Final = "Exit codes: 0 done, 1 refused or failed, 2 timed out, 64 wrong usage, 69 Redis not reachable."


class RefusedError(AismError):
    """The engine refused the request, or the thing that was named does not exist."""


class TimedOutError(AismError):
    """The wait ended before the result was known. The request may still take effect."""


_CODES: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (ConfigError, ExitCode.USAGE),
    (ServerUnavailableError, ExitCode.UNAVAILABLE),
    (TimedOutError, ExitCode.TIMED_OUT),
    (AismError, ExitCode.REFUSED),
    (OSError, ExitCode.REFUSED),
)

_HINTS: Final = {
    "noauth": "Give user and password: --redis redis://USER:PASSWORD@HOST:PORT, or in AISM_REDIS_URL.",
    "noperm": "aism-engine doctor lists the missing permissions.",
    "loading": "The server is loading its data: try again in a moment.",
    "wrong_type": "aism-engine doctor names the key.",
}
"""What to do about an outage, by its name."""
_DEFAULT_HINT: Final = "Is the server running? Name it with --redis URL or AISM_REDIS_URL."


def report_error(error: Exception) -> ExitCode:
    """Print an error of ours and return its exit code. Any other exception is a bug and is raised again."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None:
        raise error
    if isinstance(error, ServerUnavailableError):
        print_error(f"Redis is not available: {str(error).rstrip('.')}. {_HINTS.get(error.outage, _DEFAULT_HINT)}")
    else:
        print_error(getattr(error, "strerror", None) or str(error))
    return code


def print_error(message: str) -> None:
    """Print a message on standard error, each line prefixed with `error:`, without passwords."""
    for line in redacted(message).splitlines():
        print(f"error: {line}", file=sys.stderr)  # noqa: T201  all error messages are printed here
