"""An agent: what the engine holds to be true of it, and what Redis shows of one that is not known yet."""

from bisect import bisect_left, insort
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, get_args

import msgspec
from msgspec import Struct, field

from aism_engine.clock import from_iso, iso
from aism_engine.domain.agents.activity import Divergence, Via
from aism_engine.domain.commands.command import RANKS, Command


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


# Of what reads a record back: a new leader reads 100,000 of them within its first seconds, so each is made once.
_LABELS: Final = msgspec.json.Decoder(dict[str, str])
_CAPABILITIES: Final = msgspec.json.Decoder(tuple[str, ...])
_COOLING: Final = msgspec.json.Decoder(dict[str, float])
_DIVERGENCES: Final = msgspec.json.Decoder(dict[str, Divergence])
_LIVENESS: Final = {each.value: each for each in Liveness}
_HOLDS: Final = {each.value: each for each in Hold}
_VIAS: Final[dict[str, Via | None]] = {"": None} | {via: via for via in get_args(Via)}


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
        """Build the fields of the whole record; an absent value is an empty string."""
        return {
            "type": self.type,
            "registered": "1" if self.registered else "",
            "labels": msgspec.json.encode(self.labels).decode(),
            "capabilities": msgspec.json.encode(self.capabilities).decode(),
            "codec": self.codec,
            "state": self.state,
            "since": iso(self.since),
            "declared": self.declared or "",
            "declared_at": iso(self.declared_at) if self.declared_at else "",
            "declared_via": self.declared_via or "",
            "liveness": self.liveness,
            "lost_from": self.lost_from or "",
            "lost_score": "" if self.lost_score is None else repr(self.lost_score),
            "lost_at": iso(self.lost_at) if self.lost_at else "",
            "first_seen_at": iso(self.first_seen_at),
            "hold": self.hold.value,
            "waits_for": self.waits_for,
            "cooling": msgspec.json.encode(self.cooling).decode() if self.cooling else "",
            "mail_waiting": str(self.mail_waiting) if self.mail_waiting else "",
            "divergences": msgspec.json.encode(self.divergences).decode() if self.divergences else "",
        }

    def absence(self) -> dict[str, str]:
        """Build the fields of the record that tell whether it is there."""
        record = self.record()
        return {name: record[name] for name in ("liveness", "lost_from", "lost_score", "lost_at")}

    def present(self, liveness: Liveness | None = None) -> None:
        """Clear an absence. Unless told, it is watched if it was lost by its heartbeat."""
        self.liveness = liveness or (Liveness.UNKNOWN if self.lost_score is None else Liveness.FRESH)
        self.lost_from, self.lost_score, self.lost_at = None, None, 0.0

    @classmethod
    def from_record(cls, agent_id: str, record: Mapping[str, str]) -> "AgentRecord":
        """Read a record back. Raises KeyError, ValueError or DecodeError where somebody has damaged it."""
        if not (record["type"] and record["state"]):
            raise ValueError("a record without a type or a state")
        return cls(
            agent_id=agent_id,
            type=record["type"],
            registered=bool(record["registered"]),
            labels=_LABELS.decode(record["labels"]),
            capabilities=_CAPABILITIES.decode(record["capabilities"]),
            codec=record["codec"],
            state=record["state"],
            since=from_iso(record["since"]),
            declared=record["declared"] or None,
            declared_at=from_iso(record["declared_at"]) if record["declared_at"] else 0.0,
            declared_via=_VIAS[record.get("declared_via", "")],  # younger than some records
            liveness=_LIVENESS[record["liveness"]],
            lost_from=record["lost_from"] or None,
            lost_score=float(record["lost_score"]) if record["lost_score"] else None,
            lost_at=from_iso(record["lost_at"]) if record["lost_at"] else 0.0,
            first_seen_at=from_iso(record["first_seen_at"]),
            hold=_HOLDS[record["hold"]],
            waits_for=record.get("waits_for", ""),
            cooling=_COOLING.decode(cooling) if (cooling := record.get("cooling")) else {},
            mail_waiting=int(record.get("mail_waiting") or 0),
            divergences=_DIVERGENCES.decode(divergences) if (divergences := record.get("divergences")) else {},
        )


AGENT_FIELDS: Final = tuple(AgentRecord(agent_id="", state="", since=0.0, first_seen_at=0.0).record())
"""The fields of a record, in order."""


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
