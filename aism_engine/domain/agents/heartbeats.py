"""Heartbeat scores, and how long the heartbeats of agents that declared themselves absent continue.

A score that differs between two readings was written in between. The observed span is therefore a lower bound: it
begins when the first change was seen, and ends at the last reading before the latest change.
"""

from collections.abc import Collection
from typing import Final

from msgspec import Struct

MILLISECONDS_FROM: Final = 1e11
"""A score from here on is in milliseconds: as seconds it would be the year 5138."""


def score_in_seconds(score: float) -> float:
    """Convert a score, which agents write in seconds or in milliseconds."""
    return score / 1000 if score >= MILLISECONDS_FROM else score


class AbsentHeartbeat(Struct):
    """The heartbeat of one agent that declared itself absent. Instants are unix seconds by Redis `TIME`."""

    absent_since: float
    """When the agent declared its absence."""
    score: float
    read_at: float
    span: tuple[float, float] | None = None
    """When a change was first seen, and the last reading before the latest change."""
    changed_at: float = 0.0
    """When a change was last seen."""


class AbsentHeartbeats:
    """Remembers the heartbeats of absent agents, to distinguish a forgotten process from a restarted one."""

    def __init__(self) -> None:
        self._heartbeats: dict[str, AbsentHeartbeat] = {}

    def reset(self) -> None:
        """Forget everything: the checker may have missed changes."""
        self._heartbeats.clear()

    def retain(self, agent_ids: Collection[str]) -> None:
        """Forget all agents but these."""
        for agent_id in [each for each in self._heartbeats if each not in agent_ids]:
            del self._heartbeats[agent_id]

    def get(self, agent_id: str) -> AbsentHeartbeat | None:
        return self._heartbeats.get(agent_id)

    def observe(self, agent_id: str, score: float, asked_at: float, seen_at: float, absent_since: float) -> None:
        """Note a score that was read between `asked_at` and `seen_at`."""
        known = self._heartbeats.get(agent_id)
        if known is None or known.absent_since != absent_since:
            self._heartbeats[agent_id] = AbsentHeartbeat(absent_since, score, asked_at)
            return
        if score != known.score:
            if known.read_at >= absent_since:
                known.span = (known.span[0] if known.span else seen_at, known.read_at)
            known.score, known.changed_at = score, seen_at
        known.read_at = asked_at
