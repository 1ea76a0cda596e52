"""Rules of divergences: what opens and closes each of them. A consistent agent never has one."""

from collections.abc import Callable
from typing import Final

import pytest

from aism_engine.domain.agents.divergence import RULES
from tests.support.divergence import CheckedWorld
from tests.support.model import NOW


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
    assert (world.agent().divergences, world.record().divergences) == ({}, {})
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
