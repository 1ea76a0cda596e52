"""The findings of the doctor, and the checks that produce them. Finding codes are published names."""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from msgspec import Struct

_MAX_EXAMPLES: Final = 5
_MAX_NAME: Final = 120

F = TypeVar("F")


class Severity(StrEnum):
    """`danger`: data can be lost, or the engine cannot work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    DANGER = "danger"


class Finding(Struct, frozen=True, kw_only=True):
    """The result of one check. Each code has a section in docs/doctor.md."""

    code: str
    severity: Severity
    summary: str
    why: str
    """Why it matters."""
    fix: str = ""
    """Empty if there is nothing to fix."""


class CheckResult(NamedTuple):
    """What a check found. `Checks.run` adds the code and the reason of the check, and makes a `Finding` of them."""

    severity: Severity
    summary: str
    fix: str = ""


ok = partial(CheckResult, Severity.OK)
note = partial(CheckResult, Severity.NOTE)
warning = partial(CheckResult, Severity.WARNING)
danger = partial(CheckResult, Severity.DANGER)
Check: TypeAlias = Callable[[F], CheckResult | None]
"""A check of collected facts. Returns None if it does not apply."""


class NotReportedError(Exception):
    """A check needs a value that the server did not report."""


class Checks(Generic[F]):
    """The checks of one kind of facts, in the order of docs/doctor.md."""

    def __init__(self) -> None:
        self._checks: dict[str, tuple[str, Check[F]]] = {}

    def add(self, why: str) -> Callable[[Check[F]], Check[F]]:
        """Add the decorated function. Its name is the code of its findings, and `why` says why they matter."""

        def register(check: Check[F]) -> Check[F]:
            self._checks[check.__name__] = why, check
            return check

        return register

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(self._checks)

    def run(self, facts: F) -> list[Finding]:
        """Run all checks. A check that does not apply, or raises NotReportedError, gives no finding."""
        found = []
        for code, (why, check) in self._checks.items():
            try:
                result = check(facts)
            except NotReportedError:
                continue
            if result is not None:
                found.append(Finding(code=code, why=why, **result._asdict()))
        return found


class Examples(Struct):
    """A count of names, and the first of them."""

    count: int = 0
    names: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _MAX_EXAMPLES:
            self.names.append(name[:_MAX_NAME])

    def __str__(self) -> str:
        """Format the names: `a, b, and 3 more`."""
        more = f", and {self.count - len(self.names)} more" if self.count > len(self.names) else ""
        return ", ".join(self.names) + more


def plural(count: int, noun: str) -> str:
    """Format `1 key` or `2 keys`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
