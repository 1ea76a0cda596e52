"""The laws of divergences: each rule by example; who is honest is never accused, who is not always is, and once."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.divergence import RULES, may_have_changes
from aism_engine.domain.agents.divergence_decisions import ObservationWindow, decide_divergences
from aism_engine.domain.agents.heartbeats import AbsentHeartbeats
from aism_engine.domain.agents.presence import decide_first_heartbeat, decide_lost, decide_snapshot
from aism_engine.domain.decision import Decision
from aism_engine.domain.policy import DivergenceSettings
from tests.support.model import NOW, World

LONG: Final = 100_000.0
"""Longer than any threshold."""


class Watched(World):
    """A fleet, and the witness that looks at its agent `a`."""

    def __init__(self, *rules: str, **limits: Any) -> None:  # noqa: ANN401 - settings of [divergence]
        switches: dict[str, Any] = {rule: rule in (rules or RULES) for rule in RULES}
        super().__init__(divergence=DivergenceSettings(**switches, **limits), ack_timeout=30.0)
        self.watched_from = NOW
        self.unread_s = 0.0
        """How far behind the consumer is."""
        self.heartbeats = AbsentHeartbeats()

    def begin(self, *states: str, capabilities: tuple[str, ...] = ()) -> None:
        self.respond("register", type="scribe", capabilities=capabilities)
        for state in states:
            self.respond("state_transition", target=state)
        self.snapshots["a"] = AgentSnapshot(score=1.0)
        draft = self.draft()
        self.commit(draft, decide_first_heartbeat(draft, self.policy, "a", {"a": 1.0}))

    def beat(self, score: float) -> None:
        """The heartbeat is seen as it stands now."""
        agent = self.agent()
        if agent.declared == agent.state == "offline":
            self.heartbeats.observe("a", score, self.now, self.now, agent.since)

    def judge(self) -> Decision:
        """Judge it; whatever comes of that, a glance has shown before that something might."""
        draft, sight = self.draft(), ObservationWindow(self.now - self.unread_s, self.watched_from)
        beats, activity = self.heartbeats.get("a"), self.fleet.activity.get("a")
        suspected = may_have_changes(self.agent(), activity, self.policy.divergence)
        decision = self.commit(draft, decide_divergences(draft, self.policy, "a", sight, beats))
        assert suspected or decision.outcome == "unchanged"
        return decision

    def later(self, seconds: float = LONG) -> set[str]:
        """Let time pass, and nothing else; give what is open then."""
        self.now += seconds
        self.judge()
        return set(self.agent().divergences)

    def publish(self, state: str) -> None:
        """Its state is published by the agent itself, and was heard."""
        self.respond("state_transition", target=state, via="pubsub")

    def take_and_miss(self, command_id: str, *, ack: bool) -> None:
        """It takes a command, confirms it or not, and is not heard of it again."""
        self.now += 1
        self.send(command_id)
        self.pop()
        self.poll_list()
        if ack:
            self.respond("ack", command_id=command_id)
        self.pass_time(3601)

    @property
    def told_of(self) -> list[tuple[str, str]]:
        return [
            (fact["event"].removeprefix("divergence_"), fact["code"])
            for fact in self.facts_of("divergence_opened", "divergence_closed")
        ]


# --- each rule: what opens it, and what closes it ---------------------------------------------------------------------


def idle(world: Watched) -> None:
    world.begin("inbox", "deep_work")
    world.now += 600


def heartbeat_while_absent(world: Watched) -> None:
    world.begin("inbox", "logout", "offline")
    for second in range(130):
        world.beat(world.now)
        world.now += second > 0


def forbidden(world: Watched) -> None:
    world.begin("inbox")
    world.publish("nirvana")
    world.now += 30


def no_acks(world: Watched) -> None:
    world.begin("inbox", capabilities=("ack",))
    for command_id in ("c1", "c2", "c3"):
        world.take_and_miss(command_id, ack=False)


def no_ends(world: Watched) -> None:
    world.begin("inbox", capabilities=("ack",))
    for command_id in ("c1", "c2", "c3"):
        world.take_and_miss(command_id, ack=True)


def two_instances(world: Watched) -> None:
    world.begin("inbox")
    for instance in "ABABAB":
        world.respond("heartbeat", instance=instance)


def full_context(world: Watched) -> None:
    world.begin("inbox")
    world.respond("measurement", context_tokens=150_001)
    world.now += 120


def _ack_one(world: Watched) -> None:
    world.send("c9")
    world.pop()
    world.respond("ack", command_id="c9")


def _finish_one(world: Watched) -> None:
    _ack_one(world)
    world.respond("result", command_id="c9")


def _keep_quiet(world: Watched) -> None:
    world.now += 301


LIES: Final[list[tuple[str, Callable[[Watched], None], Callable[[Watched], object]]]] = [
    ("idle_at_work", idle, lambda world: world.respond("state_transition", target="inbox")),
    ("idle_at_work", idle, lambda world: world.respond("measurement", depth=1)),
    ("heartbeat_while_absent", heartbeat_while_absent, lambda world: world.respond("register", type="scribe")),
    ("forbidden_state", forbidden, lambda world: world.publish("deep_work")),
    ("forbidden_state", forbidden, lambda world: world.respond("register", type="scribe")),
    ("never_acks", no_acks, _ack_one),
    ("never_acks", no_acks, lambda world: world.respond("register", type="scribe")),
    ("never_finishes", no_ends, _finish_one),
    ("duplicate_instance", two_instances, _keep_quiet),
    ("context_too_large", full_context, lambda world: world.respond("state_transition", target="distill")),
    ("context_too_large", full_context, lambda world: world.respond("measurement", context_tokens=150_000)),
]
IDS: Final = [f"{rule}-{number}" for number, (rule, *_) in enumerate(LIES)]


@pytest.mark.parametrize(("rule", "lie", "amends"), LIES, ids=IDS)
def test_a_lie_is_found_once_and_is_over_once(
    rule: str, lie: Callable[[Watched], None], amends: Callable[[Watched], object]
) -> None:
    """However often it is looked at; what is open stands in the record, and no longer than that."""
    world = Watched(rule)
    lie(world)
    assert [world.judge().outcome for _ in range(3)] == ["applied", "unchanged", "unchanged"]
    assert world.told_of == [("opened", rule)]
    assert world.reloaded().agents["a"].divergences == world.agent().divergences
    amends(world)
    assert [world.judge().outcome for _ in range(3)] == ["applied", "unchanged", "unchanged"]
    assert world.told_of == [("opened", rule), ("closed", rule)]
    assert (world.agent().divergences, world.records["a"]["divergences"]) == ({}, "")
    events = [event for event in world.events("errors") if event["code"] == "divergence"]
    assert [(event["agent_id"], event["details"]["rule"], event["details"]["status"]) for event in events] == [
        ("a", rule, "opened"),
        ("a", rule, "closed"),
    ]


@pytest.mark.parametrize(("rule", "lie", "_amends"), LIES, ids=IDS)
def test_a_rule_that_is_off_says_nothing_and_closes_what_it_opened(
    rule: str, lie: Callable[[Watched], None], _amends: object
) -> None:
    """Each is on or off by itself."""
    world = Watched(*(RULES.keys() - {rule}))
    lie(world)
    world.judge()
    assert rule not in world.agent().divergences
    world = Watched(rule)
    lie(world)
    world.judge()
    world.policy = Watched("duplicate_instance" if rule != "duplicate_instance" else "context_too_large").policy
    world.judge()
    assert world.told_of == [("opened", rule), ("closed", rule)]


@pytest.mark.parametrize(("rule", "lie", "_amends"), LIES, ids=IDS)
def test_who_goes_away_claims_nothing_any_more(rule: str, lie: Callable[[Watched], None], _amends: object) -> None:
    """What was open when an agent was lost is closed, and nothing is opened while it is lost."""
    world = Watched(rule)
    lie(world)
    world.judge()
    draft = world.draft()
    world.commit(draft, decide_lost(draft, world.policy, "a", 1.0, 45.0))
    world.judge()
    assert world.told_of == [("opened", rule), ("closed", rule)]
    assert world.later() == set()


@pytest.mark.parametrize(("rule", "lie", "_amends"), LIES, ids=IDS)
def test_what_was_not_seen_or_not_read_proves_nothing(
    rule: str, lie: Callable[[Watched], None], _amends: object
) -> None:
    """After a blind spell the same evidence is none; nor is silence, behind a backlog in which it may have spoken."""
    world = Watched(rule)
    lie(world)
    world.unread_s = world.now - NOW + 1
    is_of_silence = rule in {"idle_at_work", "heartbeat_while_absent", "forbidden_state", "context_too_large"}
    assert world.judge().outcome == ("unchanged" if is_of_silence else "applied")
    world = Watched(rule)
    lie(world)
    world.watched_from = world.now + 1
    world.heartbeats.reset()
    assert world.judge().outcome == "unchanged"


@pytest.mark.parametrize(("rule", "lie", "_amends"), LIES, ids=IDS)
def test_an_open_divergence_outlives_a_takeover(rule: str, lie: Callable[[Watched], None], _amends: object) -> None:
    """Who takes over has seen nothing yet: it neither opens it again, nor closes it for want of evidence."""
    world = Watched(rule)
    lie(world)
    world.judge()
    before = world.agent().divergences
    world.fleet = world.reloaded()
    world.heartbeats.reset()
    world.watched_from = world.now
    world.unread_s = float("inf")  # nothing has been read yet
    assert (world.judge().outcome, world.agent().divergences) == ("unchanged", before)
    world.unread_s = 0.0
    assert (world.judge().outcome, world.agent().divergences) == ("unchanged", before)


# --- what is none -----------------------------------------------------------------------------------------------------


def test_a_command_in_hand_is_no_idleness() -> None:
    """Who works on a command may be silent over it: its clocks see to that."""
    world = Watched("idle_at_work")
    world.begin("inbox", "deep_work")
    world.send("c1")
    world.pop()
    world.poll_list()
    assert world.later() == set()


def test_who_was_moved_has_claimed_nothing() -> None:
    """A state that another gave it is no word of the agent's."""
    world = Watched("idle_at_work", "heartbeat_while_absent")
    world.begin("inbox", "logout")
    draft = world.draft()
    world.commit(draft, decide_lost(draft, world.policy, "a", 1.0, 45.0))
    world.respond("heartbeat")
    for _ in range(200):
        world.now += 1
        world.beat(world.now)
        world.judge()
    assert world.told_of == []


