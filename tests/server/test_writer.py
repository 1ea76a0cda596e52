"""Laws of the writer: a batch is written whole or not at all, and once. The fleet in memory is what was committed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest.mock import Mock

import pytest

from aism_engine.clock import SystemClock
from aism_engine.domain import effects as fx
from aism_engine.domain.dead_letters import dead_letter_response
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError
from aism_engine.domain.requests import decide_request
from aism_engine.domain.responses import decide_response
from aism_engine.domain.text import message_digest
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.metrics import Metrics
from aism_engine.settings import RedisSettings
from aism_engine.store.batch import Bounds, SourceTrim
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.leadership import Leadership
from aism_engine.store.scripts import COMMIT, CommitCode
from aism_engine.store.store import Store
from aism_engine.store.writer import Decide, DecisionError, Failures, Writer
from tests.support.clock import FakeClock
from tests.support.engine import Client, Reader, eventually
from tests.support.model import machines

POLICY = Policy(machines=machines())


class FaultyClient:
    """A client whose next commits have these `faults`: `hold` until released, `request lost`, or `reply lost`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.faults: list[str] = []
        self.held = asyncio.Event()
        self.release = asyncio.Event()
        self.lost: list[Sequence[Any]] = []
        """The commits that were not sent. A test can deliver them late."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a client has
        return getattr(self._client, name)

    async def execute_command(self, *words: Any, **options: Any) -> Any:  # noqa: ANN401 - as redis-py has it
        fault = self.faults.pop(0) if self.faults and words[:2] == ("EVALSHA", COMMIT.digest) else ""
        if fault == "hold":
            self.held.set()
            await self.release.wait()
        if fault == "request lost":
            self.lost.append(words)
            raise ServerUnavailableError("connection", "the request is lost")
        reply = await self._client.execute_command(*words, **options)
        if fault == "reply lost":
            raise ServerUnavailableError("connection", "the reply is lost")
        return reply


class RecordingMetrics(Metrics):
    """Records the code of each commit."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []

        self.commits = Mock(labels=Mock(side_effect=self._record))

    def _record(self, code: str) -> Mock:
        self.codes.append(code)
        return Mock()


class Leader(Reader):
    """A writer that leads, and what it depends on."""

    def __init__(self, client: Client, faulty: FaultyClient, prefix: str) -> None:
        super().__init__(client, prefix)
        self.faulty = faulty
        self.clock = FakeClock()
        self.metrics = RecordingMetrics()
        self.leadership = Leadership(self.clock)
        self.writer = self.new_writer()

    def new_writer(self, leadership: Leadership | None = None) -> Writer:
        store, bounds = Store(self.faulty, self.keys, SystemClock()), Bounds(1000, 1000, 3)
        return Writer(store, leadership or self.leadership, bounds, self.clock, self.metrics, recent_ids=64)

    async def lead(self, token: str = "1:me") -> None:  # noqa: S107 - no password
        await self.call("SET", self.keys.epoch, token)
        self.leadership.hold(token, self.clock.monotonic() + 60)

    async def commit(self, *messages: m.Response, trim: SourceTrim | None = None) -> list[Decision]:
        return await self.writer.commit(decide_responses(*messages), trim=trim)

    async def push(self, *messages: bytes) -> SourceTrim:
        """Push messages; return the trim with which a commit removes them."""
        await self.call("LPUSH", self.keys.response_queue, *messages)
        return SourceTrim(
            self.keys.response_queue, len(messages), message_digest(messages[0]), message_digest(messages[-1])
        )


@pytest.fixture
async def leader(server: EmbeddedServer, redis_client: Client, prefix: str) -> AsyncIterator[Leader]:
    client = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    await client.script_load(COMMIT.text)  # otherwise the first commit is sent twice, and a fault meets only the first
    leader = Leader(redis_client, FaultyClient(client), prefix)
    await leader.lead()
    yield leader
    await client.aclose()


