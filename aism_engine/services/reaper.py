"""The reaper: agents that have been silent too long; never the ones we merely failed to hear."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from aism_engine.model.decisions.common import Decision
from aism_engine.model.decisions.signs import decide_loss, decide_return
from aism_engine.model.fleet import Agent, Draft, Fleet, Liveness
from aism_engine.model.liveness import Assessment, Limits, Loss, Span, Watch
from aism_engine.services.base import Context, Service
from aism_engine.store.writer import Failures

log = structlog.get_logger(component="reaper")

_REST: Final = 9
"""A scan is followed by so many times what it took, at least: to read 100,000 silent agents takes a while."""


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
        stalled_s: Callable[[], float],
    ) -> None:
        """`stalled_s` gives for how long the loop stood still at worst, since it was last asked."""
        super().__init__(context)
        self._watch = watch
        self._limits = limits
        self._by_type = by_type
        self._scan_interval_s = scan_interval_s
        self._chunk = chunk
        self._stalled_s = stalled_s
        self._narrowest_s = min(limit.silent_s for limit in (limits, *by_type.values()))
        self._scanned_at = float("-inf")
        self._scanned_as: str | None = None
        self._took_s = 0.0
        self._mode = "normal"

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        self._notice_blindness(began)
        server_now = await self._store.read_time()
        # A clock that is ahead is looked at each time: its last beat would seem fresh for longer than it is.
        span = Span(server_now, self._narrowest_s)
        outside, slowest_s = await self._store.scores_outside(span.low, span.now, self._chunk)
        self._scanned_at = self._clock.monotonic()
        if slowest_s > self._tolerated_s:  # the server stood still meanwhile, or the way to it: nobody could beat
            self._reset(slowest_s)
        watched = {agent_id: score for agent_id, score in outside.items() if _is_watched(fleet.agents.get(agent_id))}
        if overtaken := self._watch.overtaken(watched, span):
            watched |= {
                agent_id: score
                for agent_id, score in (await self._scores(list(overtaken))).items()
                if score == overtaken[agent_id] and _is_watched(fleet.agents.get(agent_id))
            }
        assessment = self._watch.assess(
            watched,
            fleet.liveness[Liveness.FRESH],
            lambda agent_id: self._by_type.get(fleet.agents[agent_id].type, self._limits),
            lambda agent_id: began - server_now + fleet.spoke.get(agent_id, fleet.loaded_at),
            began,
            span=span,
            heard_until=self._context.backlog.passed,
        )
        self._tell(assessment)
        losses = assessment.losses[: self._chunk]  # the others at the next scan: a commit holds up everybody else's
        returned = await self._returned(fleet, outside)
        self._took_s = self._clock.monotonic() - began
        decisions: list[Decision] = []
        if losses or returned:
            decisions = await self._writer.write(
                lambda draft, failures: self._decide(draft, losses, returned, failures), on=fleet
            )
        self._worked(began, decisions)
        return False

    async def wait(self) -> None:
        await asyncio.sleep(max(self._scan_interval_s, _REST * self._took_s))

    async def stand_by(self) -> None:
        self._tell(Assessment("normal", 0))

    def _decide(self, draft: Draft, losses: list[Loss], returned: list[str], failures: Failures) -> list[Decision]:
        decisions = [
            decide_loss(draft, self._rules, loss.agent_id, loss.score, loss.silent_s)
            if number not in failures
            else Decision("loss", "unchanged")  # it has beaten meanwhile, or cannot be written: the next scan sees
            for number, loss in enumerate(losses)
        ]
        return decisions + [
            decide_return(draft, self._rules, agent_id) if number not in failures else Decision("return", "unchanged")
            for number, agent_id in enumerate(returned, len(losses))
        ]

    def _notice_blindness(self, now: float) -> None:
        """Start the watch anew after a spell in which we saw nothing: a start, a takeover, a stall, Redis away."""
        token = self._context.leadership.token
        gap_s, stalled_s = now - self._scanned_at, self._stalled_s()
        expected_s = max(self._scan_interval_s, _REST * self._took_s)
        if token != self._scanned_as or gap_s > expected_s + self._tolerated_s or stalled_s > self._tolerated_s:
            self._scanned_as = token
            self._reset(max(gap_s, stalled_s))

    def _reset(self, gap_s: float) -> None:
        self._watch.reset()
        log.info("watch_reset", gap_s=round(gap_s, 1) if gap_s < float("inf") else None)

    @property
    def _tolerated_s(self) -> float:
        """How long nothing may be seen without that being a blind spell."""
        return self._scan_interval_s + 1

    async def _scores(self, agent_ids: list[str]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for start in range(0, len(agent_ids), self._chunk):
            found |= await self._store.scores(agent_ids[start : start + self._chunk])
        return found

    async def _returned(self, fleet: Fleet, outside: Mapping[str, float]) -> list[str]:
        """Find who is away, and has beaten since: by what was read, and where that lacks it, by its own score."""
        away = {agent_id: fleet.agents[agent_id].lost_score for agent_id in fleet.away}
        scores = {agent_id: outside.get(agent_id) for agent_id in away}
        scores |= await self._scores([agent_id for agent_id, score in scores.items() if score is None])
        return [agent_id for agent_id, score in scores.items() if score is not None and score != away[agent_id]][
            : self._chunk
        ]

    def _tell(self, assessment: Assessment) -> None:
        self._context.metrics.set_mode(assessment.mode)
        self._context.metrics.silent.set(assessment.silent)
        self._context.metrics.skewed.labels("ahead").set(assessment.ahead)
        self._context.metrics.skewed.labels("behind").set(assessment.behind)
        if assessment.mode != self._mode:
            self._mode = assessment.mode
            log.warning("fleet_mode", mode=assessment.mode, silent=assessment.silent)


def _is_watched(agent: Agent | None) -> bool:
    return agent is not None and agent.liveness is Liveness.FRESH
