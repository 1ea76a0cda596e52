"""Who has fallen silent, and whom to call lost: judged from changes that we saw ourselves, never from an agent's clock.

A heartbeat's score is evidence of change only. A scan sees the scores outside of what sane clocks write; one that has
not changed between two scans is silent for as long as we have watched it stand still. Whoever was blind (a start, a
takeover, a stall, Redis away) has watched nothing: after `reset` everyone has the full grace again.

What is assumed: an agent beats at least once in `lost_after - silent_after`. Of one whose score leaves the sane span
while we watch, we know that it stood inside one scan before, and count it silent for `silent_after` already; for a
clock that is behind by d seconds that is d too much.
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct, field

Mode: TypeAlias = Literal["normal", "partial", "full"]


class Limits(Struct, frozen=True):
    """When an agent is silent, and when it is lost: seconds without a sign of life."""

    silent_s: float
    lost_s: float


class Brake(Struct, frozen=True):
    """When so many fall silent at once that we rather doubt ourselves. Ratios of all who are watched."""

    ratio: float = 0.3
    full_ratio: float = 0.9
    min_agents: int = 10
    losses_per_scan: int = 10


class Loss(Struct, frozen=True):
    agent_id: str
    score: float
    silent_s: float


class Assessment(Struct, frozen=True):
    """What a scan comes to: whom to call lost now, how many are silent, and how far we trust ourselves."""

    mode: Mode
    silent: int
    losses: list[Loss] = field(default_factory=list)


class _Still(Struct):
    score: float
    since: float


class Watch:
    """Remembers which scores stand still, and since when. Instants are of the monotonic clock."""

    def __init__(self, brake: Brake) -> None:
        self._brake = brake
        self._still: dict[str, _Still] = {}
        self._blind = True

    def reset(self) -> None:
        """Forget what was seen standing still: we could not have seen it move."""
        self._still.clear()
        self._blind = True

    def assess(
        self,
        outside: Mapping[str, float],
        watched: int,
        limits: Callable[[str], Limits],
        last_spoke: Callable[[str], float],
        now: float,
        *,
        span_s: float,
        heard_until: float,
    ) -> Assessment:
        """Judge one scan: the scores outside of the sane span of `span_s`, of `watched` agents in all.

        What agents have said is known up to `heard_until`: silence counts up to then.
        """
        before, self._still = self._still, {}
        silent, losses = 0, []
        for agent_id, score in outside.items():
            limit = limits(agent_id)
            still = before.get(agent_id)
            if still is None:
                since = now if self._blind else now - span_s
                still = _Still(score, since)
            elif still.score != score:
                still = _Still(score, now)
            self._still[agent_id] = still
            silent_s = min(now, heard_until) - max(still.since, last_spoke(agent_id))
            if silent_s >= limit.silent_s:
                silent += 1
            if silent_s >= limit.lost_s:
                losses.append(Loss(agent_id, score, silent_s))
        self._blind = False
        brake, mode = self._brake, self._mode(silent, watched)
        if mode == "full":
            losses = []
        elif mode == "partial":
            losses = sorted(losses, key=lambda loss: -loss.silent_s)[: brake.losses_per_scan]
        return Assessment(mode, silent, losses)

    def _mode(self, silent: int, watched: int) -> Mode:
        if watched < self._brake.min_agents:
            return "normal"
        if silent > self._brake.full_ratio * watched:
            return "full"
        return "partial" if silent > self._brake.ratio * watched else "normal"
