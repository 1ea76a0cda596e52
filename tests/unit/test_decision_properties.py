"""Properties of decisions, for any sequence of responses, sends, heartbeats and time."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.liveness import decide_first_heartbeat, decide_lost, decide_returned
from aism_engine.domain.commands.command import OPEN, Status
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from tests.support.model import World

ENDS = frozenset(Status) - OPEN
AGENTS = ("a", "b")
COMMANDS = ("c1", "c2", "c3")
MAX_NAMES = 2
STATES = ("inbox", "deep_work", "idle", "offline", "bootstrap", "nirvana")
Step: TypeAlias = tuple[str, str, dict[str, Any]]

_agents = st.sampled_from(AGENTS)
_commands = st.sampled_from(COMMANDS)
_states = st.sampled_from(STATES)
_ids = st.none() | st.sampled_from(["m1", "m2", "m3"])
_envelope: dict[str, st.SearchStrategy[Any]] = {"id": _ids, "reply": st.booleans()}


def _response(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(kind), _agents, st.fixed_dictionaries(_envelope | fields))


_outcomes = st.one_of(
    _response("ack", command_id=_commands),
    _response("progress", command_id=_commands, percent=st.integers(0, 100)),
    _response("result", command_id=_commands),
    _response("error", command_id=_commands, code=st.just("broken")),
    _response("state_transition", command_id=_commands, target=_states),
)
_responses = st.one_of(
    _outcomes,
    _response("register", type=st.sampled_from(["scribe", "clerk"])),
    _response("heartbeat"),
    _response("goodbye"),
    _response("state_transition", target=_states),
    _response("message", to=_agents, content=st.none()),
    _response("measurement", tokens=st.integers(0, 9)),
    _response("measurement", cpu=st.integers(0, 9), heat=st.integers(0, 9)),
)
_kinds = st.sampled_from(["work", "state_transition"])
_sends = st.tuples(
    st.just("send"), _agents, st.fixed_dictionaries({"command_id": _commands, "kind": _kinds, "to": _states})
)
_others: st.SearchStrategy[Step] = st.tuples(
    st.sampled_from(["beat", "lose", "return", "forget"]), _agents, st.just({})
)
_waits = st.tuples(st.just("wait"), _agents, st.fixed_dictionaries({"seconds": st.sampled_from([1, 1800, 3600])}))
_steps = st.lists(_responses | _sends | _others | _waits, max_size=30)


def _world() -> World:
    return World(max_names=MAX_NAMES)


def decide(world: World, draft: Draft, step: Step) -> Decision:
    """Decide on one step without a commit."""
    kind, agent_id, fields = step
    policy = world.policy
    others: dict[str, Callable[[], Decision]] = {
        "beat": lambda: decide_first_heartbeat(draft, policy, agent_id, {agent_id: 1.0}),
        "lose": lambda: decide_lost(draft, policy, agent_id, 1.0, 45.0),
        "return": lambda: decide_returned(draft, policy, agent_id),
    }
    return others[kind]() if kind in others else world.decide_on(draft, kind, agent_id, **fields)


def take(world: World, step: Step) -> None:
    """Decide on one step and commit it."""
    kind, agent_id, fields = step
    world.now += 1
    match kind:
        case "send":
            payload = {"target": fields["to"]} if fields["kind"] == "state_transition" else {}
            world.send(fields["command_id"], agent_id, fields["kind"], **payload)
        case "forget":
            world.request("forget", f"f{world.now}")
        case "wait":
            world.pass_time(fields["seconds"])
        case _:
            world.snapshots.setdefault(agent_id, AgentSnapshot(score=1.0))
            draft = world.draft()
            world.commit(draft, decide(world, draft, step))


@given(_steps)
def test_every_command_ends_at_most_once_and_its_end_never_changes(steps: list[Step]) -> None:
    """For any sequence of steps. An open command always has its deadline."""
    world = _world()
    world.respond("heartbeat", "a")
    world.respond("register", "b", type="scribe")
    ended: dict[str, dict[str, str | bytes]] = {}
    for step in steps:
        take(world, step)
        for command_id, record in ended.items():
            assert world.command_records[command_id] == record
        ended = {each: record for each, record in world.command_records.items() if record["status"] in ENDS}
        open_ = world.command_records.keys() - ended.keys()
        assert {f"command:{command_id}" for command_id in open_} == world.deadlines.keys()
        assert open_ == world.fleet.commands.keys()
    events = Counter((fact.command_id, fact.event) for fact in world.facts if fact.command_id is not None)
    ends = Counter(command_id for command_id, event in events.elements() if event.removeprefix("command_") in ENDS)
    assert ends == Counter(ended.keys())
    assert max(events.values(), default=1) == 1


@given(_steps)
def test_fleet_in_memory_equals_the_written_records(steps: list[Step]) -> None:
    """The next leader loads from Redis what this one has in memory."""
    world = _world()
    for step in steps:
        take(world, step)
    loaded = world.reloaded()
    assert loaded.agents == world.fleet.agents
    for command in world.fleet.commands.values():
        command.status_since = 0.0  # not part of the record
    assert loaded.commands == world.fleet.commands
    for agent_id in list(loaded.unloaded_measurements):
        loaded.load_measurements(agent_id, world.measurements.get(agent_id, {}))
    assert loaded.measurements == {agent_id: values for agent_id, values in world.fleet.measurements.items() if values}
    assert world.index == world.fleet.agents.keys()
    assert (+loaded.liveness, loaded.absent) == (+world.fleet.liveness, world.fleet.absent)
    assert world.states == {agent_id: agent.state for agent_id, agent in world.fleet.agents.items()}


@given(_steps, _responses | _others.filter(lambda step: step[0] != "forget"))
@settings(max_examples=60)
def test_dropped_draft_leaves_the_fleet_unchanged(steps: list[Step], step: Step) -> None:
    world = _world()
    for each in steps:
        take(world, each)
    before = world.snapshot()
    decide(world, world.draft(), step)
    assert world.snapshot() == before


@given(_steps, st.lists(_responses, min_size=2, max_size=12))
@settings(max_examples=60)
def test_batch_has_the_same_result_as_its_messages_one_by_one(steps: list[Step], batch: list[Step]) -> None:
    together, apart = _world(), _world()
    for step in steps:
        take(together, step)
        take(apart, step)
    draft = together.draft()
    decisions = [decide(together, draft, step) for step in batch]
    together.commit(draft, Decision("batch", effects=[effect for each in decisions for effect in each.effects]))
    for step in batch:
        draft = apart.draft()
        apart.commit(draft, decide(apart, draft, step))
    assert together.facts == apart.facts
    assert together.measurements == apart.measurements
    assert together.snapshot() == apart.snapshot()
    assert (together.records, together.states, together.command_records) == (
        apart.records,
        apart.states,
        apart.command_records,
    )


@given(_steps)
def test_state_changes_of_an_agent_form_a_chain(steps: list[Step]) -> None:
    """Each change in the audit begins in the state in which the one before it ended."""
    world = _world()
    for step in steps:
        take(world, step)
    states: dict[str, str] = {}
    for fact in world.facts:
        agent_id = fact.agent_id or ""
        if fact.event == "state_changed":
            assert fact.new_state is not None
            assert fact.old_state == states[agent_id]
            assert fact.old_state != fact.new_state
        if fact.event in {"state_changed", "agent_first_seen"}:
            states[agent_id] = fact.new_state or ""
    assert {agent_id: agent.state for agent_id, agent in world.fleet.agents.items()}.items() <= states.items()


@given(st.lists(st.none() | st.dictionaries(st.sampled_from("uvwxyz"), st.integers(0, 9), max_size=4), max_size=12))
def test_measurements_beyond_max_names_are_refused_and_the_known_ones_kept(
    batches: list[dict[str, Any] | None],
) -> None:
    """The first names are kept with their latest values, and the refused names are listed. A new leader that has not
    read the earlier measurements decides the same.
    """
    world, expected = _world(), dict[str, float]()
    for number, values in enumerate(batches):
        if values is None:
            world.fleet = world.reloaded()
            continue
        kept = {name: value for name, value in values.items() if name in expected}
        new = [name for name in values if name not in expected][: MAX_NAMES - len(expected)]
        expected |= kept | {name: values[name] for name in new}
        decision = world.respond("measurement", id=f"m{number}", reply=True, **values)
        refused = sorted(values.keys() - expected.keys())
        reply = world.reply(f"m{number}", "a")
        assert (decision.outcome == "refused", reply["ok"]) == (bool(refused), not refused)
        assert reply.get("error", {}).get("details", {}).get("refused", []) == refused
    assert world.measurements.get("a", {}) == expected
