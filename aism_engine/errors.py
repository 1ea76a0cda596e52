"""What can go wrong, by name. Every error says what to do about it, and its class says who has to."""

from collections.abc import Sequence


class AismError(Exception):
    """Anything that this package raises on purpose."""


class ConfigError(AismError):
    """A setting or a machine that cannot be used. `problems` has every one of them, each with file and key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ServerUnavailableError(AismError):
    """Redis cannot serve us now. `outage` names the state: refused, timeout, loading, readonly, noauth, …"""

    def __init__(self, outage: str, detail: str) -> None:
        super().__init__(f"{outage}: {detail}")
        self.outage = outage


class NotLeadingError(AismError):
    """Another engine holds the lease, or the server has gone back in time: what was in hand is void."""


class GaveUpError(AismError):
    """A service failed more often than its restart budget allows."""
