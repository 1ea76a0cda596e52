"""The fleet in memory, as it was last committed. Only `Draft.apply` changes it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from struct import Struct as Layout
from typing import Any, Final, TypeAlias

from msgspec import Struct, field

from aism_engine.domain.agents.activity import Activity
from aism_engine.domain.agents.agent import AgentRecord, AgentSnapshot, Held, Hold, Liveness
from aism_engine.domain.commands.command import Command
from aism_engine.domain.commands.command_index import NO_COMMANDS, CommandIndex
from aism_engine.domain.commands.group import Group
from aism_engine.domain.effects import DeadLetter
from aism_engine.domain.protocol.messages import Request

Pair: TypeAlias = tuple[str, str]
"""Sender and recipient of mail."""
ThreadMember: TypeAlias = tuple[str, str]
"""A thread, and an agent that received a message in it."""


class TokenBucket(Struct, frozen=True):
    """How many tokens a pair had left at an instant."""

    tokens: float
    at: float


class Lookups(Struct):
    """Values read from Redis for one batch, because the fleet in memory does not hold them."""

    snapshots: dict[str, AgentSnapshot] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    """Bodies of commands that are due for another attempt; empty if the body is missing in the record."""
    request_replies: dict[str, bytes] = field(default_factory=dict)
    """What is saved of requests that were decided before: a digest of the request, a space, and the reply."""
    dead_letters: dict[str, DeadLetter] = field(default_factory=dict)
    """Dead letters to replay, by stream id."""
    unread: dict[str, int] = field(default_factory=dict)
    """Number of unread messages of each agent: those in its inbox, and those kept until it accepts messages."""
    groups: dict[str, Group] = field(default_factory=dict)
    group_requests: dict[str, Request] = field(default_factory=dict)
    """The requests that made groups, by the id of the group, as far as they can be read."""
    measurements: dict[str, dict[str, float]] = field(default_factory=dict)
    applied_until: float = 0.0
    """Every response that was in the queue at this instant is applied; 0: no such instant is known yet."""


_MAX_RECENTLY_ENDED: Final = 4096
"""An arbitrary number, larger than the number of commands that end while one batch reads its lookups."""
_HASH_BYTES: Final = 8
_pack: Final = Layout("q").pack
"""Packs the hash of a message id into 8 bytes.