def decide_responses(*messages: m.Response) -> Decide:
    """Decide on responses as the consumer does: dead-letter those that failed before."""

    def decide(draft: Draft, failures: Failures) -> list[Decision]:
        return [
            decide_response(draft, POLICY, message, b"raw")
            if number not in failures
            else dead_letter_response(draft, POLICY, MalformedError(*failures[number]), b"raw")
            for number, message in enumerate(messages)
        ]

    return decide


def heartbeat(agent_id: str, message_id: str | None = None) -> m.Heartbeat:
    return m.Heartbeat(agent_id=agent_id, id=message_id)


def transition(agent_id: str, target: str, message_id: str | None = None) -> m.StateTransition:
    return m.StateTransition(agent_id=agent_id, id=message_id, payload=m.TransitionPayload(target))


# Fleet and commit


async def test_a_draft_becomes_the_fleet_when_its_commit_is_confirmed(leader: Leader) -> None:
    leader.faulty.faults = ["hold"]
    committing = asyncio.create_task(leader.commit(heartbeat("a")))
    await leader.faulty.held.wait()
    assert (leader.writer.fleet.agents, await leader.record("a")) == ({}, {})
    leader.faulty.release.set()
    (decision,) = await committing
    assert (decision.kind, decision.outcome, list(leader.writer.fleet.agents)) == ("heartbeat", "applied", ["a"])
    assert (await leader.record("a"))["state"] == "unknown"


async def test_a_batch_whose_queue_has_moved_is_discarded(leader: Leader) -> None:
    """The fleet is unchanged, and the next batch is committed."""
    trim = await leader.push(b"1", b"2")
    await leader.call("RPOP", leader.keys.response_queue)
    assert await leader.commit(heartbeat("a"), trim=trim) == []
    assert (leader.writer.fleet.agents, leader.metrics.codes) == ({}, ["source_moved"])
    await leader.commit(heartbeat("b"))
    assert list(leader.writer.fleet.agents) == ["b"]


async def test_concurrent_commits_decide_one_after_the_other(leader: Leader) -> None:
    """Each decision sees what was committed before."""
    leader.faulty.faults = ["hold"]
    first = asyncio.create_task(leader.commit(transition("a", "one", "m1")))
    await leader.faulty.held.wait()
    second = asyncio.create_task(leader.commit(transition("a", "two", "m2")))
    third = asyncio.create_task(leader.commit(transition("a", "one", "m1")))
    leader.faulty.release.set()
    await asyncio.gather(first, second, third)
    changes = [(fact["old_state"], fact["new_state"]) for fact in await leader.audit("state_changed")]
    assert changes == [("unknown", "one"), ("one", "two")]
    assert (await third)[0].outcome == "duplicate"


# Failures of one decision


@pytest.mark.parametrize("batch", [1, 50])
async def test_a_key_of_the_wrong_type_dead_letters_only_its_message(leader: Leader, batch: int) -> None:
    """The whole batch is decided again, with the failure."""
    await leader.call("SET", leader.keys.agent_measurements("a5"), "x")
    bad = m.Measurement(agent_id="a5", payload={"x": 1.0})
    decisions = await leader.commit(*(heartbeat(f"a{n}") for n in range(batch)), bad, heartbeat("last"))
    assert [decision.outcome for decision in decisions] == ["applied"] * batch + ["dead_lettered", "applied"]
    assert (await leader.dead_lettered(), "last" in leader.writer.fleet.agents) == ([("wrong_type", b"raw")], True)
    assert leader.metrics.codes == ["wrong_type", "applied"]


async def test_a_decision_that_raises_dead_letters_only_its_message(leader: Leader) -> None:
    """The exception is a bug, so the code of the dead letter is internal_error."""

    def decide(draft: Draft, failures: Failures) -> list[Decision]:
        first = decide_responses(heartbeat("a"))(draft, {})
        if 1 not in failures:
            raise DecisionError(1) from ZeroDivisionError("oh")
        error = MalformedError(*failures[1])
        return [
            *first,
            dead_letter_response(draft, POLICY, error, b"raw"),
            *decide_responses(heartbeat("b"))(draft, {}),
        ]

    await leader.writer.commit(decide)
    assert list(leader.writer.fleet.agents) == ["a", "b"]
    (dead_letter,) = await leader.dead_letters()
    assert (dead_letter["code"], dead_letter["reason"]) == (b"internal_error", b"ZeroDivisionError('oh')")


