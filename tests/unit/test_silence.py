"""Rules of liveness: which agents are silent or lost, and when losses are rate-limited."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from aism_engine.domain.agents.silence import Assessment, Loss, Scan, ScoreRange, SilenceTracker, finish
from aism_engine.domain.policy import LivenessLimits, LivenessSettings

LIMITS = LivenessSettings()
SERVER = 1_800_000_000.0
"""The server's clock at instant 0 of the engine's."""


def range_at(now: float) -> ScoreRange:
    return ScoreRange(SERVER + now, LIMITS.silent_after)


class Tracker(SilenceTracker):
    """Scans whose agents have their id as type, and have sent a response at these instants."""

    def __init__(self, **limits: LivenessLimits) -> None:
        super().__init__(LivenessSettings(by_type=limits))

    def scan(
        self,
        now: float,
        scores: Mapping[str, float],
        *,
        watched: int | None = None,
        responses: Mapping[str, float] | None = None,
        **more: Any,  # noqa: ANN401 - fields of a scan
    ) -> Assessment:
        scan = Scan(
            scores=scores,
            watched=len(scores) if watched is None else watched,
            score_range=range_at(now),
            now=now,
            **{"observed_until": now, **more},
        )
        return finish(
            self.assess(scan, lambda agent_id: agent_id, lambda agent_id: (responses or {}).get(agent_id, -math.inf))
        )


def observing(**limits: LivenessLimits) -> Tracker:
    """A tracker that has seen every agent in the range at instant 0."""
    tracker = Tracker(**limits)
    tracker.scan(0.0, {})
    return tracker


def lost(assessment: Assessment) -> list[str]:
    return [loss.agent_id for loss in assessment.losses]


# --- one agent --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "silent", "expected"),
    [(1.0, 1, []), (29.9, 1, []), (30.0, 1, ["a"]), (31.0, 1, ["a"])],
)
def test_an_agent_whose_score_leaves_the_range_is_silent_and_then_lost(
    now: float, silent: int, expected: list[str]
) -> None:
    """Its score was in the range one scan before, so it has been silent for 15 s already: lost after 30 s more."""
    tracker = observing()
    tracker.scan(1.0, {"a": 7.0})
    assessment = tracker.scan(1.0 + now, {"a": 7.0})
    assert (len(assessment.silent_since), lost(assessment)) == (silent, expected)


def test_a_loss_has_the_score_and_the_duration_of_the_silence() -> None:
    tracker = observing()
    tracker.scan(1.0, {"a": 7.0})
    assert tracker.scan(40.0, {"a": 7.0}).losses == [Loss("a", 7.0, 54.0)]


@pytest.mark.parametrize(("now", "silent", "expected"), [(14.9, 0, []), (15.0, 1, []), (44.9, 1, []), (45.0, 1, ["a"])])
def test_after_a_start_or_a_reset_every_agent_has_the_full_grace(now: float, silent: int, expected: list[str]) -> None:
    for tracker in (Tracker(), observing()):
        tracker.scan(0.0, {"a": 7.0})
        tracker.scan(60.0, {"a": 7.0})
        tracker.reset()
        tracker.scan(100.0, {"a": 7.0})
        assessment = tracker.scan(100.0 + now, {"a": 7.0})
        assert (len(assessment.silent_since), lost(assessment)) == (silent, expected)


def test_an_agent_that_falls_silent_after_the_first_scan_has_no_extra_grace() -> None:
    tracker = Tracker()
    tracker.scan(0.0, {"old": 7.0})
    tracker.scan(1.0, {"old": 7.0, "new": 8.0})
    assert lost(tracker.scan(31.0, {"old": 7.0, "new": 8.0})) == ["new"]


def test_any_change_of_a_score_is_a_sign_of_life() -> None:
    """By a clock that is hours slow, too; and `lost_after` counts from the last change."""
    tracker = observing()
    for now in range(1, 100):
        assert lost(tracker.scan(float(now), {"a": -7200.0 + now})) == []
    assert lost(tracker.scan(143.9, {"a": -7101.0})) == []
    assert lost(tracker.scan(144.0, {"a": -7101.0})) == ["a"]


def test_a_score_that_goes_backwards_has_changed() -> None:
    tracker = observing()
    tracker.scan(1.0, {"a": 7.0})
    tracker.scan(30.0, {"a": 6.0})
    assert lost(tracker.scan(74.0, {"a": 6.0})) == []


def test_a_slow_clock_counts_from_when_its_score_entered_the_range() -> None:
    """The score changed when it entered the range, so it has not been unchanged for the width of the range."""
    tracker = observing()
    assert len(tracker.scan(1.0, {"a": 7.0}).silent_since) == 1
    tracker.scan(2.0, {})
    for now in (3.0, 16.9):
        assessment = tracker.scan(now, {"a": 12.0})
        assert (len(assessment.silent_since), assessment.behind) == (0, 1)
    assert len(tracker.scan(17.0, {"a": 12.0}).silent_since) == 1
    assert lost(tracker.scan(46.9, {"a": 12.0})) == []
    assert lost(tracker.scan(47.0, {"a": 12.0})) == ["a"]


def test_a_fast_clock_has_no_extra_grace_when_time_catches_up_with_it() -> None:
    """Its last score comes to lie in the range unchanged."""
    tracker, score = observing(), SERVER + 20.0
    assessment = tracker.scan(1.0, {"a": score})
    assert (len(assessment.silent_since), assessment.ahead) == (0, 1)
    for now in range(2, 46):
        seen = {} if range_at(now).contains(score) else {"a": score}
        seen |= finish(tracker.no_longer_ahead(seen, range_at(now)))
        assert lost(tracker.scan(float(now), seen)) == []
    assert lost(tracker.scan(46.0, {"a": score})) == ["a"]


def test_an_agent_whose_score_returns_into_the_range_is_fresh() -> None:
    """Its earlier silence does not count again."""
    tracker = observing()
    tracker.scan(1.0, {"a": 7.0})
    assert len(tracker.scan(20.0, {}).silent_since) == 0
    tracker.scan(36.0, {"a": 8.0})
    assert lost(tracker.scan(65.9, {"a": 8.0})) == []
    assert lost(tracker.scan(66.0, {"a": 8.0})) == ["a"]


def test_a_response_is_a_sign_of_life() -> None:
    tracker, responses = observing(), {"a": 50.0}
    tracker.scan(1.0, {"a": 7.0})
    assert len(tracker.scan(60.0, {"a": 7.0}, responses=responses).silent_since) == 0
    assert lost(tracker.scan(94.9, {"a": 7.0}, responses=responses)) == []
    assert lost(tracker.scan(95.0, {"a": 7.0}, responses=responses)) == ["a"]


def test_silence_counts_only_up_to_where_responses_have_been_read() -> None:
    tracker = observing()
    tracker.scan(16.0, {"a": 0.0})
    assert lost(tracker.scan(60.0, {"a": 0.0}, observed_until=40.0)) == []
    assert lost(tracker.scan(61.0, {"a": 0.0})) == ["a"]


def test_each_agent_type_has_its_own_limits() -> None:
    tracker = observing(slow=LivenessLimits(silent_after=60.0, lost_after=180.0))
    tracker.scan(1.0, {"slow": 7.0, "quick": 7.0})
    assert lost(tracker.scan(31.0, {"slow": 7.0, "quick": 7.0})) == ["quick"]
    tracker.scan(32.0, {"slow": 7.0})
    assert lost(tracker.scan(200.0, {"slow": 7.0})) == ["slow"]


def test_an_agent_with_longer_limits_is_silent_for_the_width_of_the_range_only() -> None:
    """The range is as wide as the shortest limit: leaving it shows no longer silence."""
    tracker = observing(a=LivenessLimits(silent_after=300.0, lost_after=330.0))
    assert len(tracker.scan(16.0, {"a": 0.0}).silent_since) == 0
    assert tracker.scan(46.0, {"a": 0.0}).losses == []


# --- the fleet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silent", "watched", "mode"),
    [
        (0, 100, "normal"),
        (30, 100, "normal"),
        (31, 100, "partial"),
        (90, 100, "partial"),
        (91, 100, "full"),
        (100, 100, "full"),
        (3, 10, "normal"),
        (4, 10, "partial"),
        (9, 10, "partial"),
        (10, 10, "full"),
        (9, 9, "normal"),
        (1, 1, "normal"),
    ],
)
def test_the_fleet_mode_depends_on_the_share_of_silent_agents(silent: int, watched: int, mode: str) -> None:
    """`partial` above brake_ratio, `full` above brake_full_ratio; always `normal` below brake_min_agents."""
    tracker = observing()
    scores = {f"a{number}": 7.0 for number in range(silent)}
    tracker.scan(1.0, scores, watched=watched)
    assessment = tracker.scan(60.0, scores, watched=watched)
    assert (assessment.mode, len(assessment.silent_since)) == (mode, silent)
    assert len(assessment.losses) == {"normal": silent, "partial": min(silent, 10), "full": 0}[mode]


def test_rate_limited_losses_begin_with_the_longest_silent() -> None:
    """The others are lost in later scans, if they are still silent."""
    tracker = observing()
    scores: dict[str, float] = {}
    for number in range(40):
        scores[f"a{number}"] = 7.0
        tracker.scan(float(number), scores, watched=100)
    assert lost(tracker.scan(80.0, scores, watched=100)) == [f"a{number}" for number in range(10)]
    rest = {agent_id: 7.0 for agent_id in scores if int(agent_id[1:]) >= 10}
    assert lost(tracker.scan(81.0, rest, watched=90)) == [f"a{number}" for number in range(10, 20)]


def test_no_agent_is_lost_while_nearly_all_are_silent() -> None:
    """As soon as enough agents are back, the others are lost."""
    tracker = observing()
    scores = {f"a{number}": 7.0 for number in range(20)}
    tracker.scan(1.0, scores)
    for now in range(2, 1000, 100):
        assert lost(tracker.scan(float(now), scores)) == []
    few = {f"a{number}": 7.0 for number in range(5)}
    assert lost(tracker.scan(1000.0, few, watched=20)) == list(few)


def test_confirmed_losses_are_not_rate_limited() -> None:
    """An agent that was silent at the confirmation is lost after `lost_after`, in any mode. An agent that fell silent
    later, or has sent a response since, is not meant.
    """
    tracker = observing()
    scores = {f"a{number}": 7.0 for number in range(20)}
    tracker.scan(1.0, scores)
    scores |= {f"b{number}": 7.0 for number in range(20)}
    tracker.scan(20.0, scores)
    assert lost(tracker.scan(29.0, scores, confirmed_at=19.9)) == []
    responses = {"a0": 19.0}
    found = tracker.scan(60.0, scores, responses=responses, confirmed_at=19.9)
    assert (found.mode, lost(found)) == ("full", [f"a{number}" for number in range(1, 20)])
    assert sorted(lost(tracker.scan(66.0, scores, responses=responses, confirmed_at=60.0))) == sorted(scores)


def test_a_confirmation_does_not_apply_to_observations_after_a_reset() -> None:
    """After a blind spell no agent is silent, so the confirmation meant none of them."""
    tracker = observing()
    scores = {f"a{number}": 7.0 for number in range(20)}
    tracker.scan(40.0, scores, confirmed_at=40.0)
    tracker.reset()
    tracker.scan(41.0, scores, confirmed_at=40.0)
    assert lost(tracker.scan(200.0, scores, confirmed_at=40.0)) == []


def test_a_fleet_of_wrong_clocks_is_not_silent() -> None:
    tracker = Tracker()
    for now in range(20):
        scores = {f"a{number}": -9000.0 + now for number in range(100)}
        assessment = tracker.scan(float(now), scores)
        assert (assessment.mode, len(assessment.silent_since)) == ("normal", 0)


def test_a_large_fleet_is_assessed_in_slices() -> None:
    """Other tasks run after each slice, whether the agents fall silent or come back."""
    tracker, agents = SilenceTracker(LIMITS), 1000
    for number, scores in enumerate((dict.fromkeys(map(str, range(agents)), SERVER - 100), {})):
        scan = Scan(scores=scores, watched=agents, score_range=range_at(number), now=number, observed_until=number)
        assessing = tracker.assess(scan, lambda _: "", lambda _: -math.inf)
        progress = [0, *(_remembered(tracker) for _ in assessing), _remembered(tracker)]
        assert max(after - before for before, after in pairwise(progress)) == 250
        assert _remembered(tracker) == agents


def _remembered(tracker: SilenceTracker) -> int:
    return len(tracker._unchanged) + len(tracker._entered_at)
