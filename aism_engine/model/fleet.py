"""The fleet in memory, and the draft over which decisions are made.

`Fleet` is what the engine knows to be committed. Nobody changes it but `Draft.settle`, when the commit of that draft is
confirmed. A draft is thrown away otherwise, so a decision can never outlive the write it asked for. The second message
of a batch sees what the first one did.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct, field

from aism_engine.clock import from_iso, iso
from aism_engine.model.commands import Command


class Liveness(StrEnum):
    UNKNOWN = "unknown"
    """Never beat: it is not watched, and so it cannot be lost."""
    FRESH = "fresh"
    LOST = "lost"
    LEFT = "left"
    """Said goodbye: its silence is in order."""


class Agent(Struct, kw_only=True):
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
    liveness: Liveness = Liveness.UNKNOWN
    lost_from: str | None = None
    """The state it was in when it was lost."""
    lost_score: float | None = None
    """The heartbeat it was lost with: a different one brings it back."""
    lost_at: float = 0.0
    met_at: float
    open_commands: frozenset[str] = frozenset()
    """Derived from the commands, not part of the record."""

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
            "liveness": self.liveness,
            "lost_from": self.lost_from or "",
            "lost_score": "" if self.lost_score is None else repr(self.lost_score),
            "lost_at": iso(self.lost_at) if self.lost_at else "",
            "met_at": iso(self.met_at),
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
    def from_record(cls, agent_id: str, record: Mapping[str, str]) -> "Agent":
        """Read a record back. Raises KeyError, ValueError or DecodeError where somebody has damaged it."""
        if not (record["type"] and record["state"]):
            raise ValueError("a record without a type or a state")
        return cls(
            agent_id=agent_id,
            type=record["type"],
            registered=bool(record["registered"]),
            labels=msgspec.json.decode(record["labels"], type=dict[str, str]),
            capabilities=msgspec.json.decode(record["capabilities"], type=tuple[str, ...]),
            codec=record["codec"],
            state=record["state"],
            since=from_iso(record["since"]),
            declared=record["declared"] or None,
            declared_at=from_iso(record["declared_at"]) if record["declared_at"] else 0.0,
            liveness=Liveness(record["liveness"]),
            lost_from=record["lost_from"] or None,
            lost_score=float(record["lost_score"]) if record["lost_score"] else None,
            lost_at=from_iso(record["lost_at"]) if record["lost_at"] else 0.0,
            met_at=from_iso(record["met_at"]),
        )


AGENT_FIELDS: Final = tuple(Agent(agent_id="", state="", since=0.0, met_at=0.0).record())
"""The fields of a record, in order."""


class Sighting(Struct, frozen=True):
    """What Redis shows of an agent that is not known yet: its own metadata, state key and heartbeat."""

    type: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    state: str | None = None
    score: float | None = None

    @property
    def exists(self) -> bool:
        return any((self.type, self.labels, self.state, self.score is not None))


class Lookups(Struct):
    """What was read from Redis for one batch, because the fleet in memory does not hold it."""

    sightings: dict[str, Sighting] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    """What lies in the lists of agents for commands that are to be withdrawn."""


_ENDED: Final = 4096
"""An arbitrary number: more commands than end while one batch looks up what it needs."""
_MARK_BYTES: Final = 8


def _mark(message_id: str) -> bytes:
    """Give the 8 bytes by which a message id is remembered.

    Python's hash is keyed anew in each process: nobody can aim at a collision. A ring is searched as one string: that
    it matches across two marks by chance is no likelier than a collision is.
    """
    return hash(message_id).to_bytes(_MARK_BYTES, "little", signed=True)


class Fleet:
    """All agents, their open commands, and the ids of the messages last seen from each."""

    def __init__(self, agents: Iterable[Agent] = (), commands: Iterable[Command] = (), *, recent_ids: int = 64) -> None:
        self.agents = {agent.agent_id: agent for agent in agents}
        self.commands = {command.command_id: command for command in commands}
        self.ended: dict[str, Command] = {}
        """The last commands that have ended: what was looked up for a batch may be older than their end."""
        self.spoke: dict[str, float] = {}
        """When each agent was last heard on the queue, since the fleet was loaded."""
        self.loaded_at = 0.0
        self._recent: dict[str, bytearray] = {}
        self._recent_bytes = recent_ids * _MARK_BYTES
        for command in self.commands.values():
            if agent := self.agents.get(command.agent_id):
                agent.open_commands |= {command.command_id}

    def has_seen(self, agent_id: str, message_id: str) -> bool:
        """Tell whether this message was among the last ones of its agent."""
        ring = self._recent.get(agent_id)
        return ring is not None and _mark(message_id) in ring

    def remember(self, agent_id: str, message_id: str) -> None:
        """Add to the ring of the agent: 64 marks of 100,000 agents are 51 MB, the ids were ten times that."""
        ring = self._recent.get(agent_id)
        if ring is None:
            ring = self._recent[agent_id] = bytearray()
        elif len(ring) >= self._recent_bytes:
            del ring[:_MARK_BYTES]
        ring += _mark(message_id)

    def end(self, command: Command) -> None:
        """Take a command off the open ones; for the batches that look things up just now it is kept in mind."""
        self.commands.pop(command.command_id, None)
        self.ended[command.command_id] = command
        if len(self.ended) > _ENDED:
            del self.ended[next(iter(self.ended))]

    def forget(self, agent_id: str) -> None:
        self.agents.pop(agent_id, None)
        self.spoke.pop(agent_id, None)
        self._recent.pop(agent_id, None)


class Draft:
    """The fleet as it will be once the commit in hand is confirmed."""

    def __init__(self, fleet: Fleet, now: float, lookups: Lookups | None = None) -> None:
        self.now = now
        self.at = iso(now)
        self.lookups = lookups or Lookups()
        self._fleet = fleet
        self._agents: dict[str, Agent | None] = {}
        self._commands: dict[str, Command] = {}
        self._heard: dict[str, list[str]] = {}
        self._added = 0

    @property
    def size(self) -> int:
        return len(self._fleet.agents) + self._added

    def agent(self, agent_id: str) -> Agent | None:
        """Get the agent to change it; none where it is not known."""
        if agent_id in self._agents:
            return self._agents[agent_id]
        agent = self._fleet.agents.get(agent_id)
        if agent is not None:
            agent = self._agents[agent_id] = copy(agent)
        return agent

    def add_agent(self, agent: Agent) -> None:
        self._agents[agent.agent_id] = agent
        self._added += 1

    def remove_agent(self, agent_id: str) -> None:
        self._agents[agent_id] = None
        self._added -= 1

    def command(self, command_id: str) -> Command | None:
        """Get a command to change it: an open one, or one that has ended and is still on record."""
        command = self._commands.get(command_id)
        if command is None:
            fleet = self._fleet
            found = fleet.commands.get(command_id) or fleet.ended.get(command_id)
            if found is None:
                found = self.lookups.commands.get(command_id)
            if found is not None:
                command = self._commands[command_id] = copy(found)
        return command

    def add_command(self, command: Command) -> None:
        self._commands[command.command_id] = command
        if agent := self.agent(command.agent_id):
            agent.open_commands |= {command.command_id}

    def has_seen(self, agent_id: str, message_id: str) -> bool:
        return message_id in self._heard.get(agent_id, ()) or self._fleet.has_seen(agent_id, message_id)

    def heard(self, agent_id: str, message_id: str | None) -> None:
        """Note a sign of life, and the id by which a second push of the same message is known."""
        ids = self._heard.setdefault(agent_id, [])
        if message_id is not None:
            ids.append(message_id)

    def heard_ids(self) -> list[tuple[str, str]]:
        """Give all that was noted: whose message, and its id, in the order of each agent."""
        return [(agent_id, message_id) for agent_id, ids in self._heard.items() for message_id in ids]

    def settle(self) -> None:
        """Make it the fleet: the commit is confirmed."""
        fleet = self._fleet
        for agent_id, agent in self._agents.items():
            if agent is None:
                fleet.forget(agent_id)
            else:
                fleet.agents[agent_id] = agent
        for command_id, command in self._commands.items():
            if command.open:
                fleet.commands[command_id] = command
            else:
                fleet.end(command)
        for agent_id, ids in self._heard.items():
            if agent_id in fleet.agents:
                fleet.spoke[agent_id] = self.now
                for message_id in ids:
                    fleet.remember(agent_id, message_id)
