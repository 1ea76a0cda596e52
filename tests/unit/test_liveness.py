"""The laws of the watch: who is silent, whom it calls lost, and when it rather doubts itself."""

import math
from collections.abc import Mapping

import pytest

from aism_engine.domain.agents.liveness import Assessment, Brake, Loss, ScoreRange, SilenceLimits, SilenceTracker

LIMITS = SilenceLimits(silent_s=15.0, lost_s=45.0)
NEVER = -math.inf
SERVER = 1_800_000_000.0
"""What the server's clock shows at the instant 0 of ours."""


def span_at(now: float) -> ScoreRange:
    """What sane clocks write at this instant."""
    return ScoreRange(SERVER + now, LIMITS.silent_s)


def scan(
    watch: SilenceTracker,
    now: float,
    outside: Mapping[str, float],
    *,
    watched: int | None = None,
    spoke: Mapping[str, float] | None = None,
    limits: Mapping[str, SilenceLimits] | None = None,
) -> Assessment:
    return watch.assess(
        outside,
        len(outside) if watched is None else watched,
        lambda agent_id: (limits or {}).get(agent_id, LIMITS),
        lambda agent_id: (spoke or {}).get(agent_id, NEVER),
        now,
        span=span_at(now),
        heard_until=now,
    )


def seeing() -> SilenceTracker:
    """A watch that has seen everybody beat at 0."""
    watch = SilenceTracker(Brake())
    scan(watch, 0.0, {})
    return watch


def lost(assessment: Assessment) -> list[str]:
    return [loss.agent_id for loss in assessment.losses]


# One agent


@pytest.mark.parametrize(
    ("now", "silent", "expected"),
    [(1.0, 1, []), (29.9, 1, []), (30.0, 1, ["a"]), (31.0, 1, ["a"])],
)
def test_who_leaves_the_sane_span_is_silent_and_then_lost(now: float, silent: int, expected: list[str]) -> None:
    """It was in it one scan before, so it has been silent for 15 s already: 30 s more make 45."""
    watch = seeing()
    scan(watch, 1.0, {"a": 7.0})
    assessment = scan(watch, 1.0 + now, {"a": 7.0})
    assert (assessment.silent, lost(assessment)) == (silent, expected)


def test_a_loss_says_with_which_heartbeat_and_after_how_long() -> None:
    """The score is what a later one must differ from."""
    watch = seeing()
    scan(watch, 1.0, {"a": 7.0})
    assert scan(watch, 40.0, {"a": 7.0}).losses == [Loss("a", 7.0, 54.0)]


@pytest.mark.parametrize(("now", "silent", "expected"), [(14.9, 0, []), (15.0, 1, []), (44.9, 1, []), (45.0, 1, ["a"])])
def test_whoever_was_blind_gives_the_full_grace(now: float, silent: int, expected: list[str]) -> None:
    """After a start or a reset nobody has been seen standing still for any time at all."""
    for watch in (SilenceTracker(Brake()), seeing()):
        scan(watch, 0.0, {"a": 7.0})
        scan(watch, 60.0, {"a": 7.0})
        watch.reset()
        scan(watch, 100.0, {"a": 7.0})
        assessment = scan(watch, 100.0 + now, {"a": 7.0})
        assert (assessment.silent, lost(assessment)) == (silent, expected)


def test_the_blindness_is_over_with_the_first_scan() -> None:
    """Who falls silent later gets no second grace."""
    watch = SilenceTracker(Brake())
    scan(watch, 0.0, {"old": 7.0})
    scan(watch, 1.0, {"old": 7.0, "new": 8.0})
    assert lost(scan(watch, 31.0, {"old": 7.0, "new": 8.0})) == ["new"]


def test_a_score_that_changes_is_a_sign_of_life_wherever_it_stands() -> None:
    """A clock that is hours off beats as well as any other; lost is who stands still for lost_after after a change."""
    watch = seeing()
    for now in range(1, 100):
        assert lost(scan(watch, float(now), {"a": -7200.0 + now})) == []
    assert lost(scan(watch, 143.9, {"a": -7101.0})) == []
    assert lost(scan(watch, 144.0, {"a": -7101.0})) == ["a"]


