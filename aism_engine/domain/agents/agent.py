"""An agent: its record, its liveness, and the keys that it writes itself."""

from bisect import bisect_left, insort
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct, field

from aism_engine.domain.commands.command import RANKS, Command
from aism_engine.domain.records import COUNT, FLAG, INSTANT, SCORE, TEXT, RecordTable, choice, json

Via: TypeAlias = Literal["queue", "channel", "key"]
"""How a state was declared: pushed to the response queue, published on a channel, or written to `:state`."""
Confidence: TypeAlias = Literal["certain", "likely", "possible"]


class Liveness(StrEnum):
    UNKNOWN = "unknown"
    """No heartbeat yet: the agent is not watched and cannot be lost."""
    FRESH = "fresh"
    SILENT = "silent"
    """Displayed, but not stored: the record of a silent agent says `fresh`."""
    LOST = "lost"
    LEFT = "left"
    """The agent sent `goodbye`."""


ABSENT: Final = frozenset({Liveness.LOST, Liveness.LEFT})


class Hold(StrEnum):
    """What an operator has stopped for one agent, or for the fleet."""

    NONE = ""
    PAUSE = "pause"
    """Commands are accepted, but not dispatched."""
    DRAIN = "drain"
    """New commands are refused; accepted ones are still dispatched."""


class Held(Struct, kw_only=True):
    """The hold of an agent or of the fleet: which, since when, by whom, and why. Its fields are part of a record."""

    hold: Annotated[Hold, choice(Hold)] = Hold.NONE
    held_at: Annotated[float, INSTANT] = 0.0
    held_by: Annotated[str, TEXT] = ""
    """The operator, as the request names it; empty if it names none."""
    hold_reason: Annotated[str, TEXT] = ""


class Diverged(Struct, frozen=True, kw_only=True):
    """Verdict of a rule: what the agent declares contradicts what was measured."""

    confidence: Confidence
    reason: str
    declared: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


class Divergence(Diverged, frozen=True, kw_only=True):
    """An open divergence, as the agent's record holds it. `since` is ISO 8601, by Redis `TIME`."""

    since: str


Divergences: TypeAlias = dict[str, Divergence]