Python seeds its hash at random in each process, so that nobody can construct a collision. `has_seen` searches all
hashes of an agent as one byte string: a false match across two hashes is as improbable as a collision.
"""
NOTHING: Final[Mapping[str, Any]] = {}


class Fleet:
    """All agents, their open commands and groups, and the ids of the last messages of each agent."""

    def __init__(
        self,
        agents: Iterable[AgentRecord] = (),
        commands: Iterable[Command] = (),
        groups: Iterable[Group] = (),
        *,
        held: Held | None = None,
        recent_ids: int = 64,
    ) -> None:
        self.agents = {agent.agent_id: agent for agent in agents}
        self.commands = {command.command_id: command for command in sorted(commands, key=lambda each: each.seq)}
        self.groups = {group.group_id: group for group in groups}
        self.measurements: dict[str, dict[str, float]] = {}
        """Latest value of each measurement name, by agent. The inner dictionaries are never changed in place."""
        self.unloaded_measurements = set(self.agents)
        """Agents whose measurements were not read yet: they are read after the load, to keep the load short."""
        self.held = held or Held()
        self.last_seq = max((command.seq for command in self.commands.values()), default=0)
        """Last sequence number given to a command."""
        self.recently_ended: dict[str, Command] = {}
        """The last commands that ended. The lookups of a batch may still show them as open."""
        self.last_message_at: dict[str, float] = {}
        """When each agent last sent a message, began to be watched, or returned, since the fleet was loaded."""
        self.forgotten = 0
        """Number of agents that were forgotten since the fleet was loaded."""
        self.loaded_at = 0.0
        self.silent: dict[str, float] = {}
        """Agents that are marked as silent in Redis, and since when.

        An agent that has been lost, has left or was forgotten since then is removed by the next scan.
        """
        self.losses_confirmed_at = float("-inf")
        """When an operator last confirmed the losses, since the fleet was loaded. It is not stored in Redis."""
        self.acted_at: dict[str, float] = {}
        """When each agent last took a command or sent any response other than a heartbeat, since the load."""
        self.activity: dict[str, Activity] = {}
        """Activity of each agent since the fleet was loaded. Read-only: only a draft changes it."""
        self.token_buckets: dict[Pair, TokenBucket] = {}
        self.hops: dict[ThreadMember, int] = {}
        """Highest hop count of the messages that each agent received in each thread."""
        self._recent: dict[str, bytes] = {}
        """Hashes of the last message ids of each agent, oldest first, one after the other."""
        self._recent_bytes = recent_ids * _HASH_BYTES
        self._command_indexes = _index(self.commands.values())
        self.occupants: dict[str, dict[str | None, int]] = {}
        """Number of agents by state and registered type."""
        self.liveness: Counter[Liveness] = Counter()
        """Number of agents by liveness. It is kept up to date, because counting 100,000 agents takes 10 ms."""
        self.holds: Counter[Hold] = Counter()
        """Number of agents by hold."""
        for agent in self.agents.values():
            self._count(agent, 1)
        self.absent = {agent_id for agent_id, agent in self.agents.items() if agent.lost_score is not None}
        """Lost and left agents whose last heartbeat is known: they return when it changes."""
        self.awaiting_heartbeat = {agent_id for agent_id, agent in self.agents.items() if agent.awaits_heartbeat}
        """Agents whose heartbeat has to be looked up: see `AgentRecord.awaits_heartbeat`."""
        self.waiting = {agent_id for agent_id, index in self._command_indexes.items() if index.waiting}
        """Agents with waiting commands."""
        self.queued = {agent_id for agent_id, index in self._command_indexes.items() if index.queued}
        """Agents with commands in their list."""
        self.dispatchable = set(self.waiting)
        """Agents that have waiting commands, and have changed since the dispatcher last checked them."""
        self.waiting_for_human = {agent_id for agent_id, agent in self.agents.items() if agent.waits_for == "human"}

    def has_seen(self, agent_id: str, message_id: str) -> bool:
        """Tell whether this message is one of the last ones of its agent."""
        return _pack(hash(message_id)) in self._recent.get(agent_id, b"")

    def mark_seen(self, agent_id: str, message_ids: Iterable[str]) -> None:
        """Remember the ids of an agent's messages, oldest first. 64 hashes for each of 100,000 agents take 51 MB."""
        hashes = self._recent.get(agent_id, b"") + b"".join(map(_pack, map(hash, message_ids)))
        self._recent[agent_id] = hashes[-self._recent_bytes :]

    def end(self, command: Command) -> None:
        """Remove a command from the open ones. It stays known for batches whose lookups were read before its end."""
        self.commands.pop(command.command_id, None)
        self.recently_ended[command.command_id] = command
        if len(self.recently_ended) > _MAX_RECENTLY_ENDED:
            del self.recently_ended[next(iter(self.recently_ended))]

    def load_measurements(self, agent_id: str, values: dict[str, float]) -> None:
        """Add the measurements that an agent sent before the load, unless a commit has added them already.

        A decision that needs the values earlier finds them in its lookups.
        """
        if agent_id in self.unloaded_measurements:
            self.unloaded_measurements.discard(agent_id)
            if values:
                self.measurements[agent_id] = values

    def _count(self, agent: AgentRecord, change: int) -> None:
        """Add `change` to the counts of the agent's liveness and hold, and of its state and registered type."""
        self.liveness[agent.liveness] += change
        self.holds[agent.hold] += change
        self._count_occupant(agent.state, agent.registered_type, change)

    def _count_occupant(self, state: str, agent_type: str | None, change: int) -> None:
        by_type = self.occupants.get(state)
        if by_type is None:
            by_type = self.occupants[state] = {}
        if count := by_type.get(agent_type, 0) + change:
            by_type[agent_type] = count
        else:
            del by_type[agent_type]
            if not by_type:
                del self.occupants[state]

    def forget(self, agent_id: str) -> None:
        if (agent := self.agents.pop(agent_id, None)) is not None:
            self._count(agent, -1)
            self.forgotten += 1
        self.last_message_at.pop(agent_id, None)
        self.acted_at.pop(agent_id, None)
        self.activity.pop(agent_id, None)
        self.measurements.pop(agent_id, None)
        self._command_indexes.pop(agent_id, None)
        self.unloaded_measurements.discard(agent_id)
        self._recent.pop(agent_id, None)
        sets = (self.absent, self.awaiting_heartbeat, self.queued, self.waiting_for_human)
        for agents in (*sets, self.waiting, self.dispatchable):
            agents.discard(agent_id)

    def replace(self, agent: AgentRecord) -> None:
        """Add an agent, or replace its record."""
        agent_id, old = agent.agent_id, self.agents.get(agent.agent_id)
        self.agents[agent_id] = agent
        agent_type = agent.registered_type
        if old is None:
            self._count(agent, 1)
        elif old.hold is not agent.hold or old.liveness is not agent.liveness or old.registered_type != agent_type:
            self._count(old, -1)
            self._count(agent, 1)
        elif old.state != agent.state:
            self._count_occupant(old.state, agent_type, -1)
            self._count_occupant(agent.state, agent_type, 1)
        if agent_id in self.waiting:
            self.dispatchable.add(agent_id)
        if old is None or old.liveness is not agent.liveness or old.lost_score != agent.lost_score:
            _include(self.absent, agent_id, agent.lost_score is not None)
            _include(self.awaiting_heartbeat, agent_id, agent.awaits_heartbeat)
        if old is None or old.waits_for != agent.waits_for:
            _include(self.waiting_for_human, agent_id, agent.waits_for == "human")

    def command_index(self, agent_id: str) -> CommandIndex:
        """Return the index of an agent's open commands, read-only."""
        return self._command_indexes.get(agent_id, NO_COMMANDS)

    def set_command_index(self, agent_id: str, index: CommandIndex) -> None:
        if len(index):
            self._command_indexes[agent_id] = index
        else:
            self._command_indexes.pop(agent_id, None)
        _include(self.queued, agent_id, bool(index.queued))
        _include(self.waiting, agent_id, bool(index.waiting))
        _include(self.dispatchable, agent_id, bool(index.waiting))


def _index(commands: Iterable[Command]) -> dict[str, CommandIndex]:
    """Index open commands by their agents."""
    indexes: dict[str, CommandIndex] = {}
    for command in commands:
        indexes.setdefault(command.agent_id, CommandIndex()).put(command)
    return indexes


def _include(members: set[str], agent_id: str, is_member: bool) -> None:  # noqa: FBT001 - the value to set
    if is_member:
        members.add(agent_id)
    else:
        members.discard(agent_id)
