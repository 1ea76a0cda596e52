"""What heartbeats tell of the clocks behind them: whether there is one, and whether it ticks.

A score that has moved between two looks was written in between, by a clock that showed it then. So the offset of that
clock from ours lies in an interval, however long the agent paused and however late we looked. One clock has one offset:
its intervals all overlap. Two processes with two clocks give intervals that lie apart, now this way, now that.

What is assumed: that a clock is read and its score written within `difference_s` of each other. A clock that is set
once leaves the interval once; one that is set to and fro looks like two.
"""

from collections.abc import Collection
from typing import Final

from msgspec import Struct

MILLISECONDS_FROM: Final = 1e11
"""A score from here on is in milliseconds."""
_KEPT: Final = 16


class Beats(Struct):
    """What was seen of one agent's heartbeat. Instants are those of the looks."""

    score: float
    looked_at: float
    offset: tuple[float, float] | None = None
    """Between what and what the offset of the clock lies that wrote the last score."""
    leant: int = 0
    turns: tuple[float, ...] = ()
    """When the offset last moved, each time the other way than before."""
    absent_since: float = 0.0
    beating: tuple[float, float] | None = None
    """In its absence: when it was first seen to beat, and when it had last been looked at before it beat last."""
    beat_at: float = 0.0
    """When it was last seen to have beaten."""


class Clocks:
    """Remembers the heartbeats of all that are looked at."""

    def __init__(self, difference_s: float) -> None:
        self._difference_s = difference_s
        self._beats: dict[str, Beats] = {}

    def reset(self) -> None:
        """Forget everything: the time by which we look may have changed."""
        self._beats.clear()

    def keep(self, agent_ids: Collection[str]) -> None:
        """Forget those that are not among these."""
        for agent_id in [each for each in self._beats if each not in agent_ids]:
            del self._beats[agent_id]

    def of(self, agent_id: str) -> Beats | None:
        return self._beats.get(agent_id)

    def look(self, agent_id: str, score: float, asked_at: float, seen_at: float, absent_since: float = 0.0) -> None:
        """Take a heartbeat as it stood at some moment between these two. `absent_since` is when its agent said that it
        is not there, 0 if it has not.
        """
        seconds = score / 1000 if abs(score) >= MILLISECONDS_FROM else score
        beats = self._beats.get(agent_id)
        if beats is None:
            self._beats[agent_id] = Beats(seconds, asked_at, absent_since=absent_since)
            return
        if absent_since != beats.absent_since:
            beats.absent_since, beats.beating = absent_since, None
        if seconds != beats.score:
            before, offset = beats.offset, (seconds - seen_at, seconds - beats.looked_at)
            beats.offset = offset
            if before is not None:
                if offset[0] > before[1] + self._difference_s:
                    _lean(beats, 1, seen_at)
                elif offset[1] < before[0] - self._difference_s:
                    _lean(beats, -1, seen_at)
            if absent_since and beats.looked_at >= absent_since:
                beats.beating = (beats.beating[0] if beats.beating else seen_at, beats.looked_at)
            beats.score, beats.beat_at = seconds, seen_at
        beats.looked_at = asked_at


def _lean(beats: Beats, leans: int, now: float) -> None:
    """Note that the offset has moved: the one way, or the other."""
    beats.turns = (*(beats.turns if leans != beats.leant else ()), now)[-_KEPT:]
    beats.leant = leans
