"""The draft of the fleet that decisions change. It becomes the fleet when its commit is confirmed, else it is dropped.

So a decision whose write has failed leaves no trace in memory. Within a batch, a later decision sees the changes of
the earlier ones.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Final, TypeVar

import msgspec

from aism_engine.clock import iso
from aism_engine.domain.agents.activity import Activity
from aism_engine.domain.agents.agent import AgentRecord, Held, Hold
from aism_engine.domain.commands.command import Command
from aism_engine.domain.commands.command_index import CommandIndex
from aism_engine.domain.commands.group import Group
from aism_engine.domain.fleet import NOTHING, Fleet, Lookups, Pair, ThreadMember, TokenBucket

copy: Final = msgspec.structs.replace
"""Copies a struct in half the time of copy.copy: decisions copy each struct that they may change."""
MAX_RECENT: Final = 65_536
"""Maximum number of token buckets to remember, and of hop counts. Arbitrary: either kind takes up to 20 MB."""

K = TypeVar("K")
V = TypeVar("V")


class Changes(dict[K, V]):
    """The changed values. `find` looks here first, then in the fleet: several times faster than a ChainMap."""

    def __init__(self, committed: Mapping[K, V]) -> None:
        self._committed = committed

    def find(self, key: K) -> V | None:
        value = self.get(key)
        return self._committed.get(key) if value is None else value


class Draft:
    """The fleet with the changes of one batch. `now` is the instant of its decisions, by Redis `TIME`."""

    def __init__(self, fleet: Fleet, now: float, lookups: Lookups | None = None) -> None:
        self.now = now
        self.at = iso(now)
        self.lookups = lookups or Lookups()
        self._fleet = fleet
        self._agents: dict[str, AgentRecord | None] = {}
        self._removed: list[str] = []
        """Agents that were removed. They may have been added again since."""
        self._commands: dict[str, Command] = {}
        self._command_indexes: dict[str, CommandIndex] = {}
        self._seen_ids: dict[str, dict[str, None]] = {}
        """Ids of the messages of each agent that sent one in this batch, in order."""
        self._activity: dict[str, Activity] = {}
        self._active_agents: set[str] = set()
        self.losses_confirmed = False
        """Whether an operator confirmed in this batch that the silent agents are gone."""
        self._measurements: dict[str, dict[str, float]] = {}
        self.new_mail: Counter[str] = Counter()
        """Number of messages to each agent in this batch."""
        self.token_buckets = Changes[Pair, TokenBucket](fleet.token_buckets)
        self.hops = Changes[ThreadMember, int](fleet.hops)
        self._size_change = 0
        self.request_replies: dict[str, bytes] = {}
        """Replies to the requests of this batch, by request id, in the form of `Lookups.request_replies`."""
        self.held: Held = fleet.held
        self._groups: dict[str, Group] = {}
        self.silences: dict[str, float | None] = {}
        """When each agent fell silent; None: the agent is no longer silent."""
        self._last_seq = fleet.last_seq

    @property
    def size(self) -> int:
        return len(self._fleet.agents) + self._size_change

    def agent(self, agent_id: str) -> AgentRecord | None:
        """Return an agent that may be changed, or None if it is not known."""
        if agent_id in self._agents:
            return self._agents[agent_id]
        agent = self._fleet.agents.get(agent_id)
        if agent is not None:
            agent = self._agents[agent_id] = copy(agent)
        return agent

    def add_agent(self, agent: AgentRecord) -> None:
        self._agents[agent.agent_id] = agent
        self._size_change += 1

    def remove_agent(self, agent_id: str) -> None:
        self._agents[agent_id] = None
        self._removed.append(agent_id)
        self._measurements[agent_id] = {}
        self._activity.pop(agent_id, None)
        self._active_agents.discard(agent_id)
        self._size_change -= 1

    def command(self, command_id: str) -> Command | None:
        """Return a command that may be changed: open, ended recently, or read by the lookups of this batch."""
        command = self._commands.get(command_id)
        if command is None:
            fleet = self._fleet
            found = fleet.commands.get(command_id) or fleet.recently_ended.get(command_id)
            if found is None:
                found = self.lookups.commands.get(command_id)
            if found is not None:
                command = self._commands[command_id] = copy(found)
        return command

    def add_command(self, command: Command) -> None:
        self._commands[command.command_id] = command
        self._last_seq = max(self._last_seq, command.seq)
        self.index(command)

    def index(self, command: Command) -> None:
        """Update the index of the agent's open commands after a change of one of them."""
        agent_id = command.agent_id
        index = self._command_indexes.get(agent_id)
        if index is None:
            index = self._command_indexes[agent_id] = copy(self._fleet.command_index(agent_id))
        index.put(command)

    def commands_of(self, agent_id: str) -> CommandIndex:
        """Return the index of an agent's open commands, read-only."""
        index = self._command_indexes.get(agent_id)
        return self._fleet.command_index(agent_id) if index is None else index

    def next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq

    def group(self, group_id: str) -> Group | None:
        """Return an open group that may be changed."""
        group = self._groups.get(group_id)
        if group is None and (found := self._fleet.groups.get(group_id)) is not None:
            group = self._groups[group_id] = copy(found)
        return group

    def add_group(self, group: Group) -> None:
        self._groups[group.group_id] = group

    def members(self, group_id: str) -> list[str]:
        """Return the ids of the open commands of a group."""
        commands = (self._fleet.commands | self._commands).values()
        return [each.command_id for each in commands if each.group_id == group_id and each.open]

    def agents(self) -> Iterable[AgentRecord]:
        """Iterate over all agents, read-only."""
        changed = self._agents
        for agent_id, agent in self._fleet.agents.items():
            found = changed.get(agent_id, agent)
            if found is not None:
                yield found
        yield from (each for each in changed.values() if each and each.agent_id not in self._fleet.agents)

    def occupants(self, state: str, belongs: Callable[[str | None], bool]) -> int:
        """Count the agents in a state. `belongs` gets an agent's `registered_type` and tells whether to count it."""
        committed = self._fleet.agents
        count = sum(count for each, count in self._fleet.occupants.get(state, {}).items() if belongs(each))
        for agent_id, agent in self._agents.items():
            for each, change in ((committed.get(agent_id), -1), (agent, 1)):
                if each is not None and each.state == state and belongs(each.registered_type):
                    count += change
        return count

    def is_paused(self, agent: AgentRecord) -> bool:
        return Hold.PAUSE in (agent.hold, self.held.hold)

    def is_draining(self, agent: AgentRecord) -> bool:
        return Hold.DRAIN in (agent.hold, self.held.hold)

    def has_seen(self, agent_id: str, message_id: str) -> bool:
        return message_id in self._seen_ids.get(agent_id, NOTHING) or self._fleet.has_seen(agent_id, message_id)

    def note_message(self, agent_id: str, message_id: str | None) -> None:
        """Record a sign of life. If it was a message with an id, a second copy of the message is a duplicate."""
        ids = self._seen_ids.get(agent_id)
        if ids is None:
            ids = self._seen_ids[agent_id] = {}
        if message_id is not None:
            ids[message_id] = None

    def note_activity(self, agent_id: str) -> None:
        """Record that the agent was active now: it took a command, or sent a response other than a heartbeat."""
        self._active_agents.add(agent_id)

    def activity(self, agent_id: str) -> Activity:
        """Return the activity of an agent, which may be changed."""
        activity = self._activity.get(agent_id)
        if activity is None:
            known = None if agent_id in self._removed else self._fleet.activity.get(agent_id)
            activity = self._activity[agent_id] = Activity() if known is None else copy(known)
        return activity

    def acted_at(self, agent_id: str) -> float:
        """Return when the agent was last active; 0: not since the fleet was loaded."""
        return self.now if agent_id in self._active_agents else self._fleet.acted_at.get(agent_id, 0.0)

    def measurements(self, agent_id: str) -> Mapping[str, float]:
        """Return the latest value of each measurement name of an agent, read-only."""
        fleet = self._fleet
        if (changed := self._measurements.get(agent_id)) is not None:
            return changed
        if agent_id in fleet.unloaded_measurements:
            return self.lookups.measurements.get(agent_id, NOTHING)
        return fleet.measurements.get(agent_id, NOTHING)

    def measure(self, agent_id: str, values: Mapping[str, float]) -> None:
        self._measurements[agent_id] = {**self.measurements(agent_id), **values}

    @property
    def silent_count(self) -> int:
        """Number of agents that are marked as silent in the committed fleet, without the changes of this batch."""
        return len(self._fleet.silent)

    def unread_mail(self, agent_id: str) -> int:
        """Count the unread messages of an agent, which must be in the lookups."""
        return self.lookups.unread.get(agent_id, 0) + self.new_mail[agent_id]

    def seen_ids(self) -> list[tuple[str, str]]:
        """Return (agent id, message id) of each message of this batch, in order for each agent."""
        return [(agent_id, message_id) for agent_id, ids in self._seen_ids.items() for message_id in ids]

    def apply(self) -> None:
        """Apply the changes to the fleet, once their commit is confirmed."""
        fleet = self._fleet
        self._apply_agents()
        self._apply_commands()
        for agent_id, since in self.silences.items():
            if since is None:
                fleet.silent.pop(agent_id, None)
            else:
                fleet.silent[agent_id] = since
        if self.held != fleet.held:
            fleet.held = self.held
            fleet.dispatchable |= fleet.waiting
        if self.losses_confirmed:
            fleet.losses_confirmed_at = self.now
        _keep_recent(fleet.token_buckets, self.token_buckets)
        _keep_recent(fleet.hops, self.hops)

    def _apply_agents(self) -> None:
        """Note what the agents did, replace their records, and forget the agents that the batch has removed."""
        fleet, now = self._fleet, self.now
        for agent_id in self._removed:
            fleet.forget(agent_id)
        for agent_id, ids in self._seen_ids.items():
            fleet.mark_seen(agent_id, ids)
        fleet.last_message_at.update(dict.fromkeys(self._seen_ids, now))
        fleet.acted_at.update(dict.fromkeys(self._active_agents, now))
        fleet.activity.update(self._activity)
        fleet.measurements.update(self._measurements)
        fleet.unloaded_measurements -= self._measurements.keys()
        for agent in self._agents.values():
            if agent is not None:
                fleet.replace(agent)
        for agent_id in self._removed:
            if self._agents[agent_id] is None:
                fleet.forget(agent_id)  # again, with what the agent did in this batch

    def _apply_commands(self) -> None:
        fleet = self._fleet
        fleet.last_seq = self._last_seq
        for agent_id, index in self._command_indexes.items():
            fleet.set_command_index(agent_id, index)
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


def _keep_recent(known: MutableMapping[K, V], changed: Mapping[K, V]) -> None:
    """Add the changed values to the known ones, and forget those that were not used for the longest time."""
    for key, value in changed.items():
        known.pop(key, None)  # so that the key moves to the end
        known[key] = value
        if len(known) > MAX_RECENT:
            del known[next(iter(known))]
