"""The fleet in memory, and the draft over which decisions are made.

`Fleet` is what the engine knows to be committed. Nobody changes it but `Draft.settle`, when the commit of that draft is
confirmed. A draft is thrown away otherwise, so a decision can never outlive the write it asked for. The second message
of a batch sees what the first one did.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct, field

from aism_engine.clock import from_iso, iso
from aism_engine.model.commands import RANKS, Command
from aism_engine.model.effects import Letter
from aism_engine.model.evidence import Deeds, Divergence, Via
from aism_engine.model.groups import Group
from aism_engine.model.mail import Bucket, Pair, Place, Traffic


class Liveness(StrEnum):
    UNKNOWN = "unknown"
    """Never beat: it is not watched, and so it cannot be lost."""
    FRESH = "fresh"
    LOST = "lost"
    LEFT = "left"
    """Said goodbye: its silence is in order."""


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
    declared_via: Via | None = None
    liveness: Liveness = Liveness.UNKNOWN
    lost_from: str | None = None
    """The state it was in when it was lost."""
    lost_score: float | None = None
    """The heartbeat it was lost with: a different one brings it back."""
    lost_at: float = 0.0
    met_at: float
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
    later: frozenset[str] = frozenset()
    waiting: tuple[tuple[int, int, str], ...] = ()
    """Rank of its priority, turn, id: in the order in which they will be handed out."""
    queued: tuple[str, ...] = ()
    """In the order in which they were pushed."""
    taken: frozenset[str] = frozenset()

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
        return [*self.queued, *self.taken, *self.later, *(command_id for _, _, command_id in self.waiting)]

    @property
    def load(self) -> int:
        """How many commands of its are open."""
        return len(self.later) + len(self.waiting) + len(self.queued) + len(self.taken)

    @property
    def in_flight(self) -> int:
        """How many commands count against its credit. Who does not confirm owes us nothing once it has taken one."""
        return len(self.queued) + (len(self.taken) if self.acks else 0)

    @property
    def untaken(self) -> list[str]:
        """The command that has lain in its list for longest, and of each priority the one that waits for longest."""
        waiting = self.waiting
        places = {bisect_left(waiting, (rank,)) for rank in RANKS.values()} if waiting else ()
        return [*self.queued[:1], *(waiting[place][2] for place in places if place < len(waiting))]

    def unfile(self, command_id: str) -> None:
        if command_id in self.queued:
            self.queued = tuple(other for other in self.queued if other != command_id)
        elif command_id in self.taken:
            self.taken -= {command_id}
        elif command_id in self.later:
            self.later -= {command_id}
        else:
            self.waiting = tuple(entry for entry in self.waiting if entry[2] != command_id)

    def file(self, command: Command) -> None:
        """Put an open command where it belongs, from wherever it was."""
        command_id = command.command_id
        self.unfile(command_id)
        match command.place:
            case "queued":
                self.queued += (command_id,)
            case "taken":
                self.taken |= {command_id}
            case "later":
                self.later |= {command_id}
            case "waiting":
                waiting = list(self.waiting)
                insort(waiting, (RANKS[command.priority], command.turn, command_id))
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
            "met_at": iso(self.met_at),
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
    def from_record(cls, agent_id: str, record: Mapping[str, str]) -> "Agent":
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
            met_at=from_iso(record["met_at"]),
            hold=_HOLDS[record["hold"]],
            waits_for=record.get("waits_for", ""),
            cooling=_COOLING.decode(cooling) if (cooling := record.get("cooling")) else {},
            mail_waiting=int(record.get("mail_waiting") or 0),
            divergences=_DIVERGENCES.decode(divergences) if (divergences := record.get("divergences")) else {},
        )


copy: Final = msgspec.structs.replace
"""Of a struct, at half the price of copy.copy: each message costs two."""
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
    """What was pushed for commands that are to be sent again, or given up on; empty where it has gone."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """What was answered to requests that were asked before."""
    letters: dict[str, Letter] = field(default_factory=dict)
    """The dead letters that are to be replayed, by their ids in the stream."""
    unread: dict[str, int] = field(default_factory=dict)
    """How many messages an agent has not read, or is not let have yet."""
    groups: dict[str, Group] = field(default_factory=dict)


_ENDED: Final = 4096
"""An arbitrary number: more commands than end while one batch looks up what it needs."""
_MARK_BYTES: Final = 8


def _mark(message_id: str) -> bytes:
    """Give the 8 bytes by which a message id is remembered.

    Python's hash is keyed anew in each process: nobody can aim at a collision. A ring is searched as one string: that
    it matches across two marks by chance is no likelier than a collision is.
    """
    return hash(message_id).to_bytes(_MARK_BYTES, "little", signed=True)


NOTHING_MEASURED: Final[Mapping[str, Any]] = {}


class Fleet:
    """All agents, their open commands, and the ids of the messages last seen from each."""

    def __init__(
        self,
        agents: Iterable[Agent] = (),
        commands: Iterable[Command] = (),
        groups: Iterable[Group] = (),
        measurements: Mapping[str, dict[str, float]] = NOTHING_MEASURED,
        *,
        hold: Hold = Hold.NONE,
        recent_ids: int = 64,
    ) -> None:
        self.agents = {agent.agent_id: agent for agent in agents}
        self.commands = {command.command_id: command for command in sorted(commands, key=lambda each: each.turn)}
        self.groups = {group.group_id: group for group in groups}
        self.measurements = dict(measurements)
        """The latest value of each name, by agent; none of these is ever changed in place."""
        self.hold = hold
        self.turn = max((command.turn for command in self.commands.values()), default=0)
        """The last turn that was given."""
        self.ended: dict[str, Command] = {}
        """The last commands that have ended: what was looked up for a batch may be older than their end."""
        self.spoke: dict[str, float] = {}
        """When each agent was last heard on the queue, since the fleet was loaded."""
        self.loaded_at = 0.0
        self.silent: dict[str, float] = {}
        """Whom Redis shows as silent, and since when. One that is not fresh any more is taken out by the next scan."""
        self.deeds: dict[str, Deeds] = {}
        """What each agent was seen to do since then; to read, a draft alone changes it."""
        self.traffic = Traffic()
        self._recent: dict[str, bytearray] = {}
        self._recent_bytes = recent_ids * _MARK_BYTES
        for command in self.commands.values():
            if agent := self.agents.get(command.agent_id):
                agent.file(command)
        self.occupants: dict[str, dict[str | None, int]] = {}
        """How many agents of each kind are in each state."""
        for (state, kind), count in Counter((agent.state, agent.kind) for agent in self.agents.values()).items():
            self.occupants.setdefault(state, {})[kind] = count
        self.liveness = Counter(agent.liveness for agent in self.agents.values())
        """How many agents are fresh, lost and so on: to count 100,000 takes 10 ms of the loop."""
        self.away = {agent_id for agent_id, agent in self.agents.items() if agent.lost_score is not None}
        """Who is back when its heartbeat moves."""
        self.waiting = {agent_id for agent_id, agent in self.agents.items() if agent.waiting}
        """Who has commands that wait."""
        self.queued = {agent_id for agent_id, agent in self.agents.items() if agent.queued}
        """In whose list something lies."""
        self.freed = set(self.waiting)
        """Who has commands that wait, and has changed since somebody last looked whether they may be handed out."""

    def shown(self, agent: Agent) -> ShownLiveness:
        return shown_liveness(agent, agent.agent_id in self.silent)

    def count_shown(self) -> Counter[ShownLiveness]:
        """Count the agents as they are shown, without walking over all of them."""
        counts = Counter({ShownLiveness(liveness.value): count for liveness, count in self.liveness.items()})
        silent = [agent for agent_id in self.silent if (agent := self.agents.get(agent_id)) is not None]
        counts[ShownLiveness.SILENT] = sum(self.shown(agent) is ShownLiveness.SILENT for agent in silent)
        counts[ShownLiveness.FRESH] -= counts[ShownLiveness.SILENT]
        return counts

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

    def _count(self, agent: Agent, change: int) -> None:
        state, kind = agent.state, agent.kind
        kinds = self.occupants.get(state)
        if kinds is None:
            kinds = self.occupants[state] = {}
        if count := kinds.get(kind, 0) + change:
            kinds[kind] = count
        else:
            del kinds[kind]
            if not kinds:
                del self.occupants[state]

    def forget(self, agent_id: str) -> None:
        if (agent := self.agents.pop(agent_id, None)) is not None:
            self._count(agent, -1)
            self.liveness[agent.liveness] -= 1
        self.spoke.pop(agent_id, None)
        self.deeds.pop(agent_id, None)
        self.measurements.pop(agent_id, None)
        self._recent.pop(agent_id, None)
        for agents in (self.away, self.waiting, self.queued, self.freed):
            agents.discard(agent_id)

    def replace(self, agent: Agent) -> None:
        agent_id = agent.agent_id
        before = self.agents.get(agent_id)
        if before is None or (before.state, before.kind) != (agent.state, agent.kind):
            if before is not None:
                self._count(before, -1)
            self._count(agent, 1)
        if before is None or before.liveness is not agent.liveness:
            if before is not None:
                self.liveness[before.liveness] -= 1
            self.liveness[agent.liveness] += 1
        if agent.lost_score is None:
            self.away.discard(agent_id)
        else:
            self.away.add(agent_id)
        self.agents[agent_id] = agent
        if agent.queued:
            self.queued.add(agent_id)
        else:
            self.queued.discard(agent_id)
        if agent.waiting:
            self.waiting.add(agent_id)
            self.freed.add(agent_id)
        elif agent_id in self.waiting:
            self.waiting.discard(agent_id)
            self.freed.discard(agent_id)


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
        self._deeds: dict[str, Deeds] = {}
        self._acted: set[str] = set()
        self._measurements: dict[str, dict[str, float]] = {}
        self._mail: Counter[str] = Counter()
        self._buckets: dict[Pair, Bucket] = {}
        self._hops: dict[Place, int] = {}
        self._added = 0
        self.answers: dict[str, bytes] = {}
        """What is answered to the requests of this batch."""
        self.hold = fleet.hold
        self._groups: dict[str, Group] = {}
        self._silences: dict[str, float | None] = {}
        self._turn = fleet.turn

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
        self._measurements[agent_id] = {}  # it may be met again in the same batch
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
        self._turn = max(self._turn, command.turn)
        self.file(command)

    def file(self, command: Command) -> None:
        """Let its agent know where a command is now."""
        if agent := self.agent(command.agent_id):
            if command.open:
                agent.file(command)
            else:
                agent.unfile(command.command_id)

    def next_turn(self) -> int:
        self._turn += 1
        return self._turn

    def group(self, group_id: str) -> Group | None:
        """Get a group to change it; none where it has ended."""
        group = self._groups.get(group_id)
        if group is None and (found := self._fleet.groups.get(group_id)) is not None:
            group = self._groups[group_id] = copy(found)
        return group

    def add_group(self, group: Group) -> None:
        self._groups[group.group_id] = group

    def members(self, group_id: str) -> list[str]:
        """Find the open commands of a group."""
        return [each.command_id for each in self._fleet.commands.values() if each.group_id == group_id]

    def agents(self) -> Iterable[Agent]:
        """All agents, to look at and not to change."""
        changed = self._agents
        for agent_id, agent in self._fleet.agents.items():
            found = changed.get(agent_id, agent)
            if found is not None:
                yield found
        yield from (each for each in changed.values() if each and each.agent_id not in self._fleet.agents)

    def occupants(self, state: str, belongs: Callable[[str | None], bool]) -> int:
        """Count who is in a state, of the kinds that belong."""
        before = self._fleet.agents
        count = sum(count for kind, count in self._fleet.occupants.get(state, {}).items() if belongs(kind))
        for agent_id, agent in self._agents.items():
            for each, change in ((before.get(agent_id), -1), (agent, 1)):
                if each is not None and each.state == state and belongs(each.kind):
                    count += change
        return count

    def is_paused(self, agent: Agent) -> bool:
        return Hold.PAUSE in (agent.hold, self.hold)

    def is_draining(self, agent: Agent) -> bool:
        return Hold.DRAIN in (agent.hold, self.hold)

    def has_seen(self, agent_id: str, message_id: str) -> bool:
        return message_id in self._heard.get(agent_id, ()) or self._fleet.has_seen(agent_id, message_id)

    def heard(self, agent_id: str, message_id: str | None) -> None:
        """Note a sign of life, and the id by which a second push of the same message is known."""
        ids = self._heard.setdefault(agent_id, [])
        if message_id is not None:
            ids.append(message_id)

    def act(self, agent_id: str) -> None:
        """Note that the agent has done something: of most messages that is all there is to note."""
        self._acted.add(agent_id)

    def deeds(self, agent_id: str) -> Deeds:
        """Get what the agent was seen to do, to add to it."""
        deeds = self._deeds.get(agent_id)
        if deeds is None:
            known = self._fleet.deeds.get(agent_id)
            deeds = self._deeds[agent_id] = Deeds() if known is None else copy(known)
        if agent_id in self._acted:
            deeds.acted = self.now
        return deeds

    def measurements(self, agent_id: str) -> Mapping[str, float]:
        """Give the latest value of each name that the agent has measured."""
        changed = self._measurements.get(agent_id)
        return self._fleet.measurements.get(agent_id, NOTHING_MEASURED) if changed is None else changed

    def measure(self, agent_id: str, values: Mapping[str, float]) -> None:
        self._measurements[agent_id] = {**self.measurements(agent_id), **values}

    def note_silence(self, agent_id: str, since: float | None) -> None:
        """Note that an agent is silent since then; None: that it is so no more."""
        self._silences[agent_id] = since

    def mail_of(self, agent_id: str) -> int:
        """Count the messages that an agent has not read, as far as it has been looked up."""
        return self.lookups.unread.get(agent_id, 0) + self._mail[agent_id]

    def add_mail(self, agent_id: str) -> None:
        self._mail[agent_id] += 1

    def bucket(self, sender: str, recipient: str) -> Bucket | None:
        pair = (sender, recipient)
        return self._buckets.get(pair) or self._fleet.traffic.buckets.get(pair)

    def set_bucket(self, sender: str, recipient: str, bucket: Bucket) -> None:
        self._buckets[sender, recipient] = bucket

    def hops(self, thread_id: str, agent_id: str) -> int:
        """Count the hops of the furthest message that an agent was sent in a thread."""
        place = (thread_id, agent_id)
        return self._hops.get(place) or self._fleet.traffic.hops.get(place, 0)

    def set_hops(self, thread_id: str, agent_id: str, hops: int) -> None:
        self._hops[thread_id, agent_id] = hops

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
                fleet.replace(agent)
        self._settle_commands()
        for agent_id, since in self._silences.items():
            if since is None:
                fleet.silent.pop(agent_id, None)
            else:
                fleet.silent[agent_id] = since
        if self.hold != fleet.hold:
            fleet.hold = self.hold
            fleet.freed |= fleet.waiting
        fleet.traffic.settle(self._buckets, self._hops)
        self._settle_evidence()

    def _settle_evidence(self) -> None:
        fleet = self._fleet
        for agent_id, ids in self._heard.items():
            if agent_id in fleet.agents:
                fleet.spoke[agent_id] = self.now
                for message_id in ids:
                    fleet.remember(agent_id, message_id)
        fleet.deeds.update((agent_id, deeds) for agent_id, deeds in self._deeds.items() if agent_id in fleet.agents)
        for agent_id in self._acted & fleet.agents.keys():
            deeds = fleet.deeds.get(agent_id)
            if deeds is None:
                deeds = fleet.deeds[agent_id] = Deeds()
            deeds.acted = self.now
        fleet.measurements.update(
            (agent_id, values) for agent_id, values in self._measurements.items() if agent_id in fleet.agents
        )

    def _settle_commands(self) -> None:
        fleet = self._fleet
        fleet.turn = self._turn
        for command_id, command in self._commands.items():
            if command.open:
                fleet.commands[command_id] = command
            else:
                fleet.end(command)
        for group_id, group in self._groups.items():
            if group.ended:
                fleet.groups.pop(group_id, None)
            else:
                fleet.groups[group_id] = group


def shown_liveness(agent: Agent, is_silent: bool) -> ShownLiveness:  # noqa: FBT001  read as: its record, and this
    """Say how an agent is to people: silence is no part of its record, and counts while it is fresh alone."""
    if is_silent and agent.liveness is Liveness.FRESH:
        return ShownLiveness.SILENT
    return ShownLiveness(agent.liveness.value)