async def test_a_decision_that_fails_again_is_not_retried(leader: Leader) -> None:
    """The exception passes to the supervisor. Nothing is written, and the lock is free."""

    def decide(_draft: Draft, _failures: Failures) -> list[Decision]:
        raise DecisionError(0) from ZeroDivisionError("oh")

    with pytest.raises(RuntimeError, match="internal_error"):
        await leader.writer.commit(decide)
    before = await leader.dump()

    def broken(_draft: Draft, _failures: Failures) -> list[Decision]:
        raise KeyError("another bug")

    with pytest.raises(KeyError):
        await leader.writer.commit(broken)
    assert await leader.dump() == before
    await leader.commit(heartbeat("a"))
    assert list(leader.writer.fleet.agents) == ["a"]


async def test_a_moved_heartbeat_fails_only_its_decision(leader: Leader) -> None:
    await leader.call("ZADD", leader.keys.heartbeats, 1, "a", 2, "b", 3, "c")

    def decide(_draft: Draft, failures: Failures) -> list[Decision]:
        return [
            Decision("lost", effects=[fx.ExpectScore(agent_id, score), fx.SetState(agent_id, "lost")])
            if number not in failures
            else Decision("lost", "unchanged")
            for number, (agent_id, score) in enumerate(_EXPECTED.items())
        ]

    decisions = await leader.writer.commit(decide)
    assert [decision.outcome for decision in decisions] == ["applied", "unchanged", "unchanged", "applied"]
    assert [await leader.state(each) for each in _EXPECTED] == ["lost", None, None, "lost"]


_EXPECTED = {"a": 1.0, "gone": 1.0, "b": 1.5, "c": 3.0}


async def test_a_key_of_the_engine_of_the_wrong_type_is_an_outage(leader: Leader) -> None:
    """The error names the key."""
    await leader.writer.loaded()
    await leader.call("SET", leader.keys.audit, "x")
    with pytest.raises(ServerUnavailableError, match=leader.keys.audit) as caught:
        await leader.commit(transition("a", "x"))
    assert (caught.value.outage, leader.writer.fleet.agents) == ("wrong_type", {})


# Lost requests and replies


@pytest.mark.parametrize("fault", ["reply lost", "request lost"])
@pytest.mark.parametrize("times", [1, 2])
async def test_an_unanswered_commit_is_sent_again_and_applied_once(leader: Leader, fault: str, times: int) -> None:
    """Its id in the ledger shows whether it was written."""
    trim = await leader.push(b"1")
    leader.faulty.faults = [fault] * times
    (decision,) = await leader.commit(transition("a", "inbox"), trim=trim)
    assert (decision.outcome, leader.writer.fleet.agents["a"].state) == ("applied", "inbox")
    assert leader.metrics.codes == ["replayed" if fault == "reply lost" else "applied"]
    assert len(await leader.audit("state_changed")) == 1
    assert await leader.is_drained()
    await leader.commit(transition("a", "idle"))
    assert (await leader.state("a"), leader.metrics.codes[1:]) == ("idle", ["applied"])


@pytest.mark.parametrize("fault", ["reply lost", "request lost"])
async def test_after_three_unanswered_attempts_the_next_load_shows_the_outcome(leader: Leader, fault: str) -> None:
    """The fleet then holds the change exactly if Redis does."""
    await leader.commit(heartbeat("b"))
    leader.faulty.faults = [fault] * 3
    with pytest.raises(ServerUnavailableError) as caught:
        await leader.commit(transition("a", "inbox"))
    assert caught.value.outage == "connection"
    fleet = await leader.writer.loaded()
    states = {agent_id: agent.state for agent_id, agent in fleet.agents.items() if agent_id != "b"}
    assert states == ({"a": "inbox"} if fault == "reply lost" else {})
    assert bool(await leader.record("a")) == ("a" in fleet.agents)
    await leader.commit(transition("a", "inbox", "m1"))
    assert len(await leader.audit("state_changed")) == 1


