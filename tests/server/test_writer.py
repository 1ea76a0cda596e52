"""The laws of the one who writes: all of a batch or nothing, once, and the fleet in memory is what was committed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

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

RULES = Policy(machines=machines())


class Wire:
    """A client whose commits can be held up, lost before they are sent, or lost after: by what is next in `fates`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.fates: list[str] = []
        self.held = asyncio.Event()
        self.release = asyncio.Event()
        self.lost: list[Sequence[Any]] = []
        """The commits that were not sent: each can be delivered later, as a delayed twin is."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a client has
        return getattr(self._client, name)

    async def execute_command(self, *words: Any, **options: Any) -> Any:  # noqa: ANN401 - as redis-py has it
        fate = self.fates.pop(0) if self.fates and words[:2] == ("EVALSHA", COMMIT.digest) else ""
        if fate == "hold":
            self.held.set()
            await self.release.wait()
        if fate == "lose the request":
            self.lost.append(words)
            raise ServerUnavailableError("connection", "the request is lost")
        reply = await self._client.execute_command(*words, **options)
        if fate == "lose the reply":
            raise ServerUnavailableError("connection", "the reply is lost")
        return reply


class Observer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def committed(self, _decisions: list[Decision], _facts: list[fx.Fact], _seconds: float, code: str) -> None:
        self.codes.append(code)

    def refused(self, code: str) -> None:
        self.codes.append(code)


class Office(Reader):
    """A writer that leads, and everything around it."""

    def __init__(self, client: Client, wire: Wire, prefix: str) -> None:
        super().__init__(client, prefix)
        self.wire = wire
        self.clock = FakeClock()
        self.observer = Observer()
        self.leadership = Leadership(self.clock)
        self.writer = self.another()

    def another(self, leadership: Leadership | None = None) -> Writer:
        store = Store(self.wire, self.keys, SystemClock())
        bounds = Bounds(audit=1000, dead_letters=1000, oversized=3)
        return Writer(
            store,
            leadership or self.leadership,
            bounds,
            self.clock,
            self.observer,
            recent_ids=64,
            resend_after_s=0.0,
        )

    async def lead(self, token: str = "1:me") -> None:  # noqa: S107 - no password
        await self.call("SET", self.keys.epoch, token)
        self.leadership.hold(token, self.clock.monotonic() + 60)

    async def hear(self, *messages: m.Response, taken: SourceTrim | None = None) -> list[Decision]:
        return await self.writer.commit(hearing(*messages), trim=taken)

    async def put(self, *messages: bytes) -> SourceTrim:
        """Push messages, to be taken by a commit."""
        await self.call("LPUSH", self.keys.response_queue, *messages)
        return SourceTrim(
            self.keys.response_queue, len(messages), message_digest(messages[0]), message_digest(messages[-1])
        )


@pytest.fixture
async def office(server: EmbeddedServer, redis_client: Client, prefix: str) -> AsyncIterator[Office]:
    client = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    office = Office(redis_client, Wire(client), prefix)
    await office.lead()
    yield office
    await client.aclose()


def hearing(*messages: m.Response) -> Decide:
    """Decide on responses as the consumer does: what has failed before is buried."""

    def decide(draft: Draft, failures: Failures) -> list[Decision]:
        return [
            decide_response(draft, RULES, message, b"raw")
            if number not in failures
            else dead_letter_response(draft, RULES, MalformedError(*failures[number]), b"raw")
            for number, message in enumerate(messages)
        ]

    return decide


def beat(agent_id: str, message_id: str | None = None) -> m.Heartbeat:
    return m.Heartbeat(agent_id=agent_id, id=message_id)


def move(agent_id: str, target: str, message_id: str | None = None) -> m.StateTransition:
    return m.StateTransition(agent_id=agent_id, id=message_id, payload=m.TransitionPayload(target))


# The fleet is what was committed


async def test_a_draft_becomes_the_fleet_when_its_commit_is_confirmed(office: Office) -> None:
    """And not a moment before."""
    office.wire.fates = ["hold"]
    writing = asyncio.create_task(office.hear(beat("a")))
    await office.wire.held.wait()
    assert (office.writer.fleet.agents, await office.record("a")) == ({}, {})
    office.wire.release.set()
    (decision,) = await writing
    assert (decision.kind, decision.outcome, list(office.writer.fleet.agents)) == ("heartbeat", "applied", ["a"])
    assert (await office.record("a"))["state"] == "unknown"


async def test_a_batch_whose_queue_has_moved_comes_to_nothing(office: Office) -> None:
    """No decisions are given, the fleet is as it was, and the next batch is none the worse."""
    taken = await office.put(b"1", b"2")
    await office.call("RPOP", office.keys.response_queue)
    assert await office.hear(beat("a"), taken=taken) == []
    assert (office.writer.fleet.agents, office.observer.codes) == ({}, ["source_moved"])
    await office.hear(beat("b"))
    assert list(office.writer.fleet.agents) == ["b"]


async def test_what_was_taken_is_gone_with_its_commit(office: Office) -> None:
    """The queue is trimmed in the same step."""
    taken = await office.put(b"1", b"2")
    await office.put(b"3")
    await office.hear(beat("a"), taken=taken)
    assert await office.call("LRANGE", office.keys.response_queue, 0, -1) == [b"3"]


async def test_two_who_write_at_the_same_time_decide_one_after_the_other(office: Office) -> None:
    """The second sees what the first has committed, however long that takes."""
    office.wire.fates = ["hold"]
    first = asyncio.create_task(office.hear(move("a", "one", "m1")))
    await office.wire.held.wait()
    second = asyncio.create_task(office.hear(move("a", "two", "m2")))
    third = asyncio.create_task(office.hear(move("a", "one", "m1")))
    office.wire.release.set()
    await asyncio.gather(first, second, third)
    changes = [(fact["old_state"], fact["new_state"]) for fact in await office.audit("state_changed")]
    assert changes == [("unknown", "one"), ("one", "two")]
    assert (await third)[0].outcome == "duplicate"


# What fails alone


@pytest.mark.parametrize("batch", [1, 50])
async def test_a_wrong_type_dead_letters_one_message_and_the_others_go_on(office: Office, batch: int) -> None:
    """The decision is told what it met, and everything is decided again."""
    await office.call("SET", office.keys.agent_measurements("a5"), "x")
    bad = m.Measurement(agent_id="a5", payload={"x": 1.0})
    decisions = await office.hear(*(beat(f"a{n}") for n in range(batch)), bad, beat("last"))
    assert [decision.outcome for decision in decisions] == ["applied"] * batch + ["dead_lettered", "applied"]
    assert (await office.dead_lettered(), "last" in office.writer.fleet.agents) == ([("wrong_type", b"raw")], True)
    assert office.observer.codes == ["wrong_type", "applied"]


async def test_a_decision_that_raises_is_dead_lettered_and_the_others_go_on(office: Office) -> None:
    """It is a bug of ours: its message is kept as internal_error, for us to look at."""

    def decide(draft: Draft, failures: Failures) -> list[Decision]:
        first = hearing(beat("a"))(draft, {})
        if 1 not in failures:
            raise DecisionError(1) from ZeroDivisionError("oh")
        error = MalformedError(*failures[1])
        return [*first, dead_letter_response(draft, RULES, error, b"raw"), *hearing(beat("b"))(draft, {})]

    await office.writer.commit(decide)
    assert list(office.writer.fleet.agents) == ["a", "b"]
    (letter,) = await office.dead_letters()
    assert (letter["code"], letter["reason"]) == (b"internal_error", b"ZeroDivisionError('oh')")


async def test_one_that_fails_at_failing_too_is_not_tried_for_ever(office: Office) -> None:
    """Then it is for the supervisor; nothing was written, and the lock is free."""

    def decide(_draft: Draft, _failures: Failures) -> list[Decision]:
        raise DecisionError(0) from ZeroDivisionError("oh")

    with pytest.raises(RuntimeError, match="internal_error"):
        await office.writer.commit(decide)
    before = await office.dump()

    def broken(_draft: Draft, _failures: Failures) -> list[Decision]:
        raise KeyError("not even told")

    with pytest.raises(KeyError):
        await office.writer.commit(broken)
    assert await office.dump() == before
    await office.hear(beat("a"))
    assert list(office.writer.fleet.agents) == ["a"]


async def test_a_heartbeat_that_has_moved_fails_alone(office: Office) -> None:
    """The others of its scan are called lost."""
    await office.call("ZADD", office.keys.heartbeats, 1, "a", 2, "b", 3, "c")

    def decide(_draft: Draft, failures: Failures) -> list[Decision]:
        return [
            Decision("lost", effects=[fx.ExpectScore(agent_id, score), fx.SetState(agent_id, "lost")])
            if number not in failures
            else Decision("lost", "unchanged")
            for number, (agent_id, score) in enumerate(_EXPECTED.items())
        ]

    decisions = await office.writer.commit(decide)
    assert [decision.outcome for decision in decisions] == ["applied", "unchanged", "unchanged", "applied"]
    assert [await office.state(each) for each in _EXPECTED] == ["lost", None, None, "lost"]


_EXPECTED = {"a": 1.0, "gone": 1.0, "b": 1.5, "c": 3.0}


async def test_a_key_of_the_engine_that_has_the_wrong_type_is_an_outage(office: Office) -> None:
    """Nobody's message is at fault: all wait until it is mended. The key is named."""
    await office.writer.loaded()
    await office.call("SET", office.keys.audit, "x")
    with pytest.raises(ServerUnavailableError, match=office.keys.audit) as caught:
        await office.hear(move("a", "x"))
    assert (caught.value.outage, office.writer.fleet.agents) == ("wrong_type", {})


