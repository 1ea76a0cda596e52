"""Exit codes of all commands, and the error reports that go with them. The codes are a published interface."""

from typing import Final

from aism_engine.errors import AismError, ConfigError, ServerUnavailableError
from aism_engine.redact import redacted
from aism_engine.terminal import EXIT_CODES, ExitCode, print_error_line


class FailedError(AismError):
    """The command has failed, for example because the engine refused a request, or because an id does not exist."""


class TimedOutError(AismError):
    """The wait ended before the result was known. The request may still take effect."""


_CODES: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (ConfigError, ExitCode.USAGE),
    (ServerUnavailableError, ExitCode.UNAVAILABLE),
    (TimedOutError, ExitCode.TIMED_OUT),
    (AismError, ExitCode.REFUSED),
    (OSError, ExitCode.REFUSED),
)


def report_error(error: Exception) -> ExitCode:
    """Print an AismError or an OSError, and return its exit code. Any other exception is a bug and is raised again."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None:
        raise error
    if isinstance(error, ServerUnavailableError):
        print_error(error.explanation)
    elif isinstance(error, OSError):
        print_error(": ".join(str(each) for each in (error.filename, error.strerror or error) if each))
    else:
        for problem in getattr(error, "problems", None) or [str(error)]:
            print_error(problem)
    return code


def print_error(message: str) -> None:
    """Print a message on standard error as one line, without passwords and control characters."""
    print_error_line(f"error: {redacted(message)}")


__all__ = ["EXIT_CODES", "ExitCode", "FailedError", "TimedOutError", "print_error", "report_error"]
