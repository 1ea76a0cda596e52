"""An agent: its record, its liveness, and the keys that it writes itself."""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from aism_engine.domain.protocol.names import MAX_STATE_NAME, is_cached_state_name
from aism_engine.domain.records import INSTANT, TEXT, RecordTable, choice

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


class Held(Struct, kw_only=True, omit_defaults=True, gc=False):
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


class AgentRecord(Held, kw_only=True, omit_defaults=True, gc=False):
    """Record of one agent, the engine's authority on it. Instants are unix seconds by Redis `TIME`.

    It is stored in JSON. Containers are replaced, never changed in place: a draft shares them with the fleet.
    """

    agent_id: str
    type: str = "unknown"
    registered: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    codec: Annotated[str, Meta(pattern=r"\A(json|msgpack)\Z")] = "json"
    instance: str = ""
    """The process that registered last; empty if it gave no instance."""
    state: str
    since: float
    reason: str = ""
    """Reason that was given for the last state change."""
    context: dict[str, Any] = field(default_factory=dict)
    """Context of the last state change, if it is not too large."""
    declared: str | None = None
    declared_at: float = 0.0
    declared_via: Via | None = None
    liveness: Liveness = Liveness.UNKNOWN
    lost_from: str | None = None
    """State at the moment of the loss."""
    lost_score: str | None = None
    """Score of the last heartbeat before the agent was lost or left: a different score brings it back.

    It is the `repr` of a float, because JSON has no infinity.
    """
    lost_at: float = 0.0
    first_seen_at: float
    cooldowns: dict[str, float] = field(default_factory=dict)
    """Ends of the cooldowns, by state."""
    waits_for: str = ""
    """Who must act in the current state: `human`, `agent`, or empty."""
    stay_until: float = 0.0
    """Deadline of the stay, as last written to the sorted set of deadlines; 0: none.

    When the engine loads the fleet, it takes the deadline from that set.
    """
    divergences: dict[str, Divergence] = field(default_factory=dict)
    """Open divergences, by rule."""
    mail_waiting: int = 0
    """Number of messages that wait until the agent accepts them."""

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

    def shown_liveness(self, *, is_silent: bool) -> Liveness:
        """Return the liveness to display: only a fresh agent can be silent."""
        return Liveness.SILENT if is_silent and self.liveness is Liveness.FRESH else self.liveness

    def reset_liveness(self, liveness: Liveness | None = None) -> None:
        """Set the liveness, and clear what the record holds about an earlier absence.

        By default the agent becomes fresh if its last heartbeat is known, else unknown.
        """
        self.liveness = liveness or (Liveness.UNKNOWN if self.lost_score is None else Liveness.FRESH)
        self.lost_from, self.lost_score, self.lost_at = None, None, 0.0


HELD_TABLE: Final = RecordTable(Held, "", renamed={"hold": "fleet"})
"""Fields of the record in which the hold of the whole fleet is stored."""
_DECODER: Final = msgspec.json.Decoder(AgentRecord)


def decode_agent(agent_id: str, record: bytes) -> AgentRecord:
    """Decode the record of an agent. Raises ValueError if it is damaged, or belongs to another agent."""
    try:
        agent = _DECODER.decode(record)
    except RecursionError as error:
        raise ValueError(f"the record of agent {agent_id} is nested too deep") from error
    is_valid = agent.agent_id == agent_id and agent.liveness is not Liveness.SILENT
    # The names of states are checked here, and not by a pattern in the types of the fields: a fleet has few states, so
    # most checks are answered by the cache, and are faster.
    states = (agent.state, agent.lost_from or agent.state)
    if not (is_valid and all(len(each) <= MAX_STATE_NAME and is_cached_state_name(each) for each in states)):
        raise ValueError(f"a damaged record of agent {agent_id}")
    return agent


NO_CONTEXT: Final[dict[str, Any]] = {}
"""The context of a state change that has none. Callers must not change it."""


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