@pytest.mark.parametrize("when", ["before the next commit", "after the next commit"])
async def test_a_commit_delivered_late_is_applied_in_its_place_or_not_at_all(leader: Leader, when: str) -> None:
    """Its place in the chain of commits is after the one it names."""
    await leader.commit(heartbeat("b"))
    leader.faulty.faults = ["request lost"] * 3
    with pytest.raises(ServerUnavailableError):
        await leader.commit(transition("a", "late"))
    await leader.writer.loaded()
    if when == "before the next commit":
        assert (await leader.call(*leader.faulty.lost[0]))[0] == CommitCode.APPLIED
        with pytest.raises(NotLeadingError):
            await leader.commit(transition("a", "next"))
        await leader.commit(transition("a", "next"))
        expected = [("unknown", "late"), ("late", "next")]
    else:
        await leader.commit(transition("a", "next"))
        before = await leader.dump()
        assert (await leader.call(*leader.faulty.lost[0]))[0] == CommitCode.OUT_OF_STEP
        assert await leader.dump() == before
        expected = [("unknown", "next")]
    changes = [(fact["old_state"], fact["new_state"]) for fact in await leader.audit("state_changed")]
    assert (changes, leader.writer.fleet.agents["a"].state) == (expected, "next")


# Fencing


async def test_without_the_lease_nothing_is_decided(leader: Leader) -> None:
    """The lease may never have been held, or may have expired."""

    def decide(_draft: Draft, _failures: Failures) -> list[Decision]:
        raise AssertionError("decided without the lease")

    await leader.commit(heartbeat("a"))
    leader.clock.advance(60)
    with pytest.raises(NotLeadingError):
        await leader.writer.commit(decide)
    with pytest.raises(NotLeadingError):
        await leader.new_writer(Leadership(leader.clock)).loaded()


async def test_a_fenced_engine_stops_leading_at_once(leader: Leader) -> None:
    """It does so although its lease has not expired by its own clock."""
    await leader.commit(heartbeat("a"))
    await leader.call("SET", leader.keys.epoch, "2:another")
    before = await leader.dump()
    with pytest.raises(NotLeadingError, match="FENCED"):
        await leader.commit(heartbeat("b"))
    assert (leader.leadership.token, leader.leadership.role, await leader.dump()) == (None, "standby", before)
    assert list(leader.writer.fleet.agents) == ["a"]


async def test_an_engine_out_of_step_loads_the_fleet_again(leader: Leader) -> None:
    """Another engine wrote, or the server lost its latest writes. The engine keeps the lease."""
    await leader.commit(heartbeat("a"), heartbeat("b"))
    await leader.call("SET", leader.keys.ledger, "another's")
    await leader.call("SREM", leader.keys.index, "b")
    with pytest.raises(NotLeadingError, match="OUT_OF_STEP"):
        await leader.commit(heartbeat("c"))
    assert leader.leadership.role == "leader"
    assert list((await leader.writer.loaded()).agents) == ["a"]
    await leader.commit(heartbeat("c"))
    assert set(leader.writer.fleet.agents) == {"a", "c"}


async def test_a_server_that_went_back_in_time_is_noticed_before_the_next_write(leader: Leader) -> None:
    await leader.commit(heartbeat("a"))
    ledger = await leader.call("GET", leader.keys.ledger)
    await leader.commit(transition("a", "lost with the old primary"))
    await leader.call("SET", leader.keys.ledger, ledger)
    await leader.call("HSET", leader.keys.agent("a"), "state", "unknown")
    with pytest.raises(NotLeadingError):
        await leader.commit(transition("a", "inbox"))
    await leader.commit(transition("a", "inbox"))
    last = (await leader.audit("state_changed"))[-1]
    assert (last["old_state"], last["new_state"]) == ("unknown", "inbox")


