"""The reaper: agents that have been silent too long; never the ones we merely failed to hear."""

import asyncio
from collections.abc import Mapping

import structlog

from aism_engine.model.decisions.common import Decision
from aism_engine.model.decisions.signs import decide_loss, decide_return
from aism_engine.model.fleet import Agent, Draft, Liveness
from aism_engine.model.liveness import Assessment, Limits, Watch
from aism_engine.services.base import Context, Service
from aism_engine.store.writer import Failures

log = structlog.get_logger(component="reaper")


class Reaper(Service):
    """Calls agents lost, and back. Judges only what it has watched itself: see model/liveness.py."""

    name = "reaper"

    def __init__(
        self,
        context: Context,
        watch: Watch,
        limits: Limits,
        by_type: Mapping[str, Limits],
        *,
        scan_interval_s: float,
        chunk: int,
    ) -> None:
        super().__init__(context)
        self._watch = watch
        self._limits = limits
        self._by_type = by_type
        self._scan_interval_s = scan_interval_s
        self._chunk = chunk
        self._scanned_at = float("-inf")
        self._scanned_as: str | None = None
        self._mode = "normal"

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        self._notice_blindness(began)
        server_now = await self._store.read_time()
        narrowest = min(limit.silent_s for limit in (self._limits, *self._by_type.values()))
        outside = await self._store.scores_outside(server_now - narrowest, server_now + narrowest, self._chunk)
        away = [agent for agent in fleet.agents.values() if agent.lost_score is not None]
        watched = {agent_id: score for agent_id, score in outside.items() if _is_watched(fleet.agents.get(agent_id))}
        assessment = self._watch.assess(
            watched,
            sum(agent.liveness is Liveness.FRESH for agent in fleet.agents.values()),
            lambda agent_id: self._by_type.get(fleet.agents[agent_id].type, self._limits),
            lambda agent_id: began - server_now + fleet.spoke.get(agent_id, fleet.loaded_at),
            began,
            span_s=narrowest,
            heard_until=self._context.backlog.passed,
        )
        self._tell(assessment)
        returned = await self._returned(away)
        decisions: list[Decision] = []
        if assessment.losses or returned:
            decisions = await self._writer.write(
                lambda draft, failures: self._decide(draft, assessment, returned, failures), on=fleet
            )
        self._worked(began, decisions)
        self._scanned_at = self._clock.monotonic()
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._scan_interval_s)

    async def stand_by(self) -> None:
        self._mode = "normal"
        self._context.metrics.set_mode(self._mode)
        self._context.metrics.silent.set(0)

    def _decide(self, draft: Draft, assessment: Assessment, returned: list[str], failures: Failures) -> list[Decision]:
        losses = [
            decide_loss(draft, self._rules, loss.agent_id, loss.score, loss.silent_s)
            if number not in failures
            else Decision("loss", "unchanged")  # it has beaten meanwhile, or cannot be written: the next scan sees
            for number, loss in enumerate(assessment.losses)
        ]
        return losses + [
            decide_return(draft, self._rules, agent_id) if number not in failures else Decision("return", "unchanged")
            for number, agent_id in enumerate(returned, len(losses))
        ]

    def _notice_blindness(self, now: float) -> None:
        """Start the watch anew after a spell in which we saw nothing: a start, a takeover, a stall, Redis away."""
        token = self._context.leadership.token
        gap_s = now - self._scanned_at
        if token != self._scanned_as or gap_s > 2 * self._scan_interval_s + 1:
            self._watch.reset()
            self._scanned_as = token
            log.info("watch_reset", gap_s=round(gap_s, 1) if gap_s < float("inf") else None)

    async def _returned(self, away: list[Agent]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(away), self._chunk):
            page = {agent.agent_id: agent.lost_score for agent in away[start : start + self._chunk]}
            scores = await self._store.scores(list(page))
            found += (agent_id for agent_id, score in scores.items() if score is not None and score != page[agent_id])
        return found

    def _tell(self, assessment: Assessment) -> None:
        self._context.metrics.set_mode(assessment.mode)
        self._context.metrics.silent.set(assessment.silent)
        if assessment.mode != self._mode:
            self._mode = assessment.mode
            log.warning("fleet_mode", mode=assessment.mode, silent=assessment.silent)


def _is_watched(agent: Agent | None) -> bool:
    return agent is not None and agent.liveness is Liveness.FRESH
