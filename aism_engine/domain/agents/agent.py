"""An agent: what the engine holds to be true of it, and what Redis shows of one that is not known yet."""

from bisect import bisect_left, insort
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, get_args

from msgspec import Struct, field

from aism_engine.domain.agents.activity import Divergence, Via
from aism_engine.domain.commands.command import RANKS, Command
from aism_engine.domain.records import COUNT, FLAG, INSTANT, SCORE, TEXT, RecordTable, choice, json


class Liveness(StrEnum):
    UNKNOWN = "unknown"
    """Never beat: it is not watched, and so it cannot be lost."""
    FRESH = "fresh"
    LOST = "lost"
    LEFT = "left"
    """Said goodbye: its silence is in order."""


ABSENT: Final = frozenset({Liveness.LOST, Liveness.LEFT})


class ShownLiveness(StrEnum):
    """Liveness as people and programs are shown it: who is fresh by its record may be silent at the moment."""

    UNKNOWN = "unknown"
    FRESH = "fresh"
    SILENT = "silent"
    LOST = "lost"
    LEFT = "left"


class Hold(StrEnum):
    """What an operator has stopped."""

    NONE = ""
    PAUSE = "pause"
    """Commands are accepted, and wait."""
    DRAIN = "drain"
    """Commands are refused; those that were accepted are still handed out."""


class AgentRecord(Struct, kw_only=True):
    """What the engine holds to be true of one agent. Instants are unix seconds by Redis `TIME`."""

    agent_id: str
    type: str = "unknown"
    registered: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    codec: str = "json"
    state: str
    since: float
    declared: str | None = None
    declared_at: float = 0.0
    declared_via: Via | None = None
    liveness: Liveness = Liveness.UNKNOWN
    lost_from: str | None = None
    """The state it was in when it was lost."""
    lost_score: float | None = None
    """The heartbeat it was lost with: a different one brings it back."""
    lost_at: float = 0.0
    first_seen_at: float
    hold: Hold = Hold.NONE
    cooling: dict[str, float] = field(default_factory=dict)
    """States that it may not enter again yet, and until when."""
    explained: bool = True
    """Whether its record may have a reason or a context of its last change. It is no part of the record itself."""
    waits_for: str = ""
    """Who has to act while it is in its state: `human`, `agent`, or nobody."""
    stay_until: float = 0.0
    """When its longest stay is over, as the deadlines have it; 0: there is none. It is no part of the record."""
    divergences: dict[str, Divergence] = field(default_factory=dict)
    """What is open of them, by rule; never changed in place."""
    mail_waiting: int = 0
    """How many messages wait until it accepts them."""
    # Where its open commands are: derived from them, not part of the record. None of these is ever changed in place.
    scheduled: frozenset[str] = frozenset()
    waiting: tuple[tuple[int, int, str], ...] = ()
    """Rank of its priority, turn, id: in the order in which they will be handed out."""
    queued: tuple[str, ...] = ()
    """In the order in which they were pushed."""
    delivered: frozenset[str] = frozenset()

    @property
    def kind(self) -> str | None:
        """Its type, as far as machines go: one that never registered has none."""
        return self.type if self.registered else None

    @property
    def acks(self) -> bool:
        """Whether it confirms commands, and so may be sent one again."""
        return "ack" in self.capabilities

    @property
    def open_commands(self) -> list[str]:
        return [*self.queued, *self.delivered, *self.scheduled, *(command_id for _, _, command_id in self.waiting)]

    @property
    def load(self) -> int:
        """How many commands of its are open."""
        return len(self.scheduled) + len(self.waiting) + len(self.queued) + len(self.delivered)

    @property
    def in_flight(self) -> int:
        """How many commands count against its credit. Who does not confirm owes us nothing once it has taken one."""
        return len(self.queued) + (len(self.delivered) if self.acks else 0)

    @property
    def oldest_undelivered(self) -> list[str]:
        """The command that has lain in its list for longest, and of each priority the one that waits for longest."""
        waiting = self.waiting
        places = {bisect_left(waiting, (rank,)) for rank in RANKS.values()} if waiting else ()
        return [*self.queued[:1], *(waiting[place][2] for place in places if place < len(waiting))]

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
        """Put an open command where it belongs, from wherever it was."""
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

    def record(self) -> dict[str, str]:
        """Return the fields of the record. An absent value is an empty string."""
        return AGENT_TABLE.encode(self)

    def fields(self, *names: str) -> dict[str, str]:
        """Return only these fields of the record."""
        return AGENT_TABLE.encode(self, names)

    def absence(self) -> dict[str, str]:
        """Return the fields of the record that say whether the agent is present."""
        return self.fields("liveness", "lost_from", "lost_score", "lost_at")

    def present(self, liveness: Liveness | None = None) -> None:
        """Clear an absence. Unless told, it is watched if it was lost by its heartbeat."""
        self.liveness = liveness or (Liveness.UNKNOWN if self.lost_score is None else Liveness.FRESH)
        self.lost_from, self.lost_score, self.lost_at = None, None, 0.0

    @classmethod
    def from_record(cls, agent_id: str, record: Mapping[str, str]) -> "AgentRecord":
        """Read a record back. Raises KeyError, ValueError or msgspec.DecodeError if it is damaged."""
        return AGENT_TABLE.decode(agent_id, record)


AGENT_TABLE: Final = RecordTable(
    AgentRecord,
    "agent_id",
    {
        "type": TEXT,
        "registered": FLAG,
        "labels": json(dict[str, str]),
        "capabilities": json(tuple[str, ...]),
        "codec": TEXT,
        "state": TEXT,
        "since": INSTANT,
        "declared": TEXT,
        "declared_at": INSTANT,
        "declared_via": choice(get_args(Via)),
        "liveness": choice(Liveness),
        "lost_from": TEXT,
        "lost_score": SCORE,
        "lost_at": INSTANT,
        "first_seen_at": INSTANT,
        "hold": choice(Hold),
        "waits_for": TEXT,
        "cooling": json(dict[str, float], omit_empty=True),
        "mail_waiting": COUNT,
        "divergences": json(dict[str, Divergence], omit_empty=True),
    },
    required=("type", "state", "since", "first_seen_at"),
)


def shown_liveness(agent: AgentRecord, is_silent: bool) -> ShownLiveness:  # noqa: FBT001  read as: its record, and this
    """Say how an agent is to people: silence is no part of its record, and counts while it is fresh alone."""
    if is_silent and agent.liveness is Liveness.FRESH:
        return ShownLiveness.SILENT
    return ShownLiveness(agent.liveness.value)


class AgentSnapshot(Struct, frozen=True):
    """What Redis shows of an agent that is not known yet: its own metadata, state key and heartbeat."""

    type: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    state: str | None = None
    score: float | None = None

    @property
    def exists(self) -> bool:
        return any((self.type, self.labels, self.state, self.score is not None))