def test_a_score_that_goes_backwards_has_changed_too() -> None:
    """It is evidence of change, and of nothing else."""
    watch = seeing()
    scan(watch, 1.0, {"a": 7.0})
    scan(watch, 30.0, {"a": 6.0})
    assert lost(scan(watch, 74.0, {"a": 6.0})) == []


def test_a_clock_that_is_behind_makes_nobody_silent_a_second_time() -> None:
    """Who came back into the span a moment ago had moved then: it has not stood still since it began."""
    watch = seeing()
    assert scan(watch, 1.0, {"a": 7.0}).silent == 1
    scan(watch, 2.0, {})
    for now in (3.0, 16.9):
        assessment = scan(watch, now, {"a": 12.0})
        assert (assessment.silent, assessment.behind) == (0, 1)
    assert scan(watch, 17.0, {"a": 12.0}).silent == 1
    assert lost(scan(watch, 46.9, {"a": 12.0})) == []
    assert lost(scan(watch, 47.0, {"a": 12.0})) == ["a"]


def test_a_clock_that_is_ahead_gives_no_second_grace_when_time_overtakes_it() -> None:
    """Its last beat comes to lie in the sane span, and has stood still all the while."""
    watch, score = seeing(), SERVER + 20.0
    assessment = scan(watch, 1.0, {"a": score})
    assert (assessment.silent, assessment.ahead) == (0, 1)
    for now in range(2, 46):
        seen = {} if span_at(now).has(score) else {"a": score}
        seen |= watch.overtaken(seen, span_at(now))
        assert lost(scan(watch, float(now), seen)) == []
    assert lost(scan(watch, 46.0, {"a": score})) == ["a"]


def test_who_returns_into_the_sane_span_is_fresh_and_forgotten_by_the_watch() -> None:
    """The time before does not count again."""
    watch = seeing()
    scan(watch, 1.0, {"a": 7.0})
    assert scan(watch, 20.0, {}).silent == 0
    scan(watch, 36.0, {"a": 8.0})
    assert lost(scan(watch, 65.9, {"a": 8.0})) == []
    assert lost(scan(watch, 66.0, {"a": 8.0})) == ["a"]


def test_a_response_is_a_sign_of_life_too() -> None:
    """Whoever speaks on the queue is not silent, whatever its heartbeat does."""
    watch = seeing()
    scan(watch, 1.0, {"a": 7.0})
    assert scan(watch, 60.0, {"a": 7.0}, spoke={"a": 50.0}).silent == 0
    assert lost(scan(watch, 94.9, {"a": 7.0}, spoke={"a": 50.0})) == []
    assert lost(scan(watch, 95.0, {"a": 7.0}, spoke={"a": 50.0})) == ["a"]


def test_each_type_has_its_own_patience() -> None:
    """A slow kind of agent is not measured by a quick one."""
    watch = seeing()
    limits = {"slow": SilenceLimits(60.0, 180.0)}
    scan(watch, 1.0, {"slow": 7.0, "quick": 7.0})
    assert lost(scan(watch, 31.0, {"slow": 7.0, "quick": 7.0}, limits=limits)) == ["quick"]
    scan(watch, 32.0, {"slow": 7.0}, limits=limits)
    assert lost(scan(watch, 200.0, {"slow": 7.0}, limits=limits)) == ["slow"]


# The fleet


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
def test_the_mode_is_a_matter_of_how_many_are_silent_at_once(silent: int, watched: int, mode: str) -> None:
    """More than brake_ratio of brake_min_agents or more: partial; more than full_ratio: full; a small fleet: normal."""
    watch = seeing()
    outside = {f"a{number}": 7.0 for number in range(silent)}
    scan(watch, 1.0, outside, watched=watched)
    assessment = scan(watch, 60.0, outside, watched=watched)
    assert (assessment.mode, assessment.silent) == (mode, silent)
    assert len(assessment.losses) == {"normal": silent, "partial": min(silent, 10), "full": 0}[mode]


