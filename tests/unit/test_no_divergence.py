"""What is no divergence, although it may look like one."""

from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.agents.activity import AbsentHeartbeat, observe_heartbeat
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.state_changes import decide_snapshot
from tests.support.divergence import LONG, CheckedWorld


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
