"""The statuses of a command, and the steps between them.

    scheduled | waiting -> queued -> delivered -> acked -> succeeded | failed | expired | cancelled | dead

A command that goes back to `waiting` is sent again under the same id. A command ends once; a response after its end is
late, duplicate or contradictory, is counted, and does not change the command.

Each step changes the command and returns the fields of its record that change. A step that the status does not allow
raises ValueError: the caller checks `may_become` first.
"""

from collections.abc import Mapping
from enum import StrEnum
from hashlib import sha1
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, get_args

from msgspec import Struct

from aism_engine.clock import iso
from aism_engine.domain.records import INSTANT, INTEGER, NUMBER, TEXT, RecordTable, choice

_MAX_ID_LENGTH: Final = 128
_MAX_RESTARTS: Final = 20
"""Maximum number of restarts that do not count as attempts: an arbitrary number.

Without a maximum, a command that kills its agent would be sent again and again.
"""


class Status(StrEnum):
    SCHEDULED = "scheduled"
    """Its start time has not come."""
    WAITING = "waiting"
    """The engine keeps it: for lack of credit, during a pause, or until the next attempt."""
    QUEUED = "queued"
    """It is in its agent's list."""
    DELIVERED = "delivered"
    """It has left the list: the engine measured that."""
    ACKED = "acked"
    """The agent declared that it has the command."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"
    """All its attempts are used, and it is a dead letter."""


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
"""Where an open command is: due later, ready for dispatch, in its agent's list, or taken by its agent."""


class StatusChange(NamedTuple):
    """A change of a command's status, for the metrics. `before` is empty at acceptance."""

    type: str
    before: str
    after: str
    seconds: float | None
    """Seconds in the status `before`; None if this engine does not know when that status began."""
    age_s: float


