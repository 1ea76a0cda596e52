"""The laws of divergences: each rule by example; who is honest is never accused, who is not always is, and once."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.model.agent import Sighting
from aism_engine.model.clocks import Clocks
from aism_engine.model.decisions.common import Decision
from aism_engine.model.decisions.divergences import Sight, decide_divergences
from aism_engine.model.decisions.signs import decide_beat, decide_loss, decide_sighting
from aism_engine.model.divergence import RULES, Thresholds, may_have_news
from tests.support.model import NOW, World

LONG: Final = 100_000.0
"""Longer than any threshold."""


class Watched(World):
    """A fleet, and the witness that looks at its agent `a`."""

    def __init__(self, *rules: str, **limits: Any) -> None:  # noqa: ANN401 - fields of Thresholds
        super().__init__(divergence=Thresholds(rules=frozenset(rules or RULES), **limits), ack_timeout_s=30.0)
        self.watched_from = NOW
        self.unread_s = 0.0
        """How far behind the consumer is."""
        self.clocks = Clocks(10.0)

    def begin(self, *states: str, capabilities: tuple[str, ...] = ()) -> None:
        self.say("register", type="scribe", capabilities=capabilities)
        for state in states:
            self.say("state_transition", target=state)
        self.sightings["a"] = Sighting(score=1.0)
        draft = self.draft()
        self.commit(draft, decide_beat(draft, self.rules, "a", {"a": 1.0}))

    def beat(self, score: float) -> None:
        """The heartbeat is seen as it stands now."""
        agent = self.agent()
        absent = agent.declared == agent.state == "offline"
        self.clocks.look("a", score, self.now, self.now, agent.since if absent else 0.0)

    def judge(self) -> Decision:
        """Judge it; whatever comes of that, a glance has shown before that something might."""
        draft, sight = self.draft(), Sight(self.now - self.unread_s, self.watched_from)
        beats, deeds = self.clocks.of("a"), self.fleet.deeds.get("a")
        suspected = may_have_news(self.agent(), deeds, beats, self.rules.divergence)
        decision = self.commit(draft, decide_divergences(draft, self.rules, "a", sight, beats))
        assert suspected or decision.outcome == "unchanged"
        return decision

    def later(self, seconds: float = LONG) -> set[str]:
        """Let time pass, and nothing else; give what is open then."""
        self.now += seconds
        self.judge()
        return set(self.agent().divergences)

    def publish(self, state: str) -> None:
        """Its state is published by the agent itself, and was heard."""
        self.say("state_transition", target=state, via="pubsub")

    def take_and_miss(self, command_id: str, *, ack: bool) -> None:
        """It takes a command, confirms it or not, and is not heard of it again."""
        self.now += 1
        self.send(command_id)
        self.pop()
        self.look()
        if ack:
            self.say("ack", command_id=command_id)
        self.pass_time(3601)

    @property
    def told_of(self) -> list[tuple[str, str]]:
        return [
            (fact["event"].removeprefix("divergence_"), fact["code"])
            for fact in self.told("divergence_opened", "divergence_closed")
        ]


# --- each rule: what opens it, and what closes it ---------------------------------------------------------------------


def idle(world: Watched) -> None:
    world.begin("inbox", "deep_work")
    world.now += 600


def beats_offline(world: Watched) -> None:
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
        world.say("heartbeat", instance=instance)


def two_clocks(world: Watched) -> None:
    world.begin("inbox")
    for second in range(20):
        world.now += 1
        world.beat(world.now + (3600 if second % 2 else 0))


def full_context(world: Watched) -> None:
    world.begin("inbox")
    world.say("measurement", context_tokens=150_001)
    world.now += 120


def _ack_one(world: Watched) -> None:
    world.send("c9")
    world.pop()
    world.say("ack", command_id="c9")


def _finish_one(world: Watched) -> None:
    _ack_one(world)
    world.say("result", command_id="c9")


def _keep_quiet(world: Watched) -> None:
    world.now += 301


LIES: Final[list[tuple[str, Callable[[Watched], None], Callable[[Watched], object]]]] = [
    ("idle_at_work", idle, lambda world: world.say("state_transition", target="inbox")),
    ("idle_at_work", idle, lambda world: world.say("measurement", depth=1)),
    ("beats_offline", beats_offline, lambda world: world.say("register", type="scribe")),
    ("forbidden_state", forbidden, lambda world: world.publish("deep_work")),
    ("forbidden_state", forbidden, lambda world: world.say("register", type="scribe")),
    ("never_acks", no_acks, _ack_one),
    ("never_acks", no_acks, lambda world: world.say("register", type="scribe")),
    ("never_finishes", no_ends, _finish_one),
    ("two_voices", two_instances, _keep_quiet),
    ("two_voices", two_clocks, _keep_quiet),
    ("undistilled", full_context, lambda world: world.say("state_transition", target="distill")),
    ("undistilled", full_context, lambda world: world.say("measurement", context_tokens=150_000)),
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
    world.rules = Watched("two_voices" if rule != "two_voices" else "undistilled").rules
    world.judge()
    assert world.told_of == [("opened", rule), ("closed", rule)]


@pytest.mark.parametrize(("rule", "lie", "_amends"), LIES, ids=IDS)
def test_who_goes_away_claims_nothing_any_more(rule: str, lie: Callable[[Watched], None], _amends: object) -> None:
    """What was open when an agent was lost is closed, and nothing is opened while it is lost."""
    world = Watched(rule)
    lie(world)
    world.judge()
    draft = world.draft()
    world.commit(draft, decide_loss(draft, world.rules, "a", 1.0, 45.0))
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
    is_of_silence = rule in {"idle_at_work", "beats_offline", "forbidden_state", "undistilled"}
    assert world.judge().outcome == ("unchanged" if is_of_silence else "applied")
    world = Watched(rule)
    lie(world)
    world.watched_from = world.now + 1
    world.clocks.reset()
    assert world.judge().outcome == "unchanged"


@pytest.mark.parametrize(("rule", "lie", "_amends"), LIES, ids=IDS)
def test_an_open_divergence_outlives_a_takeover(rule: str, lie: Callable[[Watched], None], _amends: object) -> None:
    """Who takes over has seen nothing yet: it neither opens it again, nor closes it for want of evidence."""
    world = Watched(rule)
    lie(world)
    world.judge()
    before = world.agent().divergences
    world.fleet = world.reloaded()
    world.clocks.reset()
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
    world.look()
    assert world.later() == set()


def test_who_was_moved_has_claimed_nothing() -> None:
    """A state that another gave it is no word of the agent's."""
    world = Watched("idle_at_work", "beats_offline")
    world.begin("inbox", "logout")
    draft = world.draft()
    world.commit(draft, decide_loss(draft, world.rules, "a", 1.0, 45.0))
    world.say("heartbeat")
    for _ in range(200):
        world.now += 1
        world.beat(world.now)
        world.judge()
    assert world.told_of == []


