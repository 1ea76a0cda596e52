"""The laws of the watch over any history: agents, a server, an engine and a fake clock, against hypothesis."""

import math
from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from aism_engine.domain.agents.liveness import Brake, ScoreRange, SilenceLimits, SilenceTracker

_LIMITS: Final = SilenceLimits(silent_s=15.0, lost_s=45.0)
_SCAN_S: Final = 1.0
_PATIENCE_S: Final = _LIMITS.lost_s - _LIMITS.silent_s - 2 * _SCAN_S
"""Whoever beats at least so often is a beating agent."""
_STARTED: Final = 1_800_000_000.0


class Clock(Struct, frozen=True):
    """The clock of an agent: off by so many seconds, and in which unit its scores are."""

    skew_s: float
    unit: float = 1.0

    def score(self, now: float) -> float:
        return (now + self.skew_s) * self.unit


class World:
    """One server and one engine: scores by agent, and the watch over them; the server's clock is `now`."""

    def __init__(self) -> None:
        self.now = _STARTED
        self.scores: dict[str, float] = {}
        self.lost: dict[str, float] = {}
        self._watch = SilenceTracker(Brake())

    def beat(self, agent_id: str, score: float) -> None:
        while self.scores.get(agent_id) == score:
            score = math.nextafter(score, math.inf)  # it changes: that is all that is asked of it
        self.scores[agent_id] = score

    def blind(self) -> None:
        self._watch.reset()

    def scan(self) -> None:
        """Look as the reaper does."""
        span = ScoreRange(self.now, _LIMITS.silent_s)
        watched = {agent_id: score for agent_id, score in self.scores.items() if agent_id not in self.lost}
        seen = {agent_id: score for agent_id, score in watched.items() if not span.has(score)}
        overtaken = self._watch.overtaken(seen, span)
        seen |= {agent_id: score for agent_id, score in watched.items() if overtaken.get(agent_id) == score}
        assessment = self._watch.assess(
            seen,
            len(watched),
            lambda _: _LIMITS,
            lambda _: -math.inf,
            self.now,
            span=span,
            heard_until=self.now,
        )
        self.lost |= dict.fromkeys((loss.agent_id for loss in assessment.losses), self.now)


_edges = st.sampled_from([edge * sign for edge in (0.0, 0.9, 1.1, 14.9, 15.0, 15.1, 30.0, 45.0) for sign in (1, -1)])
_clocks = st.builds(Clock, st.floats(-100_000, 100_000) | _edges, st.sampled_from([1.0, 1000.0]))
_gaps = st.lists(st.tuples(st.floats(0.01, 3 * _SCAN_S), st.sampled_from(["", "", "", "blind", "away"])), min_size=30)


@given(
    beats=st.lists(st.tuples(st.floats(0.01, _PATIENCE_S), _clocks), min_size=1, max_size=30),
    status_changes=_gaps.filter(lambda status_changes: len(status_changes) <= 300),
    away_s=st.floats(3.0, 4000.0),
)
def test_who_beats_is_never_called_lost(
    beats: list[tuple[float, Clock]], status_changes: list[tuple[float, str]], away_s: float
) -> None:
    """Whatever its clock says, also one that jumps at each beat, and however often the engine, or Redis, is away."""
    world, beat_at, number = World(), _STARTED, 0
    for gap_s, event in status_changes:
        world.now += gap_s
        if event == "away":  # the engine is paused, or the server: it stops the agents, too, and none has beaten since
            world.now += away_s
            beat_at = max(beat_at, world.now)
        while beat_at <= world.now:
            wait_s, clock = beats[number % len(beats)]
            world.beat("a", clock.score(beat_at))
            beat_at, number = beat_at + wait_s, number + 1
        if event:
            world.blind()
        world.scan()
        assert world.lost == {}


@given(
    clock=_clocks,
    every_s=st.floats(0.5, 10.0),
    beaten_for_s=st.floats(0.0, 60.0),
    resets=st.lists(st.integers(0, 100), max_size=3),
)
def test_who_stops_is_called_lost_within_lost_after_and_two_scans(
    clock: Clock, every_s: float, beaten_for_s: float, resets: list[int]
) -> None:
    """By any clock that goes on, and counted from the last blind spell where that is later."""
    world, beat_at, stopped_at = World(), _STARTED, _STARTED
    for number in range(int(beaten_for_s) + 250):
        world.now = _STARTED + number * _SCAN_S
        while beat_at <= min(world.now, _STARTED + beaten_for_s):
            world.beat("a", clock.score(beat_at))
            beat_at, stopped_at = beat_at + every_s, beat_at
        if number in resets:
            world.blind()
        world.scan()
    seen_from = max([stopped_at, *(_STARTED + reset * _SCAN_S for reset in resets)])
    # one whose beats all lie in the sane span is read when it has left that, whatever was reset meanwhile
    assert world.lost["a"] <= seen_from + _LIMITS.lost_s + 2 * _SCAN_S


@given(st.lists(_clocks, min_size=10, max_size=40), st.floats(0.5, 14.0))
def test_clocks_that_are_off_brake_nothing(clocks: list[Clock], every_s: float) -> None:
    """Once each has been seen to move, a fleet of skewed clocks is no silent fleet: who stops in it is lost in time."""
    world, due = World(), dict.fromkeys(range(len(clocks)), _STARTED)
    stops_at = _STARTED + 60.0
    for number in range(60 + int(_LIMITS.lost_s + 2 * _SCAN_S) + 1):
        world.now = _STARTED + number * _SCAN_S
        for agent, clock in enumerate(clocks):
            while due[agent] <= world.now and (agent or due[agent] <= stops_at):
                world.beat(f"a{agent}", clock.score(due[agent]))
                due[agent] += every_s
        world.scan()
    assert list(world.lost) == ["a0"]
