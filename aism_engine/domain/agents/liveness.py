"""Who has fallen silent, and whom to call lost: judged from changes that we saw ourselves, never from an agent's clock.

A heartbeat's score is evidence of change only. A scan sees the scores outside of what sane clocks write; one that has
not changed between two scans is silent for as long as we have watched it stand still. Whoever was blind (a start, a
takeover, a stall, Redis away) has watched nothing: after `reset` everyone has the full grace again.

Where a score leaves the sane span tells when it moved last.
- Into the future: since the last scan, for time alone carries none there. It is watched until it moves, also where the
  time overtakes it meanwhile.
- Into the past: it has stood still for as long as the span is wide, if its clock is right. One that came back into the
  span a moment ago had moved then, so its clock is behind, and it is silent since then only.

What is assumed: an agent beats at least once in `lost_after - silent_after`. Only of one whose score leaves into the
past for the first time do we not know its clock, and take it for right; that is at most `silent_after` too much.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct, field

from aism_engine.domain.agents.heartbeats import score_in_seconds

Mode: TypeAlias = Literal["normal", "partial", "full"]


class SilenceLimits(Struct, frozen=True):
    """When an agent is silent, and when it is lost: seconds without a sign of life."""

    silent_s: float
    lost_s: float


class Brake(Struct, frozen=True):
    """When so many fall silent at once that we rather doubt ourselves. Ratios of all who are watched."""

    ratio: float = 0.3
    full_ratio: float = 0.9
    min_agents: int = 10
    losses_per_scan: int = 10


class ScoreRange(Struct, frozen=True):
    """What sane clocks write at `now`, unix seconds by the server's clock: nothing later."""

    now: float
    past_s: float

    @property
    def low(self) -> float:
        return self.now - self.past_s

    def has(self, score: float) -> bool:
        return self.low <= score_in_seconds(score) <= self.now

    def is_behind(self, score: float) -> bool:
        """Tell whether it lies in the future, and the span is behind it."""
        return self.now < score_in_seconds(score)


class Loss(Struct, frozen=True):
    agent_id: str
    score: float
    silent_s: float


class Assessment(Struct, frozen=True):
    """What a scan comes to: whom to call lost now, how many are silent, and how far we trust ourselves."""

    mode: Mode = "normal"
    silent_since: dict[str, float] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    ahead: int = 0
    """How many beat with a clock that is ahead, and how many with one that is behind."""
    behind: int = 0

    @property
    def silent(self) -> int:
        return len(self.silent_since)


class _Still(Struct):
    score: float
    since: float


class SilenceTracker:
    """Remembers which scores stand still, and since when. Instants are of the monotonic clock."""

    def __init__(self, brake: Brake) -> None:
        self._brake = brake
        self._still: dict[str, _Still] = {}
        self._returned: dict[str, float] = {}
        """Who has come back into the span not longer ago than it is wide, and when."""
        self._blind = True
        self.confirmed_at = -math.inf
        """Who was silent at this instant, and has been since, is gone by an operator's word: no doubt holds that up."""

    def reset(self) -> None:
        """Forget what was seen standing still: we could not have seen it move."""
        self._still.clear()
        self._returned.clear()
        self._blind = True

    def overtaken(self, outside: Mapping[str, float], span: ScoreRange) -> dict[str, float]:
        """Give those whose scores have come to lie in the span by the passing of time, unless they have moved."""
        return {
            agent_id: still.score
            for agent_id, still in self._still.items()
            if agent_id not in outside and span.has(still.score)
        }

    def assess(
        self,
        outside: Mapping[str, float],
        watched: int,
        limits: Callable[[str], SilenceLimits],
        last_spoke: Callable[[str], float],
        now: float,
        *,
        span: ScoreRange,
        heard_until: float,
    ) -> Assessment:
        """Judge one scan of `watched` agents: the scores outside of the span, and those overtaken that have not
        moved since.

        What agents have said is known up to `heard_until`: silence counts up to then.
        """
        before, self._still = self._still, {}
        silent, losses, confirmed = dict[str, float](), list[Loss](), list[Loss]()
        ahead = behind = 0
        for agent_id, score in outside.items():
            limit = limits(agent_id)
            still = before.pop(agent_id, None)
            if still is None:
                still = _Still(score, self._since(agent_id, score, now, span))
            elif still.score != score:
                still = _Still(score, now)
            self._still[agent_id] = still
            since = max(still.since, last_spoke(agent_id))
            silent_s = min(now, heard_until) - since
            if silent_s >= limit.silent_s:
                silent[agent_id] = since
            elif span.is_behind(score):
                ahead += 1
            else:
                behind += not span.has(score)
            if silent_s >= limit.lost_s:
                is_confirmed = since + limit.silent_s <= self.confirmed_at
                (confirmed if is_confirmed else losses).append(Loss(agent_id, score, silent_s))
        self._returned = {agent_id: at for agent_id, at in self._returned.items() if now - at < span.past_s}
        self._returned.update(dict.fromkeys(before, now))
        self._blind = False
        brake, mode = self._brake, self._mode(len(silent), watched)
        if mode == "full":
            losses = []
        elif mode == "partial":
            losses = sorted(losses, key=lambda loss: -loss.silent_s)[: brake.losses_per_scan]
        return Assessment(mode, silent, confirmed + losses, ahead, behind)

    def _since(self, agent_id: str, score: float, now: float, span: ScoreRange) -> float:
        """Give since when a score stands still that was in the span before, or was not looked at."""
        if self._blind or span.is_behind(score):
            return now
        return max(now - span.past_s, self._returned.get(agent_id, -math.inf))

    def _mode(self, silent: int, watched: int) -> Mode:
        if watched < self._brake.min_agents:
            return "normal"
        if silent > self._brake.full_ratio * watched:
            return "full"
        return "partial" if silent > self._brake.ratio * watched else "normal"
