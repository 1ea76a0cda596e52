"""The findings of the doctor, and the checks that produce them. Finding codes are published names."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct

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
    """What a check found; its code and reason are those of the check."""

    severity: Severity
    summary: str
    fix: str = ""


def ok(summary: str) -> CheckResult:
    return CheckResult(Severity.OK, summary)


def note(summary: str, fix: str = "") -> CheckResult:
    return CheckResult(Severity.NOTE, summary, fix)


def warning(summary: str, fix: str) -> CheckResult:
    return CheckResult(Severity.WARNING, summary, fix)


def danger(summary: str, fix: str) -> CheckResult:
    return CheckResult(Severity.DANGER, summary, fix)


class DoctorCheck(NamedTuple, Generic[F]):
    """A check on collected facts. `evaluate` returns None if the facts that it needs are missing."""

    code: str
    why: str
    evaluate: Callable[[F], CheckResult | None]


def run_checks(checks: Iterable[DoctorCheck[F]], facts: F) -> list[Finding]:
    return [
        Finding(code=check.code, severity=result.severity, summary=result.summary, why=check.why, fix=result.fix)
        for check in checks
        if (result := check.evaluate(facts)) is not None
    ]


def plural(count: int, one: str, many: str = "") -> str:
    """Format `1 key` or `2 keys`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def mebibytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"


def list_examples(count: int, examples: Iterable[str]) -> str:
    """Format the first of `count` names: `a, b, and 3 more`."""
    shown = list(examples)
    more = f", and {count - len(shown)} more" if count > len(shown) else ""
    return ", ".join(shown) + more
