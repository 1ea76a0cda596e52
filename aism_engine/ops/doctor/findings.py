"""What the doctor says: a finding for each thing that it has looked at. Its codes are published, and so for ever."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct

Facts = TypeVar("Facts")


class Severity(StrEnum):
    """How bad it is. `danger`: something can be lost, or the engine cannot work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    DANGER = "danger"


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. Each code has a section in docs/doctor.md."""

    code: str
    severity: Severity
    what: str
    """What is so."""
    why: str
    """Why it matters."""
    mend: str = ""
    """How to mend it; empty where there is nothing to mend."""


class Verdict(NamedTuple):
    """What a check comes to."""

    severity: Severity
    what: str
    mend: str = ""


def ok(what: str) -> Verdict:
    return Verdict(Severity.OK, what)


def note(what: str, mend: str = "") -> Verdict:
    return Verdict(Severity.NOTE, what, mend)


def warning(what: str, mend: str) -> Verdict:
    return Verdict(Severity.WARNING, what, mend)


def danger(what: str, mend: str) -> Verdict:
    return Verdict(Severity.DANGER, what, mend)


class DoctorCheck(NamedTuple, Generic[Facts]):
    """Looks at facts for one thing. It says nothing, None, where what it needs was not told."""

    code: str
    why: str
    judge: Callable[[Facts], Verdict | None]


def judged(checks: Iterable[DoctorCheck[Facts]], facts: Facts) -> list[Finding]:
    return [
        Finding(code=check.code, severity=verdict.severity, what=verdict.what, why=check.why, mend=verdict.mend)
        for check in checks
        if (verdict := check.judge(facts)) is not None
    ]


def counted(number: int, one: str, many: str = "") -> str:
    """Write `1 key`, `2 keys`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def megabytes(number: int) -> str:
    return f"{number / 1024 / 1024:.1f} MiB"


def named(count: int, examples: Iterable[str]) -> str:
    """Write the first of so many: `a, b, and 3 more`."""
    shown = list(examples)
    more = f", and {count - len(shown)} more" if count > len(shown) else ""
    return ", ".join(shown) + more