def test_a_refused_question_is_no_contradiction() -> None:
    """What was pushed to the queue was asked and answered; what was written to the key by hand was claimed."""
    world = Watched("forbidden_state")
    world.begin("inbox")
    world.say("state_transition", target="nirvana")
    assert world.later() == set()
    world.sightings["a"] = Sighting(state="nirvana", score=1.0)
    draft = world.draft()
    world.commit(draft, decide_sighting(draft, world.rules, "a", world.now))
    assert (world.agent().declared_via, world.later()) == ("key", {"forbidden_state"})


def test_many_in_hand_at_once_are_missed_once() -> None:
    """Who takes ten commands and stands still has missed one moment, not ten."""
    world = Watched("never_acks", "never_finishes")
    world.begin("inbox", capabilities=("ack",))
    commands = [f"c{number}" for number in range(10)]
    for command_id in commands:
        world.send(command_id)
        world.pop()
    world.look()
    for command_id in commands[:5]:
        world.say("ack", command_id=command_id)
    world.pass_time(3601)
    world.judge()
    assert world.told_of == []


def test_a_restart_is_no_second_voice() -> None:
    """Even if the last word of the old process comes late, and however often it is restarted."""
    world = Watched("two_voices")
    world.begin("inbox")
    for instance in ("A", "A", "B", "A", "B", "C", "D", "E"):
        world.say("register", type="scribe", instance=instance)
    world.judge()
    assert world.told_of == []


