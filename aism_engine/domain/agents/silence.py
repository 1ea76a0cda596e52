"""Tells which agents are silent or lost, from changes of heartbeats that this engine observed itself.

liveness.py decides on the losses that `SilenceTracker` finds.

Only a changed score counts as a heartbeat: nothing depends on an agent's clock. The `ScoreRange` holds recent scores of
accurate clocks, and a scan reads only the scores outside it. A score that is the same in two scans has been unchanged
for as long as the engine has observed it. An engine that could not observe (a start, a takeover, a stall, an outage of
Redis) has observed nothing: after `reset` the silence of every agent counts from zero.

If a score was in the range at the last scan and is outside it now, the side shows when it last changed:
- After the range, which is in the future: the score has changed since the last scan, because an unchanged score only
  moves into the past. The tracker follows it until it changes again, also when it is no longer in the future.
- Before the range: the score has been unchanged for the width of the range, if the agent's clock is accurate. But if
  the tracker saw the score enter the range more recently than that, the agent's clock is slow: the score last changed
  when it entered the range, and the silence counts from then.

Assumption: an agent sends a heartbeat at least once in `lost_after - silent_after`. When an agent's score falls behind
the range for the first time, the tracker does not know yet whether the agent's clock is slow, and takes it as accurate.
If it is slow, the engine overestimates the silence by at most `silent_after`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

from aism_engine.domain.policy import LivenessSettings

Mode: TypeAlias = Literal["normal", "partial", "full"]
MILLISECONDS_FROM: Final = 1e11
"""A score from here on is in milliseconds: as seconds it would be the year 5138."""


def score_in_seconds(score: float) -> float:
    """Convert a score, which agents write in seconds or in milliseconds."""
    return score / 1000 if score >= MILLISECONDS_FROM else score


class ScoreRange(Struct, frozen=True):
    """The scores that accurate clocks wrote within `width_s` before `now`, unix seconds by the server's clock."""

    now: float
    width_s: float

    @property
    def low(self) -> float:
        return self.now - self.width_s

    def contains(self, score: float) -> bool:
        return self.low <= score_in_seconds(score) <= self.now

    def ends_before(self, score: float) -> bool:
        return self.now < score_in_seconds(score)


class Scan(Struct, frozen=True, kw_only=True):
    """What the reaper has read. Instants are of the monotonic clock."""

    scores: Mapping[str, float]
    """Scores outside the range, and those of `SilenceTracker.no_longer_ahead` that are still unchanged."""
    watched: int
    """Number of watched agents, with or without a score outside the range."""
    score_range: ScoreRange
    now: float
    observed_until: float
    """Responses have been read up to this instant, so silence counts only up to here."""
    confirmed_at: float = -math.inf
    """When an operator confirmed the losses: agents that have been silent since then are lost in any mode."""


class Loss(Struct, frozen=True):
    agent_id: str
    score: float
    silent_s: float


class Assessment(Struct, frozen=True):
    """Result of a scan: the agents to mark as lost, the silent agents, and the fleet mode."""

    mode: Mode = "normal"
    silent_since: dict[str, float] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    ahead: int = 0
    """Number of agents whose clock is ahead; likewise `behind`."""
    behind: int = 0


class _Unchanged(Struct):
    score: float
    since: float


class SilenceTracker:
    """Remembers which scores are unchanged, and since when. Instants are of the monotonic clock."""

    def __init__(self, settings: LivenessSettings) -> None:
        self._settings = settings
        self._unchanged: dict[str, _Unchanged] = {}
        self._entered_at: dict[str, float] = {}
        """When the score of each agent was seen to enter the range. An instant is kept for `ScoreRange.width_s`."""
        self._is_blind = True

    def reset(self) -> None:
        """Forget all observations: the engine could not have seen a score change."""
        self._unchanged.clear()
        self._entered_at.clear()
        self._is_blind = True

    def no_longer_ahead(self, scores: Mapping[str, float], score_range: ScoreRange) -> dict[str, float]:
        """Return the last known scores that were in the future and are in the range now.

        `scores` are those outside the range. A scan reads no others, so the caller looks up whether these have changed.
        """
        return {
            agent_id: unchanged.score
            for agent_id, unchanged in self._unchanged.items()
            if agent_id not in scores and score_range.contains(unchanged.score)
        }

    def assess(self, scan: Scan, type_of: Callable[[str], str], last_response_at: Callable[[str], float]) -> Assessment:
        now, score_range = scan.now, scan.score_range
        before, self._unchanged = self._unchanged, {}
        silent, losses, confirmed = dict[str, float](), list[Loss](), list[Loss]()
        ahead = behind = 0
        for agent_id, score in scan.scores.items():
            limits = self._settings.limits(type_of(agent_id))
            unchanged = before.pop(agent_id, None)
            if unchanged is None:
                unchanged = _Unchanged(score, self._changed_at(agent_id, score, now, score_range))
            elif unchanged.score != score:
                unchanged = _Unchanged(score, now)
            self._unchanged[agent_id] = unchanged
            since = max(unchanged.since, last_response_at(agent_id))
            silent_s = min(now, scan.observed_until) - since
            if silent_s >= limits.silent_after:
                silent[agent_id] = since
            elif score_range.ends_before(score):
                ahead += 1
            else:
                behind += not score_range.contains(score)
            if silent_s >= limits.lost_after:
                is_confirmed = since + limits.silent_after <= scan.confirmed_at
                (confirmed if is_confirmed else losses).append(Loss(agent_id, score, silent_s))
        self._entered_at = {
            agent_id: at for agent_id, at in self._entered_at.items() if now - at < score_range.width_s
        } | dict.fromkeys(before, now)
        self._is_blind = False
        mode = self._mode(len(silent), scan.watched)
        if mode == "full":
            losses = []
        elif mode == "partial":
            losses = sorted(losses, key=lambda loss: -loss.silent_s)[: self._settings.brake_losses_per_scan]
        return Assessment(mode, silent, confirmed + losses, ahead, behind)

    def _changed_at(self, agent_id: str, score: float, now: float, score_range: ScoreRange) -> float:
        """Estimate when a score last changed that was not among the scores of the previous scan."""
        if self._is_blind or score_range.ends_before(score):
            return now
        return max(now - score_range.width_s, self._entered_at.get(agent_id, -math.inf))

    def _mode(self, silent: int, watched: int) -> Mode:
        settings = self._settings
        if watched < settings.brake_min_agents:
            return "normal"
        if silent > settings.brake_full_ratio * watched:
            return "full"
        return "partial" if silent > settings.brake_ratio * watched else "normal"
