"""Divergence checker: compares what agents declare with what the engine observes."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import structlog

from aism_engine.domain.agents.activity import AbsentHeartbeat, Activity, observe_heartbeat
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.divergence import (
    AgentObservation,
    ObservationWindow,
    changes,
    decide_divergences,
    may_have_changes,
)
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.policy import DivergenceSettings, Policy
from aism_engine.services.base import Service, ServiceContext, agents_in_batches

log = structlog.get_logger(component="divergence_checker")

_BATCH: Final = 250
"""Agents per batch. A batch takes a few milliseconds; other tasks run between two batches."""
_NO_ACTIVITY: Final = Activity()


class DivergenceChecker(Service):
    """Checks `batch` agents per step. The cost per step is constant; a full pass takes longer for a larger fleet."""

    name = "divergence_checker"
    times_idle_steps = True

    def __init__(self, context: ServiceContext, settings: DivergenceSettings) -> None:
        super().__init__(context, settings.poll_interval)
        self._settings = settings
        self._heartbeats: dict[str, AbsentHeartbeat] = {}
        """Heartbeats of agents that are fresh although they declare one of `divergence.absent_states`, by agent id."""
        self._fleet: Fleet | None = None
        self._checked_at = float("-inf")
        self._observed_from = 0.0
        self._remaining: list[str] = []
        """Agents that the current pass has not checked yet."""
        self._open: Counter[tuple[str, str]] = Counter()
        """Open divergences that the current pass has found, by rule and agent type."""

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        started_at = self._clock.monotonic()
        self._reset_after_blind_spell(fleet, started_at)
        if not self._remaining:
            self._remaining = list(fleet.agents)
            self._heartbeats = {name: each for name, each in self._heartbeats.items() if name in fleet.agents}
        batch = self._settings.batch
        agent_ids, self._remaining = self._remaining[:batch], self._remaining[batch:]
        decisions: list[Decision] = []
        async for agents in agents_in_batches(fleet, agent_ids, _BATCH):
            decisions += await self._check(fleet, agents)
        if not self._remaining:
            self._context.metrics.divergences_open.set(self._open)
            self._open = Counter()
        self._record_step(started_at, decisions)
        self._checked_at = started_at  # the start, so that a stall during the step counts as a blind spell
        return False

    async def release(self) -> None:
        self._context.metrics.divergences_open.clear()

    def _reset_after_blind_spell(self, fleet: Fleet, now: float) -> None:
        """Reset the observations after a start, a takeover, a stall, or an outage of Redis."""
        gap_s = now - self._checked_at
        if fleet is not self._fleet or gap_s > 2 * self._settings.poll_interval + 1:
            self._heartbeats.clear()
            self._fleet, self._observed_from = fleet, self._store.now
            self._remaining, self._open = [], Counter()
            log.info("observations_reset", gap_s=round(gap_s, 1) if gap_s < float("inf") else None)

    async def _check(self, fleet: Fleet, agents: Sequence[AgentRecord]) -> list[Decision]:
        limits = self._policy.divergence
        await self._observe_heartbeats([agent for agent in agents if _declares(agent, limits.absent_states)])
        unread_s = self._clock.monotonic() - self._context.watermark.applied_until
        window = ObservationWindow(self._observed_from, self._store.now - unread_s)
        candidates = [agent for agent in agents if may_have_changes(agent, fleet.activity.get(agent.agent_id), limits)]
        changed = [agent.agent_id for agent in candidates if self._has_changes(fleet, agent, window)]

        def decide_one(draft: Draft, policy: Policy, agent_id: str) -> Decision:
            return decide_divergences(draft, policy, agent_id, window, self._heartbeats.get(agent_id))

        decisions = await self._commit_each(fleet, "divergence", changed, decide_one)
        for candidate in candidates:  # read again, because the commit has replaced the changed agents
            if (agent := fleet.agents.get(candidate.agent_id)) is not None:
                self._open.update((rule, agent.type) for rule in agent.divergences)
        return decisions

    async def _observe_heartbeats(self, agents: Sequence[AgentRecord]) -> None:
        """Observe the heartbeats of agents that declare one of `divergence.absent_states`."""
        asked_at = self._store.now
        scores = await self._store.heartbeat_scores([agent.agent_id for agent in agents])
        for agent in agents:
            if (score := scores[agent.agent_id]) is not None:
                observe_heartbeat(self._heartbeats, agent.agent_id, score, asked_at, self._store.now, agent.since)

    def _has_changes(self, fleet: Fleet, agent: AgentRecord, window: ObservationWindow) -> bool:
        seen = AgentObservation(
            agent=agent,
            activity=fleet.activity.get(agent.agent_id, _NO_ACTIVITY),
            acted_at=fleet.acted_at.get(agent.agent_id, 0.0),
            window=window,
            heartbeat=self._heartbeats.get(agent.agent_id),
            has_taken_command=bool(fleet.command_index(agent.agent_id).delivered),
        )
        return any(True for _ in changes(seen, self._policy.divergence))


def _declares(agent: AgentRecord, states: Sequence[str]) -> bool:
    return agent.liveness is Liveness.FRESH and agent.declared == agent.state and agent.state in states