# Takeover


async def test_the_next_leader_knows_what_the_last_one_knew(leader: Leader) -> None:
    """It loads agents, open commands and recent message ids, but no ended commands."""
    send = m.SendPayload(m.CommandSpec("state_transition", {"target": "deep_work"}), "a")
    await leader.commit(
        m.Register(agent_id="a", id="m1", payload=m.RegisterPayload("scribe", {"team": "x"}, ["ack"], "msgpack")),
        transition("a", "inbox", "m2"),
        heartbeat("b", "m1"),
    )
    await leader.writer.commit(
        lambda draft, _: [
            decide_request(draft, POLICY, m.Send(id=each, payload=send), b"") for each in ("c1", "c2", "c3")
        ]
    )
    await leader.commit(m.Result(agent_id="a", id="m3", command_id="c1"), m.Ack(agent_id="a", id="m4", command_id="c2"))
    known = leader.writer.fleet
    await leader.lead("2:you")
    fleet = await leader.new_writer().loaded()
    for agent in known.agents.values():  # times are kept to the millisecond
        agent.since, agent.first_seen_at = (
            fleet.agents[agent.agent_id].since,
            fleet.agents[agent.agent_id].first_seen_at,
        )
        assert abs(agent.declared_at - fleet.agents[agent.agent_id].declared_at) < 0.002
        agent.declared_at = fleet.agents[agent.agent_id].declared_at
        agent.reason_stored = True  # known only to the engine that wrote it
    assert fleet.agents == known.agents
    assert {each.command_id: (each.status, each.target) for each in fleet.commands.values()} == {
        each.command_id: (each.status, each.target) for each in known.commands.values()
    }
    seen = {(agent_id, n) for agent_id in "ab" for n in range(1, 6) if fleet.has_seen(agent_id, f"m{n}")}
    assert {("a", 1), ("a", 2), ("a", 3), ("b", 1)} <= seen
    assert ("b", 2) not in seen


async def test_each_new_lease_loads_the_fleet_again(leader: Leader) -> None:
    """What an engine remembers from an earlier lease is invalid."""
    await leader.commit(heartbeat("a"))
    await leader.call("SREM", leader.keys.index, "a")
    assert list((await leader.writer.loaded()).agents) == ["a"]
    await leader.lead("2:me")
    assert list((await leader.writer.loaded()).agents) == []


# Cancellation


async def test_a_cancelled_caller_finishes_its_commit(leader: Leader) -> None:
    """Otherwise the outcome would be unknown. Then the cancellation is raised."""
    leader.faulty.faults = ["hold"]
    committing = asyncio.create_task(leader.commit(heartbeat("a")))
    await leader.faulty.held.wait()
    committing.cancel()
    await asyncio.sleep(0)
    assert not committing.done()
    leader.faulty.release.set()
    with pytest.raises(asyncio.CancelledError):
        await committing
    assert (list(leader.writer.fleet.agents), (await leader.record("a"))["state"]) == (["a"], "unknown")
    await leader.commit(heartbeat("b"))


async def test_a_caller_cancelled_while_it_waits_releases_the_lock(leader: Leader) -> None:
    leader.faulty.faults = ["hold"]
    first = asyncio.create_task(leader.commit(heartbeat("a")))
    await leader.faulty.held.wait()
    second = asyncio.create_task(leader.commit(heartbeat("b")))
    await asyncio.sleep(0)
    second.cancel()
    leader.faulty.release.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    await leader.commit(heartbeat("c"))
    assert {"a", "c"} <= set(leader.writer.fleet.agents)


async def test_wait_idle_waits_for_the_commit_in_flight(leader: Leader) -> None:
    leader.faulty.faults = ["hold"]
    committing = asyncio.create_task(leader.commit(heartbeat("a")))
    await leader.faulty.held.wait()
    idle = asyncio.create_task(leader.writer.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    leader.faulty.release.set()
    await eventually(idle.done)
    assert await leader.record("a")
    await committing