def test_slowed_losses_take_the_longest_silent_first() -> None:
    """The rest follow in later scans, if they are still silent then."""
    watch = seeing()
    outside: dict[str, float] = {}
    for number in range(40):
        outside[f"a{number}"] = 7.0
        scan(watch, float(number), outside, watched=100)
    assert lost(scan(watch, 80.0, outside, watched=100)) == [f"a{number}" for number in range(10)]
    rest = {agent_id: 7.0 for agent_id in outside if int(agent_id[1:]) >= 10}
    assert lost(scan(watch, 81.0, rest, watched=90)) == [f"a{number}" for number in range(10, 20)]


def test_in_doubt_of_itself_it_calls_nobody_lost_until_agents_speak_again() -> None:
    """When nearly all are silent it is more likely us. As soon as enough are back, the others are lost."""
    watch = seeing()
    outside = {f"a{number}": 7.0 for number in range(20)}
    scan(watch, 1.0, outside)
    for now in range(2, 1000, 100):
        assert lost(scan(watch, float(now), outside)) == []
    few = {f"a{number}": 7.0 for number in range(5)}
    assert lost(scan(watch, 1000.0, few, watched=20)) == list(few)


def test_what_an_operator_confirms_is_no_matter_of_doubt() -> None:
    """Whoever was silent then is lost at its time, however many they are, and the longest silent no sooner than others;
    who falls silent later, or was heard since, is not meant.
    """
    watch = seeing()
    outside = {f"a{number}": 7.0 for number in range(20)}
    scan(watch, 1.0, outside)
    outside |= {f"b{number}": 7.0 for number in range(20)}
    scan(watch, 20.0, outside)
    watch.confirmed_at = 19.9
    assert lost(scan(watch, 29.0, outside)) == []
    heard = {"a0": 19.0}
    found = scan(watch, 60.0, outside, spoke=heard)
    assert (found.mode, lost(found)) == ("full", [f"a{number}" for number in range(1, 20)])
    watch.confirmed_at = 60.0
    assert sorted(lost(scan(watch, 66.0, outside, spoke=heard))) == sorted(outside)


def test_a_confirmation_is_void_for_what_was_watched_anew_since() -> None:
    """After a blind spell nobody is silent: what was said of those who were says nothing of these."""
    watch = seeing()
    outside = {f"a{number}": 7.0 for number in range(20)}
    scan(watch, 40.0, outside)
    watch.confirmed_at = 40.0
    watch.reset()
    scan(watch, 41.0, outside)
    assert lost(scan(watch, 200.0, outside)) == []


def test_only_those_who_are_silent_for_long_enough_count() -> None:
    """A fleet whose clocks are all off is not a silent one."""
    watch = SilenceTracker(Brake())
    for now in range(20):
        outside = {f"a{number}": -9000.0 + now for number in range(100)}
        assessment = scan(watch, float(now), outside)
        assert (assessment.mode, assessment.silent) == ("normal", 0)


def test_a_type_with_longer_limits_has_stood_still_no_longer_than_the_span_is_wide() -> None:
    """The span is as wide as the narrowest limit: who has left it has been silent for that long, not for its own."""
    watch, patient = seeing(), {"a": SilenceLimits(silent_s=300.0, lost_s=330.0)}
    assert scan(watch, 16.0, {"a": 0.0}, limits=patient).silent == 0
    assert scan(watch, 46.0, {"a": 0.0}, limits=patient).losses == []


def test_what_lies_unread_in_the_queue_is_no_silence() -> None:
    """Silence counts up to the instant up to which everything has been read."""
    watch = seeing()
    scan(watch, 16.0, {"a": 0.0})
    unread = watch.assess({"a": 0.0}, 1, lambda _: LIMITS, lambda _: NEVER, 60.0, span=span_at(60.0), heard_until=40.0)
    assert unread.losses == []
    assert [loss.agent_id for loss in scan(watch, 61.0, {"a": 0.0}).losses] == ["a"]
