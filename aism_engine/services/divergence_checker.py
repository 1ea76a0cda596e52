"""The witness: compares what agents say with what is seen of them, and accuses nobody of what we failed to see."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from aism_engine.domain.agents.activity import Activity
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.divergence import changes, may_have_changes
from aism_engine.domain.agents.divergence_decisions import ObservationWindow, decide_divergences, view_of
from aism_engine.domain.agents.heartbeats import AbsentHeartbeats
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.writer import one_by_one

log = structlog.get_logger(component="divergence_checker")

_CHUNK = 1000
"""Agents judged without a break: some 10 ms of the loop."""

_NOTHING = Activity()


class DivergenceChecker(Service):
    """Looks at so many agents at a time, in turns, so that its cost does not grow with the fleet: the round does."""

    name = "divergence_checker"
    polls = False

    def __init__(self, context: ServiceContext, *, interval_s: float, at_a_time: int) -> None:
        super().__init__(context)
        self._heartbeats = AbsentHeartbeats()
        self._interval_s = interval_s
        self._at_a_time = at_a_time
        self._fleet: Fleet | None = None
        self._looked_at = float("-inf")
        self._watched_from = 0.0
        self._round: list[str] = []
        """Who is still to be looked at before all are looked at again."""
        self._open: Counter[tuple[str, str]] = Counter()

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        self._notice_blindness(fleet, began)
        if not self._round:
            self._round = list(fleet.agents)
            self._heartbeats.retain(fleet.agents.keys())
        agent_ids, self._round = self._round[: self._at_a_time], self._round[self._at_a_time :]
        decisions: list[Decision] = []
        for start in range(0, len(agent_ids), _CHUNK):
            decisions += await self._look(fleet, agent_ids[start : start + _CHUNK])
        if not self._round:
            self._show()
        self._record_step(began, decisions)
        self._looked_at = began  # a step in which we stood still was a blind one, too
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._interval_s)

    def _notice_blindness(self, fleet: Fleet, now: float) -> None:
        """Begin anew after a spell in which we saw nothing: a start, a takeover, a stall, Redis away."""
        gap_s = now - self._looked_at
        if fleet is not self._fleet or gap_s > 2 * self._interval_s + 1:
            self._heartbeats.reset()
            self._fleet, self._watched_from = fleet, self._store.now
            self._round, self._open = [], Counter()
            log.info("observations_reset", gap_s=round(gap_s, 1) if gap_s < float("inf") else None)

    async def _look(self, fleet: Fleet, agent_ids: Sequence[str]) -> list[Decision]:
        agents = [agent for agent_id in agent_ids if (agent := fleet.agents.get(agent_id)) is not None]
        absent_states = self._policy.divergence.absent_states
        absent = [each for each in agents if each.liveness is Liveness.FRESH and each.declared == each.state]
        absent = [agent for agent in absent if agent.state in absent_states]
        asked_at = self._store.now
        scores = await self._store.scores([agent.agent_id for agent in absent])
        for agent in absent:
            if (score := scores[agent.agent_id]) is not None:
                self._heartbeats.observe(agent.agent_id, score, asked_at, self._store.now, agent.since)
        unread_s = self._clock.monotonic() - self._context.watermark.applied_until
        sight = ObservationWindow(self._store.now - unread_s, self._watched_from)
        activity_of, limits = fleet.activity.get, self._policy.divergence
        suspects = [agent for agent in agents if may_have_changes(agent, activity_of(agent.agent_id), limits)]
        doubted = [agent.agent_id for agent in suspects if self._is_news(fleet, agent, sight)]
        decisions = await self._commit(fleet, doubted, sight) if doubted else []
        for suspect in suspects:  # looked up again: a commit has exchanged those that have changed
            if (agent := fleet.agents.get(suspect.agent_id)) is not None and agent.divergences:
                self._open.update((rule, agent.type) for rule in agent.divergences)
        return decisions

    def _is_news(self, fleet: Fleet, agent: AgentRecord, sight: ObservationWindow) -> bool:
        activity, beats = fleet.activity.get(agent.agent_id, _NOTHING), self._heartbeats.get(agent.agent_id)
        return next(changes(view_of(agent, activity, sight, beats), self._policy.divergence), None) is not None

    async def _commit(self, fleet: Fleet, agent_ids: list[str], sight: ObservationWindow) -> list[Decision]:
        def decide_one(draft: Draft, agent_id: str) -> Decision:
            return decide_divergences(draft, self._policy, agent_id, sight, self._heartbeats.get(agent_id))

        return await self._writer.write(one_by_one("divergence", agent_ids, decide_one), on=fleet)

    def _show(self) -> None:
        """Tell how many are open, now that all have been looked at."""
        self._context.metrics.divergences_open.set(self._open)
        self._open = Counter()

    async def on_standby(self) -> None:
        self._context.metrics.divergences_open.clear()
