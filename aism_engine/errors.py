"""The errors that this package raises."""

from collections.abc import Mapping, Sequence
from typing import Any


class AismError(Exception):
    """Base class of all errors that this package raises."""


class ConfigError(AismError):
    """Settings or machines that cannot be used. `problems` lists each problem with its file and key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ServerUnavailableError(AismError):
    """Redis cannot serve now. `outage` names the reason: refused, timeout, loading, readonly, noauth, …"""

    def __init__(self, outage: str, detail: str) -> None:
        super().__init__(f"{outage}: {detail}")
        self.outage = outage


class RefusalError(AismError):
    """The engine has refused a message or a request. The attributes are the fields of the error in docs/protocol.md."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = str(error.get("code", ""))
        self.message = str(error.get("message", "the engine gave no reason"))
        self.details: Mapping[str, Any] = error.get("details") or {}
        self.suggestions = tuple(error.get("suggestions") or ())
        super().__init__(f"{self.code}: {'; try: '.join((self.message, *self.suggestions[:1]))}")


class NotLeadingError(AismError):
    """This engine holds no lease, or its fleet in memory is out of date: what was read before must be discarded."""


class GaveUpError(AismError):
    """A component failed more often than its restart budget allows."""