class AgentRecord(Held, kw_only=True):
    """Record of one agent, the engine's authority on it. Instants are unix seconds by Redis `TIME`.

    Containers are replaced, never changed in place, so that a draft can share them with the fleet.
    """

    agent_id: str
    type: Annotated[str, TEXT] = "unknown"
    registered: Annotated[bool, FLAG] = False
    labels: Annotated[dict[str, str], json(dict[str, str])] = field(default_factory=dict)
    capabilities: Annotated[tuple[str, ...], json(tuple[str, ...])] = ()
    codec: Annotated[str, TEXT] = "json"
    instance: Annotated[str, TEXT] = ""
    """The process that registered last; empty if it gave no instance."""
    state: Annotated[str, TEXT]
    since: Annotated[float, INSTANT]
    declared: Annotated[str | None, TEXT] = None
    declared_at: Annotated[float, INSTANT] = 0.0
    declared_via: Annotated[Via | None, choice(get_args(Via))] = None
    liveness: Annotated[Liveness, choice(set(Liveness) - {Liveness.SILENT})] = Liveness.UNKNOWN
    lost_from: Annotated[str | None, TEXT] = None
    """State at the moment of the loss."""
    lost_score: Annotated[float | None, SCORE] = None
    """Score of the last heartbeat before the agent was lost or left: a different score brings it back."""
    lost_at: Annotated[float, INSTANT] = 0.0
    first_seen_at: Annotated[float, INSTANT]
    cooldowns: Annotated[dict[str, float], json(dict[str, float], omit_empty=True)] = field(default_factory=dict)
    """Ends of the cooldowns, by state."""
    reason_stored: bool = True
    """Whether the record in Redis may hold a reason or context that the next state change must clear. Not stored."""
    waits_for: Annotated[str, TEXT] = ""
    """Who must act in the current state: `human`, `agent`, or empty."""
    stay_until: float = 0.0
    """Deadline of the stay in its state, as last written to Redis; 0: none. Not part of the record."""
    divergences: Annotated[Divergences, json(Divergences, omit_empty=True)] = field(default_factory=dict)
    """Open divergences, by rule."""
    mail_waiting: Annotated[int, COUNT] = 0
    """Number of messages that wait until the agent accepts them."""
    # Index of the open commands: derived from their records, not part of the agent's record.
    scheduled: frozenset[str] = frozenset()
    waiting: tuple[tuple[int, int, str], ...] = ()
    """(priority rank, seq, id), in the order of dispatch."""
    queued: tuple[str, ...] = ()
    """In the order of the pushes."""
    delivered: frozenset[str] = frozenset()

    @property
    def registered_type(self) -> str | None:
        """The type that selects the machine; None if the agent never registered."""
        return self.type if self.registered else None

    @property
    def acks(self) -> bool:
        """Whether the agent acknowledges commands, so that they may be redelivered."""
        return "ack" in self.capabilities

    @property
    def awaits_heartbeat(self) -> bool:
        """Whether its heartbeat must be looked up.

        An agent that is not watched yet becomes fresh at its first heartbeat. For an agent that has left, the score of
        its last heartbeat must be recorded once, so that a later one is recognised.
        """
        return self.liveness is Liveness.UNKNOWN or (self.liveness is Liveness.LEFT and self.lost_score is None)

    @property
    def open_commands(self) -> list[str]:
        return [*self.queued, *self.delivered, *self.scheduled, *(command_id for _, _, command_id in self.waiting)]

    @property
    def load(self) -> int:
        """Number of open commands."""
        return len(self.scheduled) + len(self.waiting) + len(self.queued) + len(self.delivered)

    @property
    def in_flight(self) -> int:
        """Number of commands in flight. Without the capability `ack`, a command that was taken is not counted."""
        return len(self.queued) + (len(self.delivered) if self.acks else 0)

    @property
    def oldest_undelivered(self) -> list[str]:
        """The oldest command in the agent's list, and the oldest waiting one of each priority."""
        waiting = self.waiting
        firsts = {bisect_left(waiting, (rank,)) for rank in RANKS.values()} if waiting else ()
        return [*self.queued[:1], *(waiting[first][2] for first in firsts if first < len(waiting))]

    def unindex(self, command_id: str) -> None:
        if command_id in self.queued:
            self.queued = tuple(other for other in self.queued if other != command_id)
        elif command_id in self.delivered:
            self.delivered -= {command_id}
        elif command_id in self.scheduled:
            self.scheduled -= {command_id}
        else:
            self.waiting = tuple(entry for entry in self.waiting if entry[2] != command_id)

    def index(self, command: Command) -> None:
        """Put an open command into the bucket of its status."""
        command_id = command.command_id
        self.unindex(command_id)
        match command.bucket:
            case "queued":
                self.queued += (command_id,)
            case "delivered":
                self.delivered |= {command_id}
            case "scheduled":
                self.scheduled |= {command_id}
            case "waiting":
                waiting = list(self.waiting)
                insort(waiting, (RANKS[command.priority], command.seq, command_id))
                self.waiting = tuple(waiting)

    def shown_liveness(self, *, is_silent: bool) -> Liveness:
        """Return the liveness to display: only a fresh agent can be silent."""
        return Liveness.SILENT if is_silent and self.liveness is Liveness.FRESH else self.liveness

    def fields(self, *names: str) -> dict[str, str]:
        """Return the fields of the record, or only those in `names`. An absent value is an empty string."""
        return AGENT_TABLE.encode(self, names)

    def presence_fields(self) -> dict[str, str]:
        """Return the fields of the record that say whether the agent is present."""
        return self.fields("liveness", "lost_from", "lost_score", "lost_at")

    def reset_liveness(self, liveness: Liveness | None = None) -> None:
        """Set the liveness, and clear what the record holds about an earlier absence.

        By default the agent becomes fresh if its last heartbeat is known, else unknown.
        """
        self.liveness = liveness or (Liveness.UNKNOWN if self.lost_score is None else Liveness.FRESH)
        self.lost_from, self.lost_score, self.lost_at = None, None, 0.0


HELD_TABLE: Final = RecordTable(Held, "", renamed={"hold": "fleet"})
"""The hold of the whole fleet."""
AGENT_TABLE: Final = RecordTable(AgentRecord, "agent_id", required=("type", "state", "since", "first_seen_at"))


class AgentSnapshot(Struct, frozen=True):
    """What an agent has written itself: its metadata, state key and heartbeat; and whether it is recorded."""

    type: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    state: str | None = None
    score: float | None = None
    is_recorded: bool = True
    """Whether the engine's record of it is complete, and the agent is in the index."""

    @property
    def has_metadata(self) -> bool:
        return bool(self.type or self.labels)

    @property
    def exists(self) -> bool:
        return any((self.has_metadata, self.state, self.score is not None))
