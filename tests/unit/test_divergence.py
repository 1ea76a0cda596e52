"""Rules of divergences: what opens and closes each of them. A consistent agent never has one."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.activity import AbsentHeartbeat, observe_heartbeat
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.divergence import RULES, ObservationWindow, decide_divergences, may_have_changes
from aism_engine.domain.agents.liveness import decide_first_heartbeat, decide_lost
from aism_engine.domain.agents.transitions import decide_snapshot
from aism_engine.domain.decision import Decision
from aism_engine.domain.policy import DivergenceSettings
from tests.support.model import NOW, World

LONG: Final = 100_000.0
"""Longer than any threshold."""


class CheckedWorld(World):
    """A fleet, with the evidence and the checks of its agent `a`."""

    def __init__(self, *rules: str, **limits: Any) -> None:  # noqa: ANN401 - settings of [divergence]
        switches: dict[str, Any] = {rule: rule in (rules or RULES) for rule in RULES}
        super().__init__(divergence=DivergenceSettings(**switches, **limits), ack_timeout=30.0)
        self.observed_from = NOW
        self.unread_s = 0.0
        """Age of the oldest unread response."""
        self.heartbeats: dict[str, AbsentHeartbeat] = {}

    def begin(self, *states: str, capabilities: tuple[str, ...] = ()) -> None:
        self.respond("register", type="scribe", capabilities=capabilities)
        for state in states:
            self.respond("state_transition", target=state)
        self.snapshots["a"] = AgentSnapshot(score=1.0)
        self.decide(decide_first_heartbeat, "a", {"a": 1.0})

    def observe_heartbeat(self, score: float) -> None:
        agent = self.agent()
        if agent.declared == agent.state == "offline":
            observe_heartbeat(self.heartbeats, "a", score, self.now, self.now, agent.since)

    def check(self) -> Decision:
        """Check the agent. `may_have_changes` is true whenever the rules change anything."""
        window = ObservationWindow(self.observed_from, self.now - self.unread_s)
        may_change = may_have_changes(self.agent(), self.fleet.activity.get("a"), self.policy.divergence)
        decision = self.decide(decide_divergences, "a", window, self.heartbeats.get("a"))
        assert may_change or decision.outcome == "unchanged"
        return decision

    def lose(self) -> None:
        self.decide(decide_lost, "a", 1.0, 45.0)

    def open_later(self) -> set[str]:
        """Let a long time pass, and return the divergences that are open then."""
        self.now += LONG
        self.check()
        return set(self.agent().divergences)

    def publish(self, state: str) -> None:
        self.respond("state_transition", target=state, via="channel")

    def miss_deadline(self, command_id: str, *, ack: bool) -> None:
        """Let the agent take a command, acknowledge it if `ack`, and miss its deadline."""
        self.now += 1
        self.send(command_id)
        while self.pop()["type"] == "cancel":
            pass
        self.poll_list()
        if ack:
            self.respond("ack", command_id=command_id)
        self.pass_time(3601)

    @property
    def reported(self) -> list[tuple[str, str]]:
        return [
            (fact["event"].removeprefix("divergence_"), fact["code"])
            for fact in self.facts_of("divergence_opened", "divergence_closed")
        ]


# --- each rule: what opens a divergence, and what closes it -----------------------------------------------------------


def be_idle(world: CheckedWorld) -> None:
    world.begin("inbox", "deep_work")
    world.now += 600


def send_heartbeats_while_absent(world: CheckedWorld) -> None:
    world.begin("inbox", "logout", "offline")
    for second in range(130):
        world.observe_heartbeat(world.now)
        world.now += second > 0


def publish_forbidden_state(world: CheckedWorld) -> None:
    world.begin("inbox")
    world.publish("nirvana")
    world.now += 30


def ack_nothing(world: CheckedWorld) -> None:
    world.begin("inbox", capabilities=("ack",))
    for command_id in ("c1", "c2", "c3"):
        world.miss_deadline(command_id, ack=False)


def finish_nothing(world: CheckedWorld) -> None:
    world.begin("inbox", capabilities=("ack",))
    for command_id in ("c1", "c2", "c3"):
        world.miss_deadline(command_id, ack=True)


def alternate_instances(world: CheckedWorld) -> None:
    world.begin("inbox")
    for instance in "ABABAB":
        world.respond("heartbeat", instance=instance)


def exceed_context(world: CheckedWorld) -> None:
    world.begin("inbox")
    world.respond("measurement", context_tokens=150_001)
    world.now += 120


def _ack_one(world: CheckedWorld) -> None:
    world.send("c9")
    world.pop()
    world.respond("ack", command_id="c9")


def _finish_one(world: CheckedWorld) -> None:
    _ack_one(world)
    world.respond("result", command_id="c9")


def _let_switches_expire(world: CheckedWorld) -> None:
    world.now += 301


CASES: Final[list[tuple[str, Callable[[CheckedWorld], None], Callable[[CheckedWorld], object]]]] = [
    ("idle_at_work", be_idle, lambda world: world.respond("state_transition", target="inbox")),
    ("idle_at_work", be_idle, lambda world: world.respond("measurement", depth=1)),
    ("heartbeat_while_absent", send_heartbeats_while_absent, lambda world: world.respond("register", type="scribe")),
    ("forbidden_state", publish_forbidden_state, lambda world: world.publish("deep_work")),
    ("forbidden_state", publish_forbidden_state, lambda world: world.respond("register", type="scribe")),
    ("never_acks", ack_nothing, _ack_one),
    ("never_acks", ack_nothing, lambda world: world.respond("register", type="scribe")),
    ("never_finishes", finish_nothing, _finish_one),
    ("duplicate_instance", alternate_instances, _let_switches_expire),
    ("context_too_large", exceed_context, lambda world: world.respond("state_transition", target="distill")),
    ("context_too_large", exceed_context, lambda world: world.respond("measurement", context_tokens=150_000)),
]
_PARAMETERS: Final = [pytest.param(*case, id=f"{case[0]}-{number}") for number, case in enumerate(CASES)]
each_case = pytest.mark.parametrize(("rule", "diverge", "end"), _PARAMETERS)
each_rule = pytest.mark.parametrize(("rule", "diverge"), {case[0]: case[:2] for case in CASES}.values())


@each_case
def test_divergence_is_reported_once_when_it_opens_and_once_when_it_closes(
    rule: str, diverge: Callable[[CheckedWorld], None], end: Callable[[CheckedWorld], object]
) -> None:
    """Further checks report nothing. The record holds the divergence while it is open."""
    world = CheckedWorld(rule)
    diverge(world)
    assert [world.check().outcome for _ in range(3)] == ["applied", "unchanged", "unchanged"]
    assert world.reported == [("opened", rule)]
    assert world.reloaded().agents["a"].divergences == world.agent().divergences
    end(world)
    assert [world.check().outcome for _ in range(3)] == ["applied", "unchanged", "unchanged"]
    assert world.reported == [("opened", rule), ("closed", rule)]
    assert (world.agent().divergences, world.records["a"]["divergences"]) == ({}, "")
    events = [event for event in world.events("errors") if event["code"] == "divergence"]
    assert [(event["agent_id"], event["details"]["rule"], event["details"]["status"]) for event in events] == [
        ("a", rule, "opened"),
        ("a", rule, "closed"),
    ]


@each_rule
def test_disabled_rule_opens_nothing_and_closes_the_open_one(
    rule: str, diverge: Callable[[CheckedWorld], None]
) -> None:
    world = CheckedWorld(*(RULES.keys() - {rule}))
    diverge(world)
    world.check()
    assert rule not in world.agent().divergences
    world = CheckedWorld(rule)
    diverge(world)
    world.check()
    world.policy = CheckedWorld("duplicate_instance" if rule != "duplicate_instance" else "context_too_large").policy
    world.check()
    assert world.reported == [("opened", rule), ("closed", rule)]


@each_rule
def test_divergences_of_lost_agent_are_closed(rule: str, diverge: Callable[[CheckedWorld], None]) -> None:
    """None is opened while the agent is lost."""
    world = CheckedWorld(rule)
    diverge(world)
    world.check()
    world.lose()
    world.check()
    assert world.reported == [("opened", rule), ("closed", rule)]
    assert world.open_later() == set()


@each_rule
def test_only_what_was_observed_and_read_is_evidence(rule: str, diverge: Callable[[CheckedWorld], None]) -> None:
    """What happened before the engine could observe is no evidence. Neither is silence while responses are unread."""
    world = CheckedWorld(rule)
    diverge(world)
    world.unread_s = world.now - NOW + 1
    is_about_silence = rule in {"idle_at_work", "heartbeat_while_absent", "forbidden_state", "context_too_large"}
    assert world.check().outcome == ("unchanged" if is_about_silence else "applied")
    world = CheckedWorld(rule)
    diverge(world)
    world.observed_from = world.now + 1
    world.heartbeats.clear()
    assert world.check().outcome == "unchanged"


@each_rule
def test_open_divergence_outlives_a_takeover(rule: str, diverge: Callable[[CheckedWorld], None]) -> None:
    """A new leader has observed nothing yet, so it neither reports the divergence again nor closes it."""
    world = CheckedWorld(rule)
    diverge(world)
    world.check()
    before = world.agent().divergences
    world.fleet = world.reloaded()
    world.heartbeats.clear()
    world.observed_from = world.now
    world.unread_s = float("inf")  # nothing has been read yet
    assert (world.check().outcome, world.agent().divergences) == ("unchanged", before)
    world.unread_s = 0.0
    assert (world.check().outcome, world.agent().divergences) == ("unchanged", before)


# --- no divergence ----------------------------------------------------------------------------------------------------


def test_agent_with_a_command_in_flight_is_not_idle() -> None:
    """The command has timeouts of its own."""
    world = CheckedWorld("idle_at_work")
    world.begin("inbox", "deep_work")
    world.send("c1")
    world.pop()
    world.poll_list()
    assert world.open_later() == set()


def test_state_that_the_engine_chose_is_no_declaration() -> None:
    """An agent that was lost and returns is in `offline` because of the engine."""
    world = CheckedWorld("idle_at_work", "heartbeat_while_absent")
    world.begin("inbox", "logout")
    world.lose()
    world.respond("heartbeat")
    for _ in range(200):
        world.now += 1
        world.observe_heartbeat(world.now)
        world.check()
    assert world.reported == []


def test_forbidden_state_is_one_that_was_written_not_one_that_was_requested() -> None:
    world = CheckedWorld("forbidden_state")
    world.begin("inbox")
    world.respond("state_transition", target="nirvana")
    assert world.open_later() == set()
    world.snapshots["a"] = AgentSnapshot(state="nirvana", score=1.0)
    world.decide(decide_snapshot, "a", world.now)
    assert (world.agent().declared_via, world.open_later()) == ("key", {"forbidden_state"})


def test_commands_in_flight_at_the_same_time_count_as_one_missed_deadline() -> None:
    """An agent that holds ten commands and hangs has missed one deadline, not ten."""
    world = CheckedWorld("never_acks", "never_finishes")
    world.begin("inbox", capabilities=("ack",))
    commands = [f"c{number}" for number in range(10)]
    for command_id in commands:
        world.send(command_id)
        world.pop()
    world.poll_list()
    for command_id in commands[:5]:
        world.respond("ack", command_id=command_id)
    world.pass_time(3601)
    world.check()
    assert world.reported == []


def test_restarts_are_no_duplicate_instance() -> None:
    """The last message of an old process may arrive after the first of the new one."""
    world = CheckedWorld("duplicate_instance")
    world.begin("inbox")
    for instance in ("A", "A", "B", "A", "B", "C", "D", "E"):
        world.respond("register", type="scribe", instance=instance)
    world.check()
    assert world.reported == []


def test_heartbeats_shortly_before_a_registration_are_no_divergence() -> None:
    """A process that starts sends heartbeats for less than `heartbeat_evidence_after` before it registers."""
    world = CheckedWorld("heartbeat_while_absent")
    world.begin("inbox", "logout", "offline")
    world.now += LONG
    for _ in range(119):
        world.observe_heartbeat(world.now)
        world.now += 1
        world.check()
    world.respond("register", type="scribe")
    assert world.open_later() == set()


def test_heartbeat_from_before_the_absence_does_not_count() -> None:
    """A score that moved since a reading before the declaration may have moved before the declaration."""
    heartbeats: dict[str, AbsentHeartbeat] = {}
    for score, read_at in ((1.0, 100.0), (2.0, 110.0)):
        observe_heartbeat(heartbeats, "a", score, read_at, read_at, absent_since=105.0)
    assert heartbeats["a"].span is None
    observe_heartbeat(heartbeats, "a", 3.0, 120.0, 120.0, absent_since=105.0)
    assert heartbeats["a"].span == (120.0, 110.0)


# --- properties -------------------------------------------------------------------------------------------------------

_STEPS = st.one_of(
    st.tuples(st.just("work"), st.floats(0, 599)),
    st.tuples(st.just("rest"), st.floats(0, 5000)),
    st.tuples(st.just("distill"), st.floats(0, 119)),
    st.tuples(st.just("restart"), st.floats(0, 119)),
    st.tuples(st.just("blind"), st.floats(0, 5000)),
    st.tuples(st.just("behind"), st.floats(0, 5000)),
)


@given(st.lists(_STEPS, max_size=40), st.floats(-1e5, 1e5))
def test_consistent_agent_never_has_a_divergence(steps: list[tuple[str, float]], offset_s: float) -> None:
    """The agent declares what it does and is restarted. The engine pauses or falls behind for any time."""
    world = CheckedWorld()
    world.begin("inbox", capabilities=("ack",))
    for number, (step, seconds) in enumerate(steps):
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
                # What the agent did meanwhile is read afterwards, and the full grace begins.
                world.pass_time(seconds)
                world.observed_from = world.now
                world.heartbeats.clear()
            case "behind":
                world.pass_time(seconds)
                world.unread_s = seconds
                world.check()
                world.respond("state_transition", target="inbox")
                world.unread_s = 0.0
        world.observe_heartbeat(world.now + offset_s)
        world.check()
    assert world.reported == []


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=40))
def test_idle_agent_has_one_divergence_after_any_number_of_checks(pauses: list[float]) -> None:
    """The agent declares that it works, and only sends heartbeats."""
    world = CheckedWorld()
    world.begin("inbox", "deep_work")
    for pause_s in pauses:
        world.now += pause_s
        world.observe_heartbeat(world.now)
        world.check()
    assert world.reported == [("opened", "idle_at_work")] * (sum(pauses) >= 600)
