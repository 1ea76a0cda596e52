"""Laws of the writer: a batch is written whole or not at all, and once. The fleet in memory is what was committed."""

import asyncio

import pytest

from aism_engine.domain import effects as fx
from aism_engine.domain.dead_letters import dead_letter_response
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.store.scripts import CommitCode
from aism_engine.store.writer import DecisionError, Failures
from tests.server.writer.conftest import POLICY, Leader, decide_responses, heartbeat, transition


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
        error = MalformedError(failures[1].code, failures[1].reason)
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
