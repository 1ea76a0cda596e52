"""The fleet in memory: what the engine knows to be committed. Nobody changes it but `Draft.apply`."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct, field

from aism_engine.domain.agents.activity import Activity
from aism_engine.domain.agents.agent import AgentRecord, AgentSnapshot, Hold, ShownLiveness, shown_liveness
from aism_engine.domain.commands.command import Command
from aism_engine.domain.commands.group import Group
from aism_engine.domain.effects import DeadLetter
from aism_engine.domain.mail import Traffic


class Lookups(Struct):
    """What was read from Redis for one batch, because the fleet in memory does not hold it."""

    snapshots: dict[str, AgentSnapshot] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    """What was pushed for commands that are to be sent again, or given up on; empty where it has gone."""
    request_replies: dict[str, bytes] = field(default_factory=dict)
    """What was answered to requests that were asked before."""
    dead_letters: dict[str, DeadLetter] = field(default_factory=dict)
    """The dead letters that are to be replayed, by their ids in the stream."""
    unread: dict[str, int] = field(default_factory=dict)
    """How many messages an agent has not read, or is not let have yet."""
    groups: dict[str, Group] = field(default_factory=dict)
    measurements: dict[str, dict[str, float]] = field(default_factory=dict)


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
        agents: Iterable[AgentRecord] = (),
        commands: Iterable[Command] = (),
        groups: Iterable[Group] = (),
        *,
        hold: Hold = Hold.NONE,
        recent_ids: int = 64,
    ) -> None:
        self.agents = {agent.agent_id: agent for agent in agents}
        self.commands = {command.command_id: command for command in sorted(commands, key=lambda each: each.seq)}
        self.groups = {group.group_id: group for group in groups}
        self.measurements: dict[str, dict[str, float]] = {}
        """The latest value of each name, by agent; none of these is ever changed in place."""
        self.unloaded_measurements = set(self.agents)
        """Whose measurements have not been read since the load: it must not take longer for them."""
        self.hold = hold
        self.last_seq = max((command.seq for command in self.commands.values()), default=0)
        """The last turn that was given."""
        self.recently_ended: dict[str, Command] = {}
        """The last commands that have ended: what was looked up for a batch may be older than their end."""
        self.last_message_at: dict[str, float] = {}
        """When each agent was last heard on the queue, since the fleet was loaded."""
        self.loaded_at = 0.0
        self.silent: dict[str, float] = {}
        """Whom Redis shows as silent, and since when. One that is not fresh any more is taken out by the next scan."""
        self.losses_confirmed_at = float("-inf")
        """When an operator last said that who was silent then is gone: of this leader's time, and no part of Redis."""
        self.activity: dict[str, Activity] = {}
        """What each agent was seen to do since then; to read, a draft alone changes it."""
        self.traffic = Traffic()
        self._recent: dict[str, bytearray] = {}
        self._recent_bytes = recent_ids * _MARK_BYTES
        for command in self.commands.values():
            if agent := self.agents.get(command.agent_id):
                agent.index(command)
        self.occupants: dict[str, dict[str | None, int]] = {}
        """How many agents of each kind are in each state."""
        for (state, kind), count in Counter((agent.state, agent.kind) for agent in self.agents.values()).items():
            self.occupants.setdefault(state, {})[kind] = count
        self.liveness = Counter(agent.liveness for agent in self.agents.values())
        """How many agents are fresh, lost and so on: to count 100,000 takes 10 ms of the loop."""
        self.absent = {agent_id for agent_id, agent in self.agents.items() if agent.lost_score is not None}
        """Who is back when its heartbeat moves."""
        self.waiting = {agent_id for agent_id, agent in self.agents.items() if agent.waiting}
        """Who has commands that wait."""
        self.queued = {agent_id for agent_id, agent in self.agents.items() if agent.queued}
        """In whose list something lies."""
        self.dispatchable = set(self.waiting)
        """Who has commands that wait, and has changed since somebody last looked whether they may be handed out."""

    def shown(self, agent: AgentRecord) -> ShownLiveness:
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

    def mark_seen(self, agent_id: str, message_id: str) -> None:
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
        self.recently_ended[command.command_id] = command
        if len(self.recently_ended) > _ENDED:
            del self.recently_ended[next(iter(self.recently_ended))]

    def load_measurements(self, agent_id: str, values: dict[str, float]) -> None:
        """Add what an agent had measured before the load, unless it is known by now. No decision changes by it: those
        that need it have it looked up.
        """
        if agent_id in self.unloaded_measurements:
            self.unloaded_measurements.discard(agent_id)
            if values:
                self.measurements[agent_id] = values

    def _count(self, agent: AgentRecord, change: int) -> None:
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
        self.last_message_at.pop(agent_id, None)
        self.activity.pop(agent_id, None)
        self.measurements.pop(agent_id, None)
        self.unloaded_measurements.discard(agent_id)
        self._recent.pop(agent_id, None)
        for agents in (self.absent, self.waiting, self.queued, self.dispatchable):
            agents.discard(agent_id)

    def replace(self, agent: AgentRecord) -> None:
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
            self.absent.discard(agent_id)
        else:
            self.absent.add(agent_id)
        self.agents[agent_id] = agent
        if agent.queued:
            self.queued.add(agent_id)
        else:
            self.queued.discard(agent_id)
        if agent.waiting:
            self.waiting.add(agent_id)
            self.dispatchable.add(agent_id)
        elif agent_id in self.waiting:
            self.waiting.discard(agent_id)
            self.dispatchable.discard(agent_id)
