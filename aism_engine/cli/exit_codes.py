"""How commands end: every exit code, and which error means which. The codes are published, and so for ever."""

import sys
from enum import IntEnum
from typing import Final

from aism_engine.errors import AismError, ConfigError, ServerUnavailableError
from aism_engine.redact import redacted


class ExitCode(IntEnum):
    """The exit code of every command of ours; 64 and 69 are those of sysexits.h."""

    DONE = 0
    REFUSED = 1
    TIMED_OUT = 2
    USAGE = 64
    UNAVAILABLE = 69


EXIT_CODES: Final = "ExitCode codes: 0 done, 1 refused or failed, 2 timed out, 64 wrong usage, 69 Redis not reachable."


class RefusedError(AismError):
    """The engine said no, or there is no such thing."""


class TimedOutError(AismError):
    """Nobody answered in time; what was asked may still be done."""


_CODES: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (ConfigError, ExitCode.USAGE),
    (ServerUnavailableError, ExitCode.UNAVAILABLE),
    (TimedOutError, ExitCode.TIMED_OUT),
    (AismError, ExitCode.REFUSED),
    (OSError, ExitCode.REFUSED),
)

_HINT: Final = "Is it running? Name it with --redis URL or AISM_REDIS_URL."
_HINTS: Final = {
    "noauth": "Give user and password: --redis redis://USER:PASSWORD@HOST:PORT, or in AISM_REDIS_URL.",
    "noperm": "aism-engine doctor names the rights that are missing.",
    "loading": "It reads its data: try again in a moment.",
    "wrong_type": "aism-engine doctor names the key.",
}
"""What to do about an outage, where it is not that nobody is there."""


def report_error(error: Exception) -> ExitCode:
    """Tell people what went wrong, on standard error, and give the exit code for it. A bug of ours is raised again."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None:
        raise error
    if code is ExitCode.UNAVAILABLE:
        reason = str(error).rstrip(".")
        outage = getattr(error, "outage", "")
        print_error(f"Redis cannot serve us: {reason}. {_HINTS.get(outage, _HINT)}")
    else:
        print_error(getattr(error, "strerror", None) or str(error))
    return code


def print_error(message: str) -> None:
    """Write a message for people to standard error, each of its lines marked, and no password in it."""
    for line in redacted(message).splitlines():
        print(f"error: {line}", file=sys.stderr)  # noqa: T201  this is where messages are printed
