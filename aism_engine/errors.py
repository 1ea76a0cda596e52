"""The errors that this package raises."""

from collections.abc import Mapping, Sequence
from typing import Any, Final


class AismError(Exception):
    """Base class of all errors that this package raises."""


class ConfigError(AismError):
    """Settings or machines that cannot be used. `problems` lists each problem with its file and key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


_CLUSTER_HINT: Final = "Redis Cluster is not supported: name a server that is not a cluster node."
_HINTS: Final = {
    "cluster": _CLUSTER_HINT,
    "clusterdown": _CLUSTER_HINT,
    "loading": "The server is loading its data: try again in a moment.",
    "no_database": "The server has no database of this number: change the number in the URL.",
    "noauth": "Write user and password into the URL, before the host, as in USER:PASSWORD@HOST.",
    "noperm": "aism-engine doctor lists the missing permissions.",
    "not_redis": "Another program answers at this address: name a Redis server with --redis URL or AISM_REDIS_URL.",
    "tls": "Does this port use TLS? Name the file of its CA certificate in the URL: ?ssl_ca_certs=FILE.",
    "wrong_type": "aism-engine doctor names the key.",
}
_DEFAULT_HINT: Final = "Is the server running? Name it with --redis URL or AISM_REDIS_URL."


class ServerUnavailableError(AismError):
    """Redis cannot serve now. `outage` names the reason: refused, timeout, loading, readonly, noauth, …

    `hint` says what to do about it, and `explanation` is a message for people.
    """

    def __init__(self, outage: str, detail: str) -> None:
        super().__init__(f"{outage}: {detail}")
        self.outage = outage
        self.hint = _HINTS.get(outage, _DEFAULT_HINT)
        self.explanation = f"Redis is not available: {str(self).rstrip('.?')}. {self.hint}"


class RefusalError(AismError):
    """The engine has refused a message or a request. The attributes are the fields of the error in docs/protocol.md.

    `explanation` is a message for people.
    """

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = str(error.get("code", ""))
        self.message = str(error.get("message", "the engine gave no reason"))
        self.details: Mapping[str, Any] = error.get("details") or {}
        self.suggestions = tuple(error.get("suggestions") or ())
        super().__init__(f"{self.code}: {'; try: '.join((self.message, *self.suggestions[:1]))}")
        advice = f" (try: {'; '.join(self.suggestions)})" if self.suggestions else ""
        self.explanation = f"refused: {self.message}{advice}"


class NotLeadingError(AismError):
    """This engine holds no lease, or its fleet in memory is out of date: what was read before must be discarded."""


class GaveUpError(AismError):
    """A component failed more often than its restart budget allows."""