# Replies that are lost


@pytest.mark.parametrize("fate", ["lose the reply", "lose the request"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_commit_without_an_answer_is_sent_again_and_applied_once(office: Office, fate: str, times: int) -> None:
    """Its id in the ledger tells whether it was written; nobody notices but the observer."""
    taken = await office.put(b"1")
    office.wire.fates = [fate] * times
    (decision,) = await office.hear(move("a", "inbox"), taken=taken)
    assert (decision.outcome, office.writer.fleet.agents["a"].state) == ("applied", "inbox")
    assert office.observer.codes == ["replayed" if fate == "lose the reply" else "applied"]
    assert len(await office.audit("state_changed")) == 1
    assert await office.is_drained()
    await office.hear(move("a", "idle"))
    assert (await office.state("a"), office.observer.codes[1:]) == ("idle", ["applied"])


@pytest.mark.parametrize("fate", ["lose the reply", "lose the request"])
async def test_after_three_unanswered_attempts_the_next_load_shows_the_outcome(office: Office, fate: str) -> None:
    """Whether it was, remains unknown until then; either way it is in the fleet exactly if it is in Redis."""
    await office.hear(beat("b"))
    office.wire.fates = [fate] * 3
    with pytest.raises(ServerUnavailableError) as caught:
        await office.hear(move("a", "inbox"))
    assert caught.value.outage == "connection"
    fleet = await office.writer.loaded()
    states = {agent_id: agent.state for agent_id, agent in fleet.agents.items() if agent_id != "b"}
    assert states == ({"a": "inbox"} if fate == "lose the reply" else {})
    assert bool(await office.record("a")) == ("a" in fleet.agents)
    await office.hear(move("a", "inbox", "m1"))
    assert len(await office.audit("state_changed")) == 1


@pytest.mark.parametrize("when", ["before the next commit", "after the next commit"])
async def test_a_commit_delivered_late_changes_nothing(office: Office, when: str) -> None:
    """A commit that was given up and arrives after all is applied in its place in the chain, or not at all."""
    await office.hear(beat("b"))
    office.wire.fates = ["lose the request"] * 3
    with pytest.raises(ServerUnavailableError):
        await office.hear(move("a", "late"))
    await office.writer.loaded()
    if when == "before the next commit":
        assert (await office.call(*office.wire.lost[0]))[0] == CommitCode.APPLIED
        with pytest.raises(NotLeadingError):
            await office.hear(move("a", "next"))
        await office.hear(move("a", "next"))
        expected = [("unknown", "late"), ("late", "next")]
    else:
        await office.hear(move("a", "next"))
        before = await office.dump()
        assert (await office.call(*office.wire.lost[0]))[0] == CommitCode.OUT_OF_STEP
        assert await office.dump() == before
        expected = [("unknown", "next")]
    changes = [(fact["old_state"], fact["new_state"]) for fact in await office.audit("state_changed")]
    assert (changes, office.writer.fleet.agents["a"].state) == (expected, "next")


# Another engine


async def test_without_the_lease_nothing_is_decided(office: Office) -> None:
    """Neither never held nor no longer trusted: it is not even asked."""

    def decide(_draft: Draft, _failures: Failures) -> list[Decision]:
        raise AssertionError("decided without the lease")

    await office.hear(beat("a"))
    office.clock.advance(60)
    with pytest.raises(NotLeadingError):
        await office.writer.commit(decide)
    with pytest.raises(NotLeadingError):
        await office.another(Leadership(office.clock)).loaded()


async def test_a_fenced_engine_stops_leading_at_once(office: Office) -> None:
    """Whatever its clock still lets it believe; nothing was written."""
    await office.hear(beat("a"))
    await office.call("SET", office.keys.epoch, "2:another")
    before = await office.dump()
    with pytest.raises(NotLeadingError, match="FENCED"):
        await office.hear(beat("b"))
    assert (office.leadership.token, office.leadership.role, await office.dump()) == (None, "standby", before)
    assert list(office.writer.fleet.agents) == ["a"]


async def test_one_that_is_out_of_step_drops_the_fleet_and_loads_it_again(office: Office) -> None:
    """Another wrote, or the server went back in time: what is in memory is void, the lease is not."""
    await office.hear(beat("a"), beat("b"))
    await office.call("SET", office.keys.ledger, "another's")
    await office.call("SREM", office.keys.index, "b")
    with pytest.raises(NotLeadingError, match="OUT_OF_STEP"):
        await office.hear(beat("c"))
    assert office.leadership.role == "leader"
    assert list((await office.writer.loaded()).agents) == ["a"]
    await office.hear(beat("c"))
    assert set(office.writer.fleet.agents) == {"a", "c"}


async def test_a_server_that_went_back_in_time_is_noticed_before_the_next_write(office: Office) -> None:
    """The ledger is older than the memory: the memory gives way."""
    await office.hear(beat("a"))
    ledger = await office.call("GET", office.keys.ledger)
    await office.hear(move("a", "lost with the old primary"))
    await office.call("SET", office.keys.ledger, ledger)
    await office.call("HSET", office.keys.agent("a"), "state", "unknown")
    with pytest.raises(NotLeadingError):
        await office.hear(move("a", "inbox"))
    await office.hear(move("a", "inbox"))
    last = (await office.audit("state_changed"))[-1]
    assert (last["old_state"], last["new_state"]) == ("unknown", "inbox")


# Taking over


async def test_the_next_leader_knows_what_the_last_one_knew(office: Office) -> None:
    """Agents, open commands and the ids of messages; what has ended it does not carry along."""
    send = m.SendPayload(m.CommandSpec("state_transition", {"target": "deep_work"}), "a")
    await office.hear(
        m.Register(agent_id="a", id="m1", payload=m.RegisterPayload("scribe", {"team": "x"}, ["ack"], "msgpack")),
        move("a", "inbox", "m2"),
        beat("b", "m1"),
    )
    await office.writer.commit(
        lambda draft, _: [
            decide_request(draft, RULES, m.Send(id=each, payload=send), b"") for each in ("c1", "c2", "c3")
        ]
    )
    await office.hear(m.Result(agent_id="a", id="m3", command_id="c1"), m.Ack(agent_id="a", id="m4", command_id="c2"))
    known = office.writer.fleet
    await office.lead("2:you")
    fleet = await office.another().loaded()
    for agent in known.agents.values():  # times are kept to the millisecond
        agent.since, agent.first_seen_at = (
            fleet.agents[agent.agent_id].since,
            fleet.agents[agent.agent_id].first_seen_at,
        )
        assert abs(agent.declared_at - fleet.agents[agent.agent_id].declared_at) < 0.002
        agent.declared_at = fleet.agents[agent.agent_id].declared_at
        agent.reason_stored = True  # what this engine alone knows better
    assert fleet.agents == known.agents
    assert {each.command_id: (each.status, each.target) for each in fleet.commands.values()} == {
        each.command_id: (each.status, each.target) for each in known.commands.values()
    }
    seen = {(agent_id, n) for agent_id in "ab" for n in range(1, 6) if fleet.has_seen(agent_id, f"m{n}")}
    assert {("a", 1), ("a", 2), ("a", 3), ("b", 1)} <= seen
    assert ("b", 2) not in seen


async def test_a_load_is_made_for_each_lease_anew(office: Office) -> None:
    """Who has led, lost the lease and leads again may not trust what it remembers."""
    await office.hear(beat("a"))
    await office.call("SREM", office.keys.index, "a")
    assert list((await office.writer.loaded()).agents) == ["a"]
    await office.lead("2:me")
    assert list((await office.writer.loaded()).agents) == []


# Stopping


async def test_a_cancelled_caller_finishes_its_commit(office: Office) -> None:
    """Or nobody would know whether it was written. Then the cancellation goes on."""
    office.wire.fates = ["hold"]
    writing = asyncio.create_task(office.hear(beat("a")))
    await office.wire.held.wait()
    writing.cancel()
    await asyncio.sleep(0)
    assert not writing.done()
    office.wire.release.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (list(office.writer.fleet.agents), (await office.record("a"))["state"]) == (["a"], "unknown")
    await office.hear(beat("b"))


async def test_whoever_is_cancelled_while_it_waits_for_its_turn_lets_the_others_through(office: Office) -> None:
    """The lock is not left behind."""
    office.wire.fates = ["hold"]
    first = asyncio.create_task(office.hear(beat("a")))
    await office.wire.held.wait()
    second = asyncio.create_task(office.hear(beat("b")))
    await asyncio.sleep(0)
    second.cancel()
    office.wire.release.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    await office.hear(beat("c"))
    assert {"a", "c"} <= set(office.writer.fleet.agents)


async def test_what_is_read_when_it_is_quiet_shows_all_that_was_decided(office: Office) -> None:
    """`quiet` waits for the commit in flight."""
    office.wire.fates = ["hold"]
    writing = asyncio.create_task(office.hear(beat("a")))
    await office.wire.held.wait()
    quiet = asyncio.create_task(office.writer.wait_idle())
    await asyncio.sleep(0)
    assert not quiet.done()
    office.wire.release.set()
    await eventually(quiet.done)
    assert await office.record("a")
    await writing
