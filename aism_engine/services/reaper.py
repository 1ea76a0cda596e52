"""The reaper: agents that have been silent too long; never the ones we merely failed to hear."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog

from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.liveness import Assessment, Loss, ScoreRange, SilenceLimits, SilenceTracker
from aism_engine.domain.agents.presence import decide_lost, decide_returned, decide_silent
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.writer import Decide, Failures, one_by_one

T = TypeVar("T")
log = structlog.get_logger(component="reaper")

_REST: Final = 9
"""A scan is followed by so many times what it took: to read 100,000 silent agents takes a while."""
_LONGEST_REST: Final = 0.1
"""Of lost_after: no rest is longer, also where a scan took long because we were stopped in the middle of it."""


class Reaper(Service):
    """Calls agents lost, and back. Judges only what it has watched itself: see domain/agents/liveness.py."""

    name = "reaper"
    polls = False

    def __init__(
        self,
        context: ServiceContext,
        watch: SilenceTracker,
        limits: SilenceLimits,
        by_type: Mapping[str, SilenceLimits],
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
        self._longest_rest_s = _LONGEST_REST * min(limit.lost_s for limit in (limits, *by_type.values()))
        self._scanned_at = float("-inf")
        self._scanned_as: str | None = None
        self._took_s = 0.0
        self._mode = "normal"

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        server_now = await self._store.read_time()
        began = self._clock.monotonic()  # the same instant: a stop before it is seen, as one that has blinded us
        self._notice_blindness(began)
        # A clock that is ahead is looked at each time: its last beat would seem fresh for longer than it is.
        span = ScoreRange(server_now, self._narrowest_s)
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
        self._watch.confirmed_at = began - server_now + fleet.losses_confirmed_at
        assessment = self._watch.assess(
            watched,
            fleet.liveness[Liveness.FRESH],
            lambda agent_id: self._by_type.get(fleet.agents[agent_id].type, self._limits),
            lambda agent_id: began - server_now + fleet.last_message_at.get(agent_id, fleet.loaded_at),
            began,
            span=span,
            heard_until=self._context.watermark.applied_until,
        )
        self._tell(assessment)
        losses, returned = assessment.losses, await self._returned(fleet, outside)
        self._took_s = self._clock.monotonic() - began
        decisions = await self._settle(fleet, losses, returned, server_now)
        silent = {agent_id: at + server_now - began for agent_id, at in assessment.silent_since.items()}
        for loss in losses:
            silent.pop(loss.agent_id, None)
        decisions += await self._show_silent(fleet, silent)
        self._record_step(began, decisions)
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._rest_s)

    async def on_standby(self) -> None:
        self._tell(Assessment())

    async def _settle(self, fleet: Fleet, losses: list[Loss], returned: list[str], seen_at: float) -> list[Decision]:
        decisions: list[Decision] = []
        for gone, back in self._chunks(losses, returned):
            decide = partial(self._decide, fleet=fleet, losses=gone, returned=back, seen_at=seen_at)
            decisions += await self._write(fleet, decide)
        return decisions

    def _decide(
        self,
        draft: Draft,
        failures: Failures,
        *,
        fleet: Fleet,
        losses: Sequence[Loss],
        returned: Sequence[str],
        seen_at: float,
    ) -> list[Decision]:
        mute = [
            loss for loss in losses if fleet.last_message_at.get(loss.agent_id, 0.0) <= seen_at
        ]  # nor has said a word since
        about: list[Loss | str] = [*mute, *returned]
        return one_by_one("lost", about, self._decide_one, _leave)(draft, failures)

    def _decide_one(self, draft: Draft, about: Loss | str) -> Decision:
        if isinstance(about, str):
            return decide_returned(draft, self._policy, about)
        return decide_lost(draft, self._policy, about.agent_id, about.score, about.silent_s)

    async def _show_silent(self, fleet: Fleet, silent: Mapping[str, float]) -> list[Decision]:
        """Write down what has changed since it was last written: while nobody falls silent or returns, nothing."""
        fallen, over = list(silent.keys() - fleet.silent.keys()), list(fleet.silent.keys() - silent.keys())
        decisions: list[Decision] = []
        for some, others in self._chunks(fallen, over):
            since = {agent_id: silent[agent_id] for agent_id in some}
            decisions += await self._write(fleet, partial(_decide_silences, since=since, over=others))
        return decisions

    def _chunks(self, some: Sequence[T], others: Sequence[str]) -> Iterator[tuple[Sequence[T], Sequence[str]]]:
        for start in range(0, max(len(some), len(others)), self._chunk):
            yield some[start : start + self._chunk], others[start : start + self._chunk]

    async def _write(self, fleet: Fleet, decide: Decide) -> list[Decision]:
        """Write so much, for a commit holds up everybody else's. While it goes on as it should we are not blind."""
        began = self._clock.monotonic()
        decisions = await self._writer.write(decide, on=fleet)
        if (took_s := self._clock.monotonic() - began) <= self._tolerated_s:
            self._scanned_at += took_s
        return decisions

    def _notice_blindness(self, now: float) -> None:
        """Start the watch anew after a spell in which we saw nothing: a start, a takeover, a stall, Redis away."""
        token = self._context.leadership.token
        gap_s, stalled_s = now - self._scanned_at, self._stalled_s()
        if token != self._scanned_as or gap_s > self._rest_s + self._tolerated_s or stalled_s > self._tolerated_s:
            self._scanned_as = token
            self._reset(max(gap_s, stalled_s))

    def _reset(self, gap_s: float) -> None:
        self._watch.reset()
        log.info("observations_reset", gap_s=round(gap_s, 1) if gap_s < float("inf") else None)

    @property
    def _rest_s(self) -> float:
        return max(self._scan_interval_s, min(_REST * self._took_s, self._longest_rest_s))

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
        away = {agent_id: fleet.agents[agent_id].lost_score for agent_id in fleet.absent}
        scores = {agent_id: outside.get(agent_id) for agent_id in away}
        scores |= await self._scores([agent_id for agent_id, score in scores.items() if score is None])
        return [agent_id for agent_id, score in scores.items() if score is not None and score != away[agent_id]]

    def _tell(self, assessment: Assessment) -> None:
        self._context.metrics.set_fleet_mode(assessment.mode)
        self._context.metrics.agents_silent.set(assessment.silent)
        self._context.metrics.agents_skewed.labels("ahead").set(assessment.ahead)
        self._context.metrics.agents_skewed.labels("behind").set(assessment.behind)
        if assessment.mode != self._mode:
            self._mode = assessment.mode
            log.warning("fleet_mode", mode=assessment.mode, silent=assessment.silent)


def _is_watched(agent: AgentRecord | None) -> bool:
    return agent is not None and agent.liveness is Liveness.FRESH


def _leave(_draft: Draft, about: Loss | str, _failure: tuple[str, str]) -> Decision:
    """Leave one that has beaten meanwhile, or cannot be written: the next scan sees."""
    return Decision("returned" if isinstance(about, str) else "loss", "unchanged")


def _decide_silences(
    draft: Draft, failures: Failures, *, since: Mapping[str, float], over: Sequence[str]
) -> list[Decision]:
    if failures:  # the key is none of ours: it cannot be shown, and everything else goes on
        return [Decision("silent", "refused", failures[0][0])]
    return [decide_silent(draft, since, over)]
