"""Properties of liveness for any life of an agent: registrations, goodbyes, heartbeats, messages, and its death."""

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.agent import AgentSnapshot, Liveness
from aism_engine.domain.agents.liveness import decide_first_heartbeat, decide_lost, decide_returned
from aism_engine.domain.agents.silence import Scan, ScoreRange, SilenceTracker, finish
from aism_engine.domain.policy import LivenessSettings
from tests.support.model import World

_LIMITS: Final = LivenessSettings()
_STEP_S: Final = 1.0
"""Interval of the services that observe heartbeats."""
_NOTICE_S: Final = 2 * _STEP_S
"""Time until the engine has noticed what an agent did."""


class Life(World):
    """The agent `a`, and the services that observe it: one step of each per second."""

    def __init__(self, skew_s: float) -> None:
        super().__init__()
        self._skew_s = skew_s
        self._tracker = SilenceTracker(_LIMITS)
        self._silent: set[str] = set()

    def act(self, action: str) -> None:
        if action == "beat":
            self.snapshots["a"] = AgentSnapshot(score=self.now + self._skew_s)
        elif action == "register":
            self.respond("register", type="scribe")
        elif action:
            self.respond(action)

    def step(self) -> None:
        """Let a second pass, and observe as the registrar and the reaper do."""
        self.now += _STEP_S
        self._watch()
        agent = self.fleet.agents.get("a")
        if agent is None:
            return
        seen = self.snapshots.get("a", AgentSnapshot()).score
        self._scan({"a": seen} if seen is not None and agent.liveness is Liveness.FRESH else {})
        if "a" in self.fleet.absent and repr(seen) != self.agent().lost_score:
            self.decide(decide_returned)

    def shown(self) -> Liveness | None:
        agent = self.fleet.agents.get("a")
        return None if agent is None else agent.shown_liveness(is_silent="a" in self._silent)

    def _watch(self) -> None:
        seen, agent = self.snapshots.get("a"), self.fleet.agents.get("a")
        if seen is not None and seen.score is not None and (agent is None or "a" in self.fleet.awaiting_heartbeat):
            self.decide(decide_first_heartbeat, "a", {"a": seen.score})

    def _scan(self, watched: dict[str, float]) -> None:
        score_range = ScoreRange(self.now, _LIMITS.silent_after)
        scores = {agent_id: score for agent_id, score in watched.items() if not score_range.contains(score)}
        known = finish(self._tracker.no_longer_ahead(scores, score_range))
        scores |= {agent_id: score for agent_id, score in watched.items() if known.get(agent_id) == score}
        scan = Scan(scores=scores, watched=len(watched), score_range=score_range, now=self.now, observed_until=self.now)
        assessment = finish(
            self._tracker.assess(scan, lambda _: "", lambda each: self.fleet.last_message_at.get(each, 0.0))
        )
        self._silent = set(assessment.silent_since)
        for loss in assessment.losses:
            self.decide(decide_lost, loss.agent_id, loss.score, loss.silent_s)


_skews = st.sampled_from([0.0, -3600.0, 3600.0, -14.0, 20.0])
_measured_skews = _skews.filter(lambda skew_s: skew_s != -14.0)  # the silence of such a clock may be overestimated
_actions = st.lists(st.sampled_from(["beat", "beat", "", "", "register", "goodbye", "heartbeat"]), max_size=60)


@given(skew_s=_skews, actions=_actions, every_s=st.integers(1, 10))
def test_an_agent_that_sends_heartbeats_is_fresh_whatever_came_before(
    skew_s: float, actions: list[str], every_s: int
) -> None:
    """From its first heartbeat after a registration on."""
    life = Life(skew_s)
    for action in actions:
        life.act(action)
        life.step()
    life.act("register")
    for second in range(90):
        if second % every_s == 0:
            life.act("beat")
        life.step()
        if second >= _NOTICE_S:
            assert life.shown() is Liveness.FRESH


@given(
    skew_s=_measured_skews,
    actions=_actions,
    last=st.sampled_from([["register"], ["register", "beat"], ["heartbeat"], ["beat", "beat"]]),
)
def test_an_agent_that_dies_is_silent_and_lost_in_time_whatever_came_before(
    skew_s: float, actions: list[str], last: list[str]
) -> None:
    """If it has ever sent a heartbeat. After a goodbye, the second heartbeat surely brings it back."""
    life, acted_at = Life(skew_s), 0.0
    for action in ["beat", *actions, *last]:
        life.act(action)
        acted_at = life.now
        life.step()
    while life.now <= acted_at + _LIMITS.lost_after + _NOTICE_S:
        life.step()
        silent_s = life.now - acted_at
        if silent_s < _LIMITS.silent_after:
            assert life.shown() is Liveness.FRESH
        elif _LIMITS.silent_after + _NOTICE_S <= silent_s < _LIMITS.lost_after:
            assert life.shown() is Liveness.SILENT
    assert life.shown() is Liveness.LOST


@given(actions=_actions)
def test_an_agent_that_says_goodbye_has_left_until_its_next_sign_of_life(actions: list[str]) -> None:
    """However long it stays away."""
    life = Life(0.0)
    for action in [*actions, "goodbye"]:
        life.act(action)
        life.step()
    for _ in range(100):
        life.step()
        assert life.shown() is Liveness.LEFT