def test_a_refused_question_is_no_contradiction() -> None:
    """What was pushed to the queue was asked and answered; what was written to the key by hand was claimed."""
    world = Watched("forbidden_state")
    world.begin("inbox")
    world.respond("state_transition", target="nirvana")
    assert world.later() == set()
    world.snapshots["a"] = AgentSnapshot(state="nirvana", score=1.0)
    draft = world.draft()
    world.commit(draft, decide_snapshot(draft, world.policy, "a", world.now))
    assert (world.agent().declared_via, world.later()) == ("key", {"forbidden_state"})


def test_many_in_hand_at_once_are_missed_once() -> None:
    """Who takes ten commands and stands still has missed one moment, not ten."""
    world = Watched("never_acks", "never_finishes")
    world.begin("inbox", capabilities=("ack",))
    commands = [f"c{number}" for number in range(10)]
    for command_id in commands:
        world.send(command_id)
        world.pop()
    world.poll_list()
    for command_id in commands[:5]:
        world.respond("ack", command_id=command_id)
    world.pass_time(3601)
    world.judge()
    assert world.told_of == []


def test_a_restart_is_no_second_voice() -> None:
    """Even if the last word of the old process comes late, and however often it is restarted."""
    world = Watched("duplicate_instance")
    world.begin("inbox")
    for instance in ("A", "A", "B", "A", "B", "C", "D", "E"):
        world.respond("register", type="scribe", instance=instance)
    world.judge()
    assert world.told_of == []


