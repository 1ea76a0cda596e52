"""The life of a command, as one state machine. Everything else asks it.

    queued -> acked -> succeeded | failed | expired | cancelled

Every end is reached once; what comes after it is late or a duplicate, is counted, and changes nothing.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from aism_engine.clock import from_iso, iso


class Status(StrEnum):
    QUEUED = "queued"
    ACKED = "acked"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


OPEN: Final = frozenset({Status.QUEUED, Status.ACKED})
_NEXT: Final[Mapping[Status, frozenset[Status]]] = {
    Status.QUEUED: frozenset(Status) - {Status.QUEUED},
    Status.ACKED: frozenset(Status) - OPEN,
}


COMMAND_FIELDS: Final = ("agent_id", "type", "target", "status", "accepted_at", "expires_at")
"""The fields of a record that the engine reads back; what else stands there is for people."""


class Command(Struct, kw_only=True):
    """What the engine has in mind of a command while it is open; the record in Redis holds the rest."""

    command_id: str
    agent_id: str
    type: str
    target: str | None = None
    """The state asked for, where the type is `state_transition`."""
    status: Status = Status.QUEUED
    accepted_at: float
    expires_at: float

    @property
    def open(self) -> bool:
        return self.status in OPEN

    def may_become(self, status: Status) -> bool:
        return status in _NEXT.get(self.status, ())

    @property
    def deadline(self) -> str:
        """Member of the deadlines under which this command's end is kept."""
        return f"ttl:{self.command_id}"

    def record(self) -> dict[str, str]:
        """Build the fields of a new record."""
        return {
            "agent_id": self.agent_id,
            "type": self.type,
            "target": self.target or "",
            "status": self.status,
            "accepted_at": iso(self.accepted_at),
            "expires_at": iso(self.expires_at),
        }

    @classmethod
    def from_record(cls, command_id: str, record: Mapping[str, str]) -> "Command":
        """Read a record back. Raises KeyError or ValueError where somebody has damaged it."""
        if not (record["agent_id"] and record["type"]):
            raise ValueError("a record without an agent or a type")
        return cls(
            command_id=command_id,
            agent_id=record["agent_id"],
            type=record["type"],
            target=record.get("target") or None,
            status=Status(record["status"]),
            accepted_at=from_iso(record["accepted_at"]),
            expires_at=from_iso(record["expires_at"]),
        )
