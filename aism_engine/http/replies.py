"""JSON replies of /livez and /readyz, shared by the engine that sends them and the command that reads them.

Imports only msgspec: `aism-engine health` runs every few seconds in a container and must start fast.
"""

from collections.abc import Mapping

from msgspec import Struct


class HealthCheck(Struct, frozen=True):
    """One readiness condition; `detail` describes what was found."""

    ok: bool
    detail: str


class LivezReply(Struct, frozen=True):
    """Reply of /livez."""

    status: str


class ReadyzReply(LivezReply, frozen=True):
    """JSON reply of /readyz."""

    role: str
    checks: Mapping[str, HealthCheck]
