"""Properties of commands, for any sequence of events: each command ends once, and no list has two copies of it."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.liveness import decide_lost
from aism_engine.domain.commands.command import COMMAND_TABLE, ENDED, Command, Status
from tests.support.model import World, decode_record, queue_of

AGENTS = ("a", "b")
IDS = tuple(f"c{number}" for number in range(6))


class CommandLife(RuleBasedStateMachine):
    """Two agents, one of which acknowledges, with six commands and groups."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(max_in_flight=2, max_attempts=2, ack_timeout=10, timeout=50, ttl=200)
        self.world.respond("register", "a", type="worker", capabilities=["ack"])
        self.world.respond("register", "b", type="worker")
        for agent_id in AGENTS:
            self.world.snapshots[agent_id] = AgentSnapshot(score=1.0)
        self.requests = 0
        self.popped: list[str] = []

    def request(self, kind: str, agent_id: str | None = None, **fields: object) -> None:
        self.requests += 1
        self.world.request(kind, f"r{self.requests}", agent_id, **fields)

    @rule(
        command_id=st.sampled_from(IDS),
        agent_id=st.sampled_from(AGENTS),
        priority=st.sampled_from(["high", "normal", "low"]),
        on_lost=st.sampled_from(["hold", "fail"]),
        start_in=st.sampled_from([0, 5, 60]),
    )
    def send(self, command_id: str, agent_id: str, priority: str, on_lost: str, start_in: int) -> None:
        options = {"priority": priority, "on_lost": on_lost, "start_in": start_in}
        self.world.request("send", command_id, agent_id, command={"type": "x"}, options=options)

    @rule(quorum=st.sampled_from(["50%", "2"]))
    def send_to_all(self, quorum: str) -> None:
        self.request(
            "send", None, select="type=worker,liveness!=lost", command={"type": "x"}, options={"quorum": quorum}
        )

    @rule()
    def run_fanout(self) -> None:
        self.world.run_fanout()

    @rule(agent_id=st.sampled_from(AGENTS))
    def pop(self, agent_id: str) -> None:
        if self.world.lists[agent_id]:
            self.popped.append(self.world.pop(agent_id)["id"])

    @rule(agent_id=st.sampled_from(AGENTS))
    def poll_list(self, agent_id: str) -> None:
        self.world.poll_list(agent_id)

    @rule(agent_id=st.sampled_from(AGENTS))
    def dispatch(self, agent_id: str) -> None:
        self.world.dispatch(agent_id)

    @rule(agent_id=st.sampled_from(AGENTS))
    def miss_ack(self, agent_id: str) -> None:
        """Let a delivered command miss its acknowledgement, and redeliver it."""
        self.world.poll_list(agent_id)
        self.world.pass_time(10)
        self.world.pass_time(2)
        self.world.dispatch(agent_id)

    @precondition(lambda self: self.popped)
    @rule(
        kind=st.sampled_from(["ack", "progress", "result", "error"]),
        number=st.integers(0, 100),
        retryable=st.booleans(),
    )
    def report(self, kind: str, number: int, *, retryable: bool) -> None:
        command_id = self.popped[number % len(self.popped)]
        record = self.world.command_records.get(command_id)
        if record is not None:
            fields = {"code": "x", "retryable": retryable} if kind == "error" else {}
            self.world.respond(kind, str(record["agent_id"]), command_id=command_id, **fields)

    @rule(command_id=st.sampled_from(IDS))
    def cancel(self, command_id: str) -> None:
        self.request("cancel", None, command_id=command_id)

    @rule(kind=st.sampled_from(["pause", "drain", "resume"]), agent_id=st.sampled_from([*AGENTS, None]))
    def hold(self, kind: str, agent_id: str | None) -> None:
        self.request(kind, agent_id, **({} if agent_id else {"all": True}))

    @rule(agent_id=st.sampled_from(AGENTS))
    def lose_agent(self, agent_id: str) -> None:
        self.world.decide(decide_lost, agent_id, 1.0, 60.0)

    @rule(seconds=st.sampled_from([0.5, 5, 30, 120]))
    def wait(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule()
    def take_over(self) -> None:
        self.world.fleet = self.world.reloaded()

    @invariant()
    def each_command_ends_once(self) -> None:
        recorded = Counter(
            fact.command_id for fact in self.world.facts if fact.event.removeprefix("command_") in set(ENDED)
        )
        ended = {name for name, record in self.world.command_records.items() if Status(str(record["status"])) in ENDED}
        assert (set(recorded), max(recorded.values(), default=1)) == (ended, 1)

    @invariant()
    def memory_equals_the_records(self) -> None:
        world = self.world
        again = world.reloaded()
        assert {**again.commands} == {name: _reread(command) for name, command in world.fleet.commands.items()}
        assert again.groups == world.fleet.groups
        for agent_id in AGENTS:
            assert again.command_index(agent_id) == world.fleet.command_index(agent_id)

    @invariant()
    def every_open_command_has_its_deadline(self) -> None:
        world = self.world
        found = {member for member in world.deadlines if member.startswith("command:")}
        assert found == {f"command:{name}" for name in world.fleet.commands}
        for command in world.fleet.commands.values():
            assert world.deadlines[command.deadline] == pytest.approx(command.due_at, abs=0.002)

    @invariant()
    def no_list_has_a_second_copy_or_an_ended_command(self) -> None:
        for agent_id in AGENTS:
            listed = Counter(queue_of(self.world, agent_id))
            assert max(listed.values(), default=1) == 1
            for command_id in listed.keys() & self.world.command_records.keys():
                assert self.world.status(command_id) == "queued"

    @invariant()
    def no_list_exceeds_the_credit(self) -> None:
        for agent_id in self.world.fleet.agents:
            assert len(self.world.fleet.command_index(agent_id).queued) <= 2

    def teardown(self) -> None:
        """When nothing else happens, time ends all commands and groups."""
        self.world.run_fanout()
        for _ in range(12):
            self.world.pass_time(100)
            for agent_id in AGENTS:
                self.world.dispatch(agent_id)
        assert self.world.fleet.commands == {}
        for record in self.world.group_records.values():
            assert record["status"] != "open"
        self.each_command_ends_once()


def _reread(command: Command) -> Command:
    return decode_record(COMMAND_TABLE, command.command_id, COMMAND_TABLE.encode(command))


CommandLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCommandLife = CommandLife.TestCase
