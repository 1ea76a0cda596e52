"""Reaper: marks agents as lost when they have been silent for too long and the engine could have observed them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import structlog

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.liveness import decide_lost, decide_returned, decide_silent
from aism_engine.domain.agents.silence import Assessment, Loss, Scan, ScoreRange, SilenceTracker, Slices, sliced
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.policy import LivenessSettings
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.records import chunks
from aism_engine.store.writer import Decide, Failure, Failures, decide_each

T = TypeVar("T")
log = structlog.get_logger(component="reaper")

_REST_FACTOR: Final = 9
"""Rest after a scan, in multiples of its duration, so that scans take at most a tenth of the time."""
_MAX_REST_SHARE: Final = 0.1
"""Longest rest, as a share of `lost_after`.

The limit is needed if the process is suspended during a scan: the measured duration of the scan is then far too long.
"""


class Reaper(Service):
    """Marks agents as lost, brings them back, lists the silent ones. The rules: domain/agents/silence.py."""

    name = "reaper"
    times_idle_steps = True

    def __init__(
        self, context: ServiceContext, settings: LivenessSettings, take_max_lag_s: Callable[[], float]
    ) -> None:
        """`take_max_lag_s` returns the longest stall of the event loop since the last call."""
        super().__init__(context)
        self._settings = settings
        self._take_max_lag_s = take_max_lag_s
        self._tracker = SilenceTracker(settings)
        limits = (settings, *settings.by_type.values())
        self._range_width_s = min(each.silent_after for each in limits)
        self._max_rest_s = _MAX_REST_SHARE * min(each.lost_after for each in limits)
        self._max_gap_s = settings.scan_interval + 1
        """A longer time without observation is a blind spell."""
        self._scanned_at = float("-inf")
        self._token: str | None = None
        self._scan_s = 0.0
        self._mode = "normal"

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        self._context.watermark.request_peek()  # silence is measured only up to the last peek
        server_now = await self._store.read_time()
        # The clock is read after the reply: a pause of the process during the call counts as a blind spell.
        started_at = self._clock.monotonic()
        self._reset_after_blind_spell(started_at)
        score_range = ScoreRange(server_now, self._range_width_s)
        # These are collected before the scores are read, so that a score that differs from them is newer.
        absent = await self._in_slices(_lost_scores(fleet))
        scores = await self._read_scores(score_range)
        scan = Scan(
            scores=await self._watched_scores(fleet, scores, score_range),
            watched=fleet.liveness[Liveness.FRESH],
            score_range=score_range,
            now=started_at,
            observed_until=self._context.watermark.applied_until,
            # When an operator last confirmed the losses: `Scan` says what follows from it.
            confirmed_at=started_at - server_now + fleet.losses_confirmed_at,
        )
        assessment = await self._in_slices(
            self._tracker.assess(
                scan,
                lambda agent_id: agent.type if (agent := fleet.agents.get(agent_id)) is not None else "",
                lambda agent_id: started_at - server_now + fleet.last_message_at.get(agent_id, fleet.loaded_at),
            )
        )
        self._report(assessment)
        returned = await self._returned(absent, scores)
        self._scan_s = self._clock.monotonic() - started_at
        decisions = await self._update_presence(fleet, [*assessment.losses, *returned], server_now)
        for loss in assessment.losses:
            assessment.silent_since.pop(loss.agent_id, None)
        decisions += await self._update_silent(fleet, assessment.silent_since, server_now - started_at)
        self._record_step(started_at, decisions)
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._rest_s)

    async def release(self) -> None:
        self._mode = "normal"  # not logged: the agents have not recovered, this engine has stopped assessing them
        self._report(Assessment())

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read_scores(self, score_range: ScoreRange) -> dict[str, float]:
        """Read the scores outside the range: the old ones, and those in the future.

        An agent with a score in the future would otherwise seem fresh until that time has passed.
        """
        batch = self._settings.batch
        scores, slowest_s = await self._store.heartbeats_outside(score_range.low, score_range.now, batch)
        self._scanned_at = self._clock.monotonic()
        if slowest_s > self._max_gap_s:  # the server or the network stalled: no agent could send a heartbeat
            self._reset(slowest_s)
        return scores

    async def _watched_scores(
        self, fleet: Fleet, scores: Mapping[str, float], score_range: ScoreRange
    ) -> dict[str, float]:
        """Return the scores of watched agents that are outside the range, and some that are inside it.

        `scores` are those outside. A score inside is returned if it was in the future at an earlier scan and has not
        changed: its agent has sent no heartbeat since then.
        """
        watched = await self._in_slices(_watched(fleet, scores))
        if known := await self._in_slices(self._tracker.no_longer_ahead(watched, score_range)):
            watched |= {
                agent_id: score
                for agent_id, score in (await self._store.heartbeat_scores(known)).items()
                if score == known[agent_id] and _is_watched(fleet.agents.get(agent_id))
            }
        return watched

    async def _returned(self, absent: Mapping[str, str | None], scores: Mapping[str, float]) -> list[str]:
        """Return the absent agents whose score has changed since they were lost or left."""
        returned: list[str] = []
        for some in sliced(absent.items()):
            found = {agent_id: scores.get(agent_id) for agent_id, _ in some}
            unread = [agent_id for agent_id, score in found.items() if score is None]
            found |= await self._store.heartbeat_scores(unread)
            for agent_id, lost_score in some:
                if (score := found[agent_id]) is not None and repr(score) != lost_score:
                    returned.append(agent_id)
            await asyncio.sleep(0)
        return returned

    # --- deciding and writing ---------------------------------------------------------------------------------------

    async def _update_presence(self, fleet: Fleet, changes: Sequence[Loss | str], read_at: float) -> list[Decision]:
        """Commit the changes: a `Loss` marks its agent as lost, and an agent id brings that agent back."""

        def decide_one(draft: Draft, change: Loss | str) -> Decision:
            if isinstance(change, str):
                return decide_returned(draft, self._policy, change)
            if fleet.last_message_at.get(change.agent_id, 0.0) > read_at:  # a message since the scan: it is not lost
                return Decision("lost", "unchanged")
            return decide_lost(draft, self._policy, change.agent_id, change.score, change.silent_s)

        def decide_failed(draft: Draft, change: Loss | str, failure: Failure) -> Decision:
            """Decide on an agent whose commit failed: its score has changed, or one of its keys has the wrong type.

            The agent is skipped, and the next scan decides again. One case is not skipped: if only the command list has
            the wrong type, the agent is marked as lost, and nothing is written to the list.
            """
            if isinstance(change, str) or failure.keys != (self._store.keys.commands(change.agent_id),):
                return Decision("returned" if isinstance(change, str) else "lost", "unchanged")
            decision, in_list = decide_one(draft, change), fx.WithdrawCommand | fx.PushCancel
            decision.effects[:] = [effect for effect in decision.effects if not isinstance(effect, in_list)]
            return decision

        decisions: list[Decision] = []
        for some in chunks(changes, self._settings.batch):
            decisions += await self._write(fleet, decide_each("lost", some, decide_one, decide_failed))
        return decisions

    async def _update_silent(self, fleet: Fleet, silent: Mapping[str, float], offset_s: float) -> list[Decision]:
        """Write which agents have fallen silent since the last update, and which are silent no longer.

        `silent` has instants of the monotonic clock; the server's clock is ahead of it by `offset_s`.
        """
        decisions: list[Decision] = []
        for some in chunks(await self._in_slices(_differing(silent, fleet.silent)), self._settings.batch):

            def decide(draft: Draft, failures: Failures, changed: Sequence[str] = some) -> list[Decision]:
                if failures:  # the key has another type: silent agents cannot be listed, the rest continues
                    return [Decision("silent", "refused", failures[0][0])]
                since = {agent_id: silent[agent_id] + offset_s for agent_id in changed if agent_id in silent}
                return [decide_silent(draft, since, [agent_id for agent_id in changed if agent_id not in since])]

            decisions += await self._write(fleet, decide)
        return decisions

    async def _in_slices(self, slices: Slices[T]) -> T:
        """Run a computation. Other tasks run after each slice."""
        while True:
            started_at = self._clock.monotonic()
            try:
                next(slices)
            except StopIteration as ended:
                result: T = ended.value
                return result
            await asyncio.sleep(0)
            self._exclude_from_gap(started_at)

    def _exclude_from_gap(self, started_at: float) -> None:
        """Exclude the time of a normal step from the time since the last scan.

        Otherwise the steps of one long scan would add up to a blind spell.
        """
        if (took_s := self._clock.monotonic() - started_at) <= self._max_gap_s:
            self._scanned_at += took_s

    async def _write(self, fleet: Fleet, decide: Decide) -> list[Decision]:
        """Commit one batch. All changes in one commit would delay other services."""
        started_at = self._clock.monotonic()
        decisions = await self._writer.commit(decide, fleet=fleet)
        self._exclude_from_gap(started_at)
        return decisions

    # --- blind spells -----------------------------------------------------------------------------------------------

    def _reset_after_blind_spell(self, now: float) -> None:
        """Reset the observations after a start, a takeover, a stall, or an outage of Redis."""
        token = self._context.leadership.token
        gap_s, lag_s = now - self._scanned_at, self._take_max_lag_s()
        if token != self._token or gap_s > self._rest_s + self._max_gap_s or lag_s > self._max_gap_s:
            self._token = token
            self._reset(max(gap_s, lag_s))

    def _reset(self, gap_s: float) -> None:
        self._tracker.reset()
        log.info("observations_reset", gap_s=round(gap_s, 1) if gap_s < float("inf") else None)

    @property
    def _rest_s(self) -> float:
        return max(self._settings.scan_interval, min(_REST_FACTOR * self._scan_s, self._max_rest_s))

    def _report(self, assessment: Assessment) -> None:
        metrics = self._context.metrics
        metrics.set_fleet_mode(assessment.mode)
        metrics.agents_silent.set(len(assessment.silent_since))
        metrics.agents_skewed.labels("ahead").set(assessment.ahead)
        metrics.agents_skewed.labels("behind").set(assessment.behind)
        if assessment.mode != self._mode:
            self._mode = assessment.mode
            log.warning("fleet_mode_changed", mode=assessment.mode, silent=len(assessment.silent_since))


def _lost_scores(fleet: Fleet) -> Slices[dict[str, str | None]]:
    """Return the last scores of all absent agents."""
    found = dict[str, str | None]()
    for some in sliced(list(fleet.absent)):
        found.update((each, agent.lost_score) for each in some if (agent := fleet.agents.get(each)) is not None)
        yield
    return found


def _watched(fleet: Fleet, scores: Mapping[str, float]) -> Slices[dict[str, float]]:
    """Return the scores of watched agents."""
    found = dict[str, float]()
    for some in sliced(scores.items()):
        found.update(each for each in some if _is_watched(fleet.agents.get(each[0])))
        yield
    return found


def _differing(one: Mapping[str, float], other: Mapping[str, float]) -> Slices[list[str]]:
    """Return the agents that only one of two mappings contains."""
    found = list[str]()
    for mine, others in ((one, other), (other, one)):
        for some in sliced(list(mine)):
            found += (agent_id for agent_id in some if agent_id not in others)
            yield
    return found


def _is_watched(agent: AgentRecord | None) -> bool:
    """Return whether an agent can become lost: it has a heartbeat, and is neither lost nor left."""
    return agent is not None and agent.liveness is Liveness.FRESH
