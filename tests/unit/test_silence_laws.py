"""Properties of liveness for any history: agents, a server, an engine and a fake clock, with hypothesis."""

import math
from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from aism_engine.domain.agents.silence import Scan, ScoreRange, SilenceTracker, finish
from aism_engine.domain.policy import LivenessSettings

_LIMITS: Final = LivenessSettings()
_SCAN_S: Final = 1.0
_MAX_INTERVAL_S: Final = _LIMITS.lost_after - _LIMITS.silent_after - 2 * _SCAN_S
"""The longest interval of heartbeats that is promised to be enough."""
_STARTED_AT: Final = 1_800_000_000.0


class Clock(Struct, frozen=True):
    """An agent's clock: its offset, and the unit of the scores that the agent writes."""

    skew_s: float
    unit: float = 1.0

    def score(self, now: float) -> float:
        return (now + self.skew_s) * self.unit


class World:
    """One server and one engine: scores by agent, and their tracker. The server's clock is `now`."""

    def __init__(self) -> None:
        self.now = _STARTED_AT
        self.scores: dict[str, float] = {}
        self.lost: dict[str, float] = {}
        self._tracker = SilenceTracker(_LIMITS)

    def heartbeat(self, agent_id: str, score: float) -> None:
        while self.scores.get(agent_id) == score:
            score = math.nextafter(score, math.inf)  # a heartbeat is a change
        self.scores[agent_id] = score

    def reset(self) -> None:
        self._tracker.reset()

    def scan(self) -> None:
        """Scan as the reaper does."""
        score_range = ScoreRange(self.now, _LIMITS.silent_after)
        watched = {agent_id: score for agent_id, score in self.scores.items() if agent_id not in self.lost}
        scores = {agent_id: score for agent_id, score in watched.items() if not score_range.contains(score)}
        known = finish(self._tracker.no_longer_ahead(scores, score_range))
        scores |= {agent_id: score for agent_id, score in watched.items() if known.get(agent_id) == score}
        scan = Scan(scores=scores, watched=len(watched), score_range=score_range, now=self.now, observed_until=self.now)
        assessment = finish(self._tracker.assess(scan, lambda _: "", lambda _: -math.inf))
        self.lost |= dict.fromkeys((loss.agent_id for loss in assessment.losses), self.now)


_edges = st.sampled_from([edge * sign for edge in (0.0, 0.9, 1.1, 14.9, 15.0, 15.1, 30.0, 45.0) for sign in (1, -1)])
_clocks = st.builds(Clock, st.floats(-100_000, 100_000) | _edges, st.sampled_from([1.0, 1000.0]))
_gaps = st.lists(st.tuples(st.floats(0.01, 3 * _SCAN_S), st.sampled_from(["", "", "", "reset", "outage"])), min_size=30)


@given(
    heartbeats=st.lists(st.tuples(st.floats(0.01, _MAX_INTERVAL_S), _clocks), min_size=1, max_size=30),
    steps=_gaps.filter(lambda steps: len(steps) <= 300),
    outage_s=st.floats(3.0, 4000.0),
)
def test_an_agent_that_sends_heartbeats_is_never_lost(
    heartbeats: list[tuple[float, Clock]], steps: list[tuple[float, str]], outage_s: float
) -> None:
    """With any clock, even one that jumps at each heartbeat, and through any outages of the engine or Redis."""
    world, heartbeat_at, number = World(), _STARTED_AT, 0
    for gap_s, event in steps:
        world.now += gap_s
        if event == "outage":  # of the engine or of the server: no heartbeat arrives meanwhile
            world.now += outage_s
            heartbeat_at = max(heartbeat_at, world.now)
        while heartbeat_at <= world.now:
            wait_s, clock = heartbeats[number % len(heartbeats)]
            world.heartbeat("a", clock.score(heartbeat_at))
            heartbeat_at, number = heartbeat_at + wait_s, number + 1
        if event:
            world.reset()
        world.scan()
        assert world.lost == {}


@given(
    clock=_clocks,
    every_s=st.floats(0.5, 10.0),
    duration_s=st.floats(0.0, 60.0),
    resets=st.lists(st.integers(0, 100), max_size=3),
)
def test_an_agent_that_stops_is_lost_within_lost_after_and_two_scans(
    clock: Clock, every_s: float, duration_s: float, resets: list[int]
) -> None:
    """With any clock that advances. After a blind spell the time counts from its end."""
    world, heartbeat_at, stopped_at = World(), _STARTED_AT, _STARTED_AT
    for number in range(int(duration_s) + 250):
        world.now = _STARTED_AT + number * _SCAN_S
        while heartbeat_at <= min(world.now, _STARTED_AT + duration_s):
            world.heartbeat("a", clock.score(heartbeat_at))
            heartbeat_at, stopped_at = heartbeat_at + every_s, heartbeat_at
        if number in resets:
            world.reset()
        world.scan()
    observed_from = max([stopped_at, *(_STARTED_AT + reset * _SCAN_S for reset in resets)])
    # a score within the range is read when it leaves the range, whatever was reset before
    assert world.lost["a"] <= observed_from + _LIMITS.lost_after + 2 * _SCAN_S


@given(st.lists(_clocks, min_size=10, max_size=40), st.floats(0.5, 14.0))
def test_wrong_clocks_do_not_rate_limit_losses(clocks: list[Clock], every_s: float) -> None:
    """A fleet of wrong clocks is not silent once each has changed: an agent in it that stops is lost in time."""
    world, due = World(), dict.fromkeys(range(len(clocks)), _STARTED_AT)
    stops_at = _STARTED_AT + 60.0
    for number in range(60 + int(_LIMITS.lost_after + 2 * _SCAN_S) + 1):
        world.now = _STARTED_AT + number * _SCAN_S
        for agent, clock in enumerate(clocks):
            while due[agent] <= world.now and (agent or due[agent] <= stops_at):
                world.heartbeat(f"a{agent}", clock.score(due[agent]))
                due[agent] += every_s
        world.scan()
    assert list(world.lost) == ["a0"]
