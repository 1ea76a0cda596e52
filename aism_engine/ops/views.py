"""What the inspector returns: agents, members of groups, and the overview of a fleet."""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct, field

from aism_engine.domain.agents.agent import AgentRecord, Held, Liveness
from aism_engine.domain.commands.command import Command
from aism_engine.store.lease import LeaseStatus

STUCK_RULES: Final = frozenset({"idle_at_work", "never_acks", "never_finishes"})
"""Divergence rules that find an agent which lives, but does not work."""


class Problem(StrEnum):
    """What may need an operator. An agent can have several of them."""

    LOST = "lost"
    SILENT = "silent"
    STUCK = "stuck"
    """It lives, but does not work: it has a divergence of one of `STUCK_RULES`."""
    DIVERGING = "diverging"
    """It has a divergence of another rule."""
    WAITING_FOR_HUMAN = "waiting_for_human"
    HELD = "held"


class AgentView(Struct, frozen=True, kw_only=True):
    """An agent: the engine's record of it, its open commands, and what it sent."""

    agent: AgentRecord
    heartbeat_age_s: float | None = None
    """Age of its last heartbeat: Redis `TIME` minus the timestamp that the agent wrote.

    None if there is no heartbeat, or if its score is not a timestamp.
    """
    queued: int | None = None
    """Commands in its list that it has not taken yet; None if the key is not a list."""
    commands: list[Command] = field(default_factory=list)
    """The open commands, oldest first."""
    measurements: dict[str, float] = field(default_factory=dict)
    marked_silent_at: float | None = None
    """When the engine marked the agent as silent, in unix seconds by Redis `TIME`."""

    @property
    def silent_since(self) -> float | None:
        """`marked_silent_at` if the agent is silent, else None.

        Silence is not part of the agent's record. In the record of a silent agent, `liveness` is `fresh`.
        """
        return self.marked_silent_at if self.agent.liveness is Liveness.FRESH else None

    @property
    def liveness(self) -> Liveness:
        return self.agent.shown_liveness(is_silent=self.silent_since is not None)

    @property
    def problems(self) -> list[Problem]:
        agent, rules = self.agent, self.agent.divergences.keys()
        found = {
            Problem.LOST: agent.liveness is Liveness.LOST,
            Problem.SILENT: self.liveness is Liveness.SILENT,
            Problem.STUCK: not rules.isdisjoint(STUCK_RULES),
            Problem.DIVERGING: bool(rules - STUCK_RULES),
            Problem.WAITING_FOR_HUMAN: agent.waits_for == "human",
            Problem.HELD: bool(agent.hold),
        }
        return [problem for problem, has_it in found.items() if has_it]


class Member(Struct, frozen=True):
    """An open member of a group. Without a `status`, the request has not been applied to it yet."""

    group_id: str
    agent_id: str | None = None
    command_id: str | None = None
    status: str | None = None

    @property
    def name(self) -> str:
        return self.agent_id or self.command_id or ""


class Overview(Struct, frozen=True, kw_only=True):
    """A whole fleet at one time."""

    lease: LeaseStatus
    fleet_hold: Held
    agents: list[AgentView]
    """Sorted by id."""
    queues: dict[str, int]
    rates: dict[str, float]
    """Recent facts per second, by event."""
    commands: list[Command]
    """The open commands, oldest first."""

    @property
    def problems(self) -> dict[Problem, list[AgentView]]:
        """The agents with each problem: an empty list for a problem that no agent has."""
        found: dict[Problem, list[AgentView]] = {problem: [] for problem in Problem}
        for view in self.agents:
            for problem in view.problems:
                found[problem].append(view)
        return found

    @property
    def counts(self) -> Mapping[str, Any]:
        """Counts of agents and of open commands, largest first, and `queues` and `rates`. The names are published."""
        records = [view.agent for view in self.agents]
        return {
            "waiting_for": _count(agent.waits_for for agent in records if agent.waits_for),
            "by_type": _count(agent.type for agent in records),
            "by_state": _count(agent.state for agent in records),
            "by_liveness": _count(view.liveness.value for view in self.agents),
            "queues": self.queues,
            "rates": self.rates,
            "commands": _count(command.status.value for command in self.commands),
        }

    def slowest(self, limit: int) -> list[Command]:
        """Return the open commands that were accepted first, without those scheduled for later."""
        return [command for command in self.commands if command.bucket != "scheduled"][:limit]


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