def test_the_gap_before_a_registration_is_no_lie() -> None:
    """A process that starts beats before it has registered: for less than `heartbeat_evidence_after`."""
    world = Watched("heartbeat_while_absent")
    world.begin("inbox", "logout", "offline")
    world.now += LONG
    for _ in range(119):
        world.beat(world.now)
        world.now += 1
        world.judge()
    world.respond("register", type="scribe")
    assert world.later() == set()


# --- the two properties -----------------------------------------------------------------------------------------------

_PAUSES = st.lists(st.floats(0, 5000), min_size=1, max_size=40)


def test_a_heartbeat_from_before_the_absence_does_not_count() -> None:
    """A score that moved since a reading before the declaration may have moved before the declaration."""
    heartbeats = AbsentHeartbeats()
    for score, read_at in ((1.0, 100.0), (2.0, 110.0)):
        heartbeats.observe("a", score, read_at, read_at, absent_since=105.0)
    assert (found := heartbeats.get("a")) is not None
    assert found.beating is None
    heartbeats.observe("a", 3.0, 120.0, 120.0, absent_since=105.0)
    assert found.beating == (120.0, 110.0)


_STEPS = st.one_of(
    st.tuples(st.just("work"), st.floats(0, 599)),
    st.tuples(st.just("rest"), st.floats(0, 5000)),
    st.tuples(st.just("distill"), st.floats(0, 119)),
    st.tuples(st.just("restart"), st.floats(0, 119)),
    st.tuples(st.just("blind"), st.floats(0, 5000)),
    st.tuples(st.just("behind"), st.floats(0, 5000)),
)


