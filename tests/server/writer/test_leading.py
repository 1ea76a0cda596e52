"""Laws of the writer: it writes only as the leader, on the latest data, and finishes what it began."""

import asyncio

import pytest
from msgspec import structs

from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.requests import decide_request
from aism_engine.errors import NotLeadingError
from aism_engine.store.leadership import Leadership
from aism_engine.store.writer import Failures
from tests.server.writer.conftest import POLICY, Leader, heartbeat, transition
from tests.support.engine import eventually


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
    record = structs.replace(leader.writer.fleet.agents["a"], state="unknown")
    await leader.call("SET", leader.keys.agent("a"), encode(record))
    with pytest.raises(NotLeadingError):
        await leader.commit(transition("a", "inbox"))
    await leader.commit(transition("a", "inbox"))
    last = (await leader.audit("state_changed"))[-1]
    assert (last["old_state"], last["new_state"]) == ("unknown", "inbox")


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