def test_the_gap_before_a_registration_is_no_lie() -> None:
    """A process that starts beats before it has registered: for less than `beating_after`."""
    world = Watched("beats_offline")
    world.begin("inbox", "logout", "offline")
    world.now += LONG
    for _ in range(119):
        world.beat(world.now)
        world.now += 1
        world.judge()
    world.say("register", type="scribe")
    assert world.later() == set()


# --- the two properties -----------------------------------------------------------------------------------------------

_PAUSES = st.lists(st.floats(0, 5000), min_size=1, max_size=40)


_LOOK = st.tuples(st.floats(0.01, 5000), st.floats(0, 5000), st.floats(0, 5000))


@given(st.floats(-1e6, 1e6), st.lists(_LOOK, max_size=60))
def test_one_clock_is_never_taken_for_two(offset_s: float, looks: list[tuple[float, float, float]]) -> None:
    """Whatever it shows, however long its agent pauses, however late we look, and however long that takes."""
    clocks, now = Clocks(10.0), NOW
    for beat_after_s, ask_after_s, answer_after_s in looks:
        now += beat_after_s
        score, asked_at = now + offset_s, now + ask_after_s
        now = asked_at + answer_after_s
        clocks.look("a", score, asked_at, now)
    beats = clocks.of("a")
    assert beats is None or beats.turns == ()


def test_a_beat_from_before_its_absence_is_none_in_it() -> None:
    """What has moved since a look that lies before the declaration may have moved before it, too."""
    clocks = Clocks(10.0)
    for score, looked_at, absent_since in ((1.0, 100.0, 0.0), (2.0, 110.0, 105.0)):
        clocks.look("a", score, looked_at, looked_at, absent_since)
    assert (beats := clocks.of("a")) is not None
    assert beats.beating is None
    clocks.look("a", 3.0, 120.0, 120.0, 105.0)
    assert beats.beating == (120.0, 110.0)


@given(st.floats(100, 1e6), st.booleans(), st.floats(0.5, 5))
def test_two_clocks_are_always_told_apart(apart_s: float, first: bool, every_s: float) -> None:  # noqa: FBT001
    """As long as they are further apart than our looks, and take turns."""
    world = Watched("two_voices")
    world.begin("inbox")
    for number in range(16):
        world.now += every_s
        world.beat(world.now + (apart_s if first == bool(number % 2) else 0))
        world.judge()
    assert world.told_of == [("opened", "two_voices")]


_STEPS = st.one_of(
    st.tuples(st.just("work"), st.floats(0, 599)),
    st.tuples(st.just("rest"), st.floats(0, 5000)),
    st.tuples(st.just("distill"), st.floats(0, 119)),
    st.tuples(st.just("restart"), st.floats(0, 119)),
    st.tuples(st.just("blind"), st.floats(0, 5000)),
    st.tuples(st.just("behind"), st.floats(0, 5000)),
)


@given(st.lists(_STEPS, max_size=40), st.floats(-1e5, 1e5))
def test_an_honest_agent_is_never_accused(steps: list[tuple[str, float]], offset_s: float) -> None:
    """It works and says so, rests and says so, is restarted; and we pause, or fall behind, for as long as we like."""
    world = Watched()
    world.begin("inbox", capabilities=("ack",))
    for number, (step, seconds) in enumerate(steps):
        match step:
            case "work":
                world.say("state_transition", target="inbox")
                world.say("state_transition", target="deep_work")
                world.send(f"c{number}")
                world.pop()
                world.say("ack", command_id=f"c{number}")
                world.pass_time(seconds)
                world.say("result", command_id=f"c{number}")
            case "rest":
                world.say("state_transition", target="inbox")
                world.say("state_transition", target="idle")
                world.pass_time(seconds)
            case "distill":
                world.say("measurement", context_tokens=200_000)
                world.pass_time(seconds)
                world.say("state_transition", target="inbox")
                world.say("state_transition", target="distill")
                world.say("state_transition", target="inbox")
            case "restart":
                world.pass_time(seconds)
                world.say("register", type="scribe", capabilities=["ack"], instance=f"i{number}")
                world.say("state_transition", target="inbox")
            case "blind":
                # all that it said and did meanwhile is read afterwards, with a grace from then on
                world.pass_time(seconds)
                world.watched_from = world.now
                world.clocks.reset()
            case "behind":
                world.pass_time(seconds)
                world.unread_s = seconds
                world.judge()
                world.say("state_transition", target="inbox")
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