class Command(Struct, kw_only=True, gc=False):
    """An open command in memory. Its record in Redis holds more. Instants are unix seconds by Redis `TIME`."""

    command_id: str
    agent_id: Annotated[str, TEXT]
    type: Annotated[str, TEXT]
    target: Annotated[str | None, TEXT] = None
    """The requested state, if the type is `state_transition`."""
    status: Annotated[Status, choice(Status)] = Status.WAITING
    priority: Annotated[Priority, choice(RANKS)] = "normal"
    seq: Annotated[int, INTEGER] = 0
    """Position in the order of all commands: assigned at acceptance, and again at each push."""
    attempt: Annotated[int, INTEGER] = 0
    """Number of pushes."""
    failures: Annotated[int, INTEGER] = 0
    """Number of retryable errors that its agent reported."""
    restarts: Annotated[int, INTEGER] = 0
    """Number of attempts that ended because its agent's process ended."""
    accepted_at: Annotated[float, INSTANT]
    start_at: Annotated[float, INSTANT] = 0.0
    """The scheduled start, from which the time to live counts; 0: it may be sent at once."""
    expires_at: Annotated[float, INSTANT]
    step_at: Annotated[float, INSTANT] = 0.0
    """When the start, the ack timeout, the execution timeout or the next attempt is due; 0: none of them."""
    ack_timeout_s: Annotated[float, NUMBER] = 30.0
    timeout_s: Annotated[float, NUMBER] = 3600.0
    max_attempts: Annotated[int, INTEGER] = 5
    on_lost: Annotated[OnLost, choice(get_args(OnLost))] = "hold"
    group_id: Annotated[str | None, TEXT] = None
    status_since: float = 0.0
    """When it got its status; 0 if an earlier engine changed it. Not part of the record."""

    @property
    def open(self) -> bool:
        return self.status in OPEN

    def may_become(self, status: Status) -> bool:
        return status in _NEXT.get(self.status, ())

    @property
    def has_attempts_left(self) -> bool:
        """Whether it may be pushed again. Restarts of the agent do not count if `max_attempts` is above 1."""
        restarts = min(self.restarts, _MAX_RESTARTS) if self.max_attempts > 1 else 0
        return self.attempt - restarts < self.max_attempts

    @property
    def deadline(self) -> str:
        """Member of this command in the sorted set of deadlines."""
        return f"command:{self.command_id}"

    @property
    def due_at(self) -> float:
        """Score of this command in the sorted set of deadlines: the earlier of `step_at` and `expires_at`."""
        return min(self.step_at, self.expires_at) if self.step_at else self.expires_at

    @property
    def _first_due_at(self) -> float:
        return max(self.start_at, self.accepted_at)

    @property
    def ttl_s(self) -> float:
        return self.expires_at - self._first_due_at

    @property
    def undelivered_since(self) -> float:
        """When an undelivered command became due: at its acceptance, its scheduled start or its retry."""
        is_retry = self.attempt > (1 if self.status is Status.QUEUED else 0)
        return max(self._first_due_at, self.status_since if is_retry else 0.0)

    @property
    def bucket(self) -> Bucket:
        if self.status is Status.QUEUED:
            return "queued"
        if self.status is Status.WAITING and not self.step_at:
            return "waiting"
        return "delivered" if self.status in {Status.DELIVERED, Status.ACKED} else "scheduled"

    @property
    def was_sent(self) -> bool:
        """Whether it was ever pushed, so that its agent may have it."""
        return self.attempt > 0

    def status_change(self, before: str, now: float) -> StatusChange:
        """Return the change to the current status, and record that this status begins now."""
        seconds = now - self.status_since if self.status_since else None
        self.status_since = now
        return StatusChange(self.type, before, self.status.value, seconds, now - self.accepted_at)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _become(self, status: Status, step_at: float = 0.0) -> dict[str, str]:
        if not self.may_become(status):
            raise ValueError(f"a command cannot go from {self.status} to {status}")
        self.status, self.step_at = status, step_at
        return {"status": status.value, "step_at": iso(step_at) if step_at else ""}

    def wait(self) -> dict[str, str]:
        """Become ready for dispatch."""
        return self._become(Status.WAITING)

    def queue(self, now: float, seq: int) -> dict[str, str]:
        """Enter the list of its agent."""
        self.attempt, self.seq = self.attempt + 1, seq
        fields = self._become(Status.QUEUED)
        return {**fields, "attempt": str(self.attempt), "seq": str(seq), "queued_at": iso(now)}

    def deliver(self, now: float, *, acks: bool) -> dict[str, str]:
        """Leave the list. The ack timeout starts, or the execution timeout if the agent has no capability `ack`."""
        fields = self._become(Status.DELIVERED, now + (self.ack_timeout_s if acks else self.timeout_s))
        return {**fields, "delivered_at": iso(now)}

    def acknowledge(self, now: float) -> dict[str, str]:
        """Be acknowledged by its agent. The execution timeout starts."""
        return {**self._become(Status.ACKED, now + self.timeout_s), "acked_at": iso(now)}

    def extend(self, now: float) -> dict[str, str]:
        """Restart the execution timeout."""
        self.step_at = now + self.timeout_s
        return {"step_at": iso(self.step_at)}

    def retry(self, now: float, pause_s: float, *, failed: bool, restarted: bool) -> dict[str, str]:
        """Wait for the next attempt; if none is left, be due at once."""
        self.failures, self.restarts = self.failures + failed, self.restarts + restarted
        counts = {"failures": str(self.failures), "restarts": str(self.restarts)}
        return {**self._become(Status.WAITING, now + pause_s if self.has_attempts_left else now), **counts}

    def end(self, status: Status, now: float) -> dict[str, str]:
        return {**self._become(status), "ended_at": iso(now)}


COMMAND_TABLE: Final = RecordTable(
    Command,
    "command_id",
    required=("agent_id", "type", "status", "accepted_at", "expires_at"),
    renamed={"ack_timeout_s": "ack_timeout", "timeout_s": "timeout"},
)
"""The fields of a record that are part of a `Command`. A record has more, such as `body`, `payload` and `result`."""


def child_id(parent_id: str, name: str) -> str:
    """Return an id derived from that of a request or command: `{parent_id}.{name}`, or with a digest if too long.

    The command for one agent of a group has such an id, and so has the `cancel` of a command.
    """
    whole = f"{parent_id}.{name}"
    if len(whole) <= _MAX_ID_LENGTH:
        return whole
    tail = sha1(whole.encode(), usedforsecurity=False).hexdigest()
    return f"{whole[: _MAX_ID_LENGTH - len(tail) - 1]}.{tail}"
