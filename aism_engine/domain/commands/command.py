"""The life of a command, as one state machine. Everything else asks it.

    scheduled | waiting -> queued -> delivered -> acked -> succeeded | failed | expired | cancelled | dead

A command that goes back from `delivered` or `acked` to `waiting` is to be sent again, under the same id. Every end is
reached once; what comes after it is late, a duplicate or a contradiction, is counted, and changes nothing.

Each step changes the command and gives the fields of its record that changed. A step that its status does not allow
raises ValueError: whoever takes a step has asked `may_become` before.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal, NamedTuple, TypeAlias, get_args
from zlib import crc32

from msgspec import Struct

from aism_engine.backoff import Backoff
from aism_engine.clock import iso
from aism_engine.domain.records import INSTANT, INTEGER, NUMBER, TEXT, RecordTable, choice


class Status(StrEnum):
    SCHEDULED = "scheduled"
    """Its time has not come."""
    WAITING = "waiting"
    """It waits at the engine: for credit, for the end of a pause, or to be sent again."""
    QUEUED = "queued"
    """It lies in its agent's list."""
    DELIVERED = "delivered"
    """It has left the list: measured."""
    ACKED = "acked"
    """The agent says that it has it: declared."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"
    """Sent as often as it may be, and never done."""


OPEN: Final = frozenset({Status.SCHEDULED, Status.WAITING, Status.QUEUED, Status.DELIVERED, Status.ACKED})
ENDED: Final = frozenset(Status) - OPEN
_NEXT: Final[Mapping[Status, frozenset[Status]]] = {
    Status.SCHEDULED: ENDED | {Status.WAITING},
    Status.WAITING: ENDED | {Status.WAITING, Status.QUEUED, Status.ACKED},
    Status.QUEUED: ENDED | {Status.DELIVERED, Status.ACKED, Status.WAITING},
    Status.DELIVERED: ENDED | {Status.ACKED, Status.WAITING},
    Status.ACKED: ENDED | {Status.WAITING},
}

Priority: TypeAlias = Literal["high", "normal", "low"]
RANKS: Final[Mapping[str, int]] = {"high": 0, "normal": 1, "low": 2}
OnLost: TypeAlias = Literal["hold", "fail"]
Bucket: TypeAlias = Literal["scheduled", "waiting", "queued", "delivered"]
"""Where an open command is: not yet due, waiting its turn, in the list of its agent, or with its agent."""


class StatusChange(NamedTuple):
    """What a command went through, for the metrics: from which status to which, and how many seconds it took; None
    where nobody remembers when it began. From `` it was accepted.
    """

    type: str
    before: str
    after: str
    seconds: float | None
    age_s: float


class Command(Struct, kw_only=True):
    """What the engine has in mind of a command while it is open; the record in Redis holds the rest. Instants are unix
    seconds by Redis `TIME`.
    """

    command_id: str
    agent_id: str
    type: str
    target: str | None = None
    """The state asked for, where the type is `state_transition`."""
    status: Status = Status.WAITING
    priority: Priority = "normal"
    seq: int = 0
    """Its place in the order of all commands: given at acceptance, and anew at each push."""
    attempt: int = 0
    """How often it was pushed."""
    failures: int = 0
    """How often its agent reported an error that may pass."""
    accepted_at: float
    expires_at: float
    step_at: float = 0.0
    """When the clock of the present step runs out: start, acknowledgement, execution, another attempt; 0: none runs."""
    ack_timeout_s: float = 30.0
    timeout_s: float = 3600.0
    max_attempts: int = 5
    on_lost: OnLost = "hold"
    group_id: str | None = None
    status_since: float = 0.0
    """When it came to its status, as far as this engine saw that; 0 where it did not. It is no part of the record."""

    @property
    def open(self) -> bool:
        return self.status in OPEN

    def may_become(self, status: Status) -> bool:
        return status in _NEXT.get(self.status, ())

    @property
    def deadline(self) -> str:
        """Member of the deadlines under which the next of this command's clocks is kept."""
        return f"command:{self.command_id}"

    @property
    def due_at(self) -> float:
        """When the first of its clocks runs out."""
        return min(self.step_at, self.expires_at) if self.step_at else self.expires_at

    @property
    def bucket(self) -> Bucket:
        if self.status is Status.QUEUED:
            return "queued"
        if self.status is Status.WAITING and not self.step_at:
            return "waiting"
        return "delivered" if self.status in {Status.DELIVERED, Status.ACKED} else "scheduled"

    @property
    def was_sent(self) -> bool:
        """Whether its agent can have it, or have had it."""
        return self.attempt > 0

    def status_change(self, before: str, now: float) -> StatusChange:
        """Note that it has come to the status it has now."""
        seconds = now - self.status_since if self.status_since else None
        self.status_since = now
        return StatusChange(self.type, before, self.status.value, seconds, now - self.accepted_at)

    # --- its steps --------------------------------------------------------------------------------------------------

    def _become(self, status: Status, step_at: float = 0.0) -> dict[str, str]:
        if not self.may_become(status):
            raise ValueError(f"a command that is {self.status} does not become {status}")
        self.status, self.step_at = status, step_at
        return {"status": status.value, "step_at": iso(step_at) if step_at else ""}

    def wait(self) -> dict[str, str]:
        """Take its place among those that wait for credit: its time has come."""
        return self._become(Status.WAITING)

    def queue(self, now: float, seq: int) -> dict[str, str]:
        """Go into the list of its agent."""
        self.attempt, self.seq = self.attempt + 1, seq
        fields = self._become(Status.QUEUED)
        return {**fields, "attempt": str(self.attempt), "seq": str(seq), "queued_at": iso(now)}

    def deliver(self, now: float, *, acks: bool) -> dict[str, str]:
        """Leave the list. The clock of the acknowledgement starts for an agent that acknowledges, else that of the
        execution.
        """
        fields = self._become(Status.DELIVERED, now + (self.ack_timeout_s if acks else self.timeout_s))
        return {**fields, "delivered_at": iso(now)}

    def acknowledge(self, now: float) -> dict[str, str]:
        """Be confirmed by its agent: the clock of the execution starts."""
        return {**self._become(Status.ACKED, now + self.timeout_s), "acked_at": iso(now)}

    def extend(self, now: float) -> dict[str, str]:
        """Have more time to be executed: there is progress."""
        self.step_at = now + self.timeout_s
        return {"step_at": iso(self.step_at)}

    def retry(self, now: float, backoff: Backoff, *, failed: bool) -> dict[str, str]:
        """Wait to be sent again. What has no attempt left is due at once, to be given up on."""
        self.failures += failed
        pause_s = self.pause_s(backoff) if self.attempt < self.max_attempts else 0.0
        return {**self._become(Status.WAITING, now + pause_s), "failures": str(self.failures)}

    def pause_s(self, backoff: Backoff) -> float:
        """Return the pause before the next attempt, drawn from the id so that the decision is repeatable."""
        return backoff.pause_s(self.attempt, crc32(f"{self.command_id} {self.attempt}".encode()) / 2**32)

    def end(self, status: Status, now: float) -> dict[str, str]:
        return {**self._become(status), "ended_at": iso(now)}

    # --- its record -------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, str]:
        """Return the fields of a new record. An absent value is an empty string."""
        return COMMAND_TABLE.encode(self)

    @classmethod
    def from_record(cls, command_id: str, record: Mapping[str, str]) -> "Command":
        """Read a record back. Raises KeyError or ValueError if it is damaged."""
        return COMMAND_TABLE.decode(command_id, record)


COMMAND_TABLE: Final = RecordTable(
    Command,
    "command_id",
    {
        "agent_id": TEXT,
        "type": TEXT,
        "target": TEXT,
        "status": choice(Status),
        "priority": choice(RANKS),
        "seq": INTEGER,
        "attempt": INTEGER,
        "failures": INTEGER,
        "accepted_at": INSTANT,
        "expires_at": INSTANT,
        "step_at": INSTANT,
        "ack_timeout": NUMBER,
        "timeout": NUMBER,
        "max_attempts": INTEGER,
        "on_lost": choice(get_args(OnLost)),
        "group_id": TEXT,
    },
    required=("agent_id", "type", "status", "accepted_at", "expires_at"),
    renamed={"ack_timeout": "ack_timeout_s", "timeout": "timeout_s"},
)
"""The fields of a record that the engine reads back. A record has more fields, for people."""