@given(st.lists(_STEPS, max_size=40), st.floats(-1e5, 1e5))
def test_an_honest_agent_is_never_accused(status_changes: list[tuple[str, float]], offset_s: float) -> None:
    """It works and says so, rests and says so, is restarted; and we pause, or fall behind, for as long as we like."""
    world = Watched()
    world.begin("inbox", capabilities=("ack",))
    for number, (step, seconds) in enumerate(status_changes):
        match step:
            case "work":
                world.respond("state_transition", target="inbox")
                world.respond("state_transition", target="deep_work")
                world.send(f"c{number}")
                world.pop()
                world.respond("ack", command_id=f"c{number}")
                world.pass_time(seconds)
                world.respond("result", command_id=f"c{number}")
            case "rest":
                world.respond("state_transition", target="inbox")
                world.respond("state_transition", target="idle")
                world.pass_time(seconds)
            case "distill":
                world.respond("measurement", context_tokens=200_000)
                world.pass_time(seconds)
                world.respond("state_transition", target="inbox")
                world.respond("state_transition", target="distill")
                world.respond("state_transition", target="inbox")
            case "restart":
                world.pass_time(seconds)
                world.respond("register", type="scribe", capabilities=["ack"], instance=f"i{number}")
                world.respond("state_transition", target="inbox")
            case "blind":
                # all that it said and did meanwhile is read afterwards, with a grace from then on
                world.pass_time(seconds)
                world.watched_from = world.now
                world.heartbeats.reset()
            case "behind":
                world.pass_time(seconds)
                world.unread_s = seconds
                world.judge()
                world.respond("state_transition", target="inbox")
                world.unread_s = 0.0
        world.beat(world.now + offset_s)
        world.judge()
    assert world.told_of == []


@given(_PAUSES)
def test_a_liar_is_accused_once_however_often_we_look(pauses: list[float]) -> None:
    """It says that it works, and does nothing but beat."""
    world = Watched()
    world.begin("inbox", "deep_work")
    for pause_s in pauses:
        world.now += pause_s
        world.beat(world.now)
        world.judge()
    assert world.told_of == [("opened", "idle_at_work")] * (sum(pauses) >= 600)
