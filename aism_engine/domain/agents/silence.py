"""Finds the agents that are silent or lost, by the changes of heartbeats that this engine observed itself.

liveness.py decides on the losses that `SilenceTracker` finds.

An agent gives a sign of life when the score of its heartbeat changes. The value of the score proves nothing, because
agents' clocks differ. A score that is the same in two scans has been unchanged for as long as the engine has observed
it. After a start, a takeover, a stall or an outage of Redis the engine has observed nothing: `reset` makes the silence
of every agent count from zero.

Most agents are fresh, and their scores are recent. So that a large fleet costs little, a scan reads only the scores
outside the `ScoreRange`: those from before it, and those in the future. The tracker estimates when a score last changed
if the score was in the range at the last scan and is outside it now:
- In the future: the score has changed since the last scan, because the range only moves forward. The agent's clock is
  fast. The tracker remembers the score until it changes, even while the range contains it.
- Before the range, and the agent's clock is accurate: the score was the newest in the range when the agent wrote it.
  The agent wrote it `width_s` ago, and the tracker takes that instant as the time of the last change.
- Before the range, and the agent's clock is slow: the score was already old when the agent wrote it. The agent
  wrote it less than `width_s` ago. If an older score of the agent was before the range too, the tracker has noticed
  that a newer score entered the range: one scan read the older score, and the next scan read no score of the agent. The
  tracker takes the instant of the second scan as the time of the last change, unless it is more than `width_s` ago.

When an agent's score falls before the range for the first time, the tracker has never noticed that a score of the agent
entered the range. It cannot know whether the agent's clock is slow, and takes it as accurate. If it is slow, the engine
overestimates the silence by at most `width_s`, which is the smallest `silent_after` of all agent types. This loses no
healthy agent, on the assumption that an agent sends a heartbeat at least once in `lost_after - silent_after`.
"""

import heapq
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, Literal, TypeAlias, TypeVar

from msgspec import Struct, field

from aism_engine.domain.policy import LivenessSettings

T = TypeVar("T")
Slices: TypeAlias = Generator[None, None, T]
"""A computation over the whole fleet. It yields every few milliseconds, so that other tasks can run, and returns T."""
_SLICE: Final = 250
"""Agents per slice: about 1 ms."""
Mode: TypeAlias = Literal["normal", "partial", "full"]
"""The fleet mode, by which the brake limits losses.

`normal`: no limit. `partial`: a number of losses per scan. `full`: no losses.
"""
MILLISECONDS_FROM: Final = 1e11
"""A score from here on is in milliseconds: as seconds it would be the year 5138."""


def score_in_seconds(score: float) -> float:
    """Convert a score, which agents write in seconds or in milliseconds."""
    return score / 1000 if score >= MILLISECONDS_FROM else score


def finish(slices: Slices[T]) -> T:
    """Run a computation to its end without a pause."""
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            result: T = ended.value
            return result


def sliced(items: Iterable[T]) -> Iterator[list[T]]:
    """Split items into slices. They must not change meanwhile."""
    iterator = iter(items)
    while some := list(islice(iterator, _SLICE)):
        yield some


class ScoreRange(Struct, frozen=True):
    """The scores of the last `width_s` seconds until `now`, which is in unix seconds by the server's clock."""

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
    """Scores outside the range, and those of fast clocks that have entered the range without a change."""
    watched: int
    """Number of all watched agents, including those whose score is in the range."""
    score_range: ScoreRange
    now: float
    observed_until: float
    """Responses have been read up to this instant, so silence counts only up to here."""
    confirmed_at: float = -math.inf
    """When an operator confirmed the losses. Agents that were already silent then are lost in any mode."""


class Loss(Struct, frozen=True, gc=False):
    agent_id: str
    score: float
    silent_s: float


class Assessment(Struct, frozen=True):
    """Result of a scan: the agents to mark as lost, the silent agents, and the fleet mode."""

    mode: Mode = "normal"
    silent_since: dict[str, float] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    ahead: int = 0
    """Number of agents that are not silent and whose clock is ahead of the server's."""
    behind: int = 0
    """Number of agents that are not silent and whose clock is behind the server's."""


class _Unchanged(Struct, gc=False):
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

    def no_longer_ahead(self, scores: Mapping[str, float], score_range: ScoreRange) -> Slices[dict[str, float]]:
        """Return the last known scores that were in the future and are in the range now.

        `scores` are those that the scan has read, all outside the range. It has not read the present scores of the
        returned agents: the caller looks up whether they have changed.
        """
        found = dict[str, float]()
        for some in sliced(self._unchanged.items()):
            found.update(
                (agent_id, unchanged.score)
                for agent_id, unchanged in some
                if agent_id not in scores and score_range.contains(unchanged.score)
            )
            yield
        return found

    def assess(
        self, scan: Scan, type_of: Callable[[str], str], last_response_at: Callable[[str], float]
    ) -> Slices[Assessment]:
        """Compare a scan with the one before it, and return the silent agents and those to mark as lost.

        An agent's silence counts from its last change of score or its last response, whichever came later.
        """
        now, score_range = scan.now, scan.score_range
        before, self._unchanged = self._unchanged, {}
        silent, losses, confirmed = dict[str, float](), list[Loss](), list[Loss]()
        ahead = behind = 0
        for number, (agent_id, score) in enumerate(scan.scores.items()):
            if number % _SLICE == 0:
                yield
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
        # The scores left in `before` were outside the range and are not any more: they entered it.
        yield from self._note_entered(before, now, score_range)
        self._is_blind = False
        mode = self._mode(len(silent), scan.watched)
        if mode == "full":
            losses = []
        elif mode == "partial":
            losses = heapq.nlargest(self._settings.brake_losses_per_scan, losses, key=lambda loss: loss.silent_s)
        return Assessment(mode, silent, confirmed + losses, ahead, behind)

    def _note_entered(self, entered: dict[str, _Unchanged], now: float, score_range: ScoreRange) -> Slices[None]:
        """Note that these scores have entered the range, and forget earlier entries. Empties `entered`."""
        for some in sliced(list(self._entered_at)):
            for agent_id in some:
                if now - self._entered_at[agent_id] >= score_range.width_s:
                    del self._entered_at[agent_id]
            yield
        while entered:  # slice by slice, because freeing a large dictionary at once takes long
            for _ in range(min(_SLICE, len(entered))):
                self._entered_at[entered.popitem()[0]] = now
            yield

    def _changed_at(self, agent_id: str, score: float, now: float, score_range: ScoreRange) -> float:
        """Estimate when a score last changed. The previous scan did not contain the score."""
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
