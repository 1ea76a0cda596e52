"""Laws of commit.lua: what it writes."""

import pytest

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest
from aism_engine.store.batch import SourceTrim
from aism_engine.store.scripts import CommitCode
from aism_engine.store.store import CommitReply
from tests.server.scripts.conftest import AGENT, CHANGE, FACT, Leader
from tests.support.server import Cli


async def test_an_applied_commit_has_written_every_effect(leader: Leader) -> None:
    """One effect of each kind; the ledger becomes the id of the commit."""
    keys = leader.keys
    await leader.call("ZADD", keys.heartbeats, 5, "gone")
    for key in (keys.state("gone"), keys.agent("gone"), keys.commands("gone")):
        await leader.call("SET", key, "anything")
    await leader.call("SADD", keys.index, "gone")
    await leader.call("RPUSH", keys.commands("b"), "keep", "withdraw", "keep")
    await leader.call("HSET", keys.command("w"), "body", "withdraw")
    await leader.call("ZADD", keys.deadlines, 7, "command:old")
    (old_dead_letter,) = [await leader.call("XADD", keys.dead_letters, "*", "code", "old")]
    dead_letter = fx.DeadLetter(code="x", reason="y", source="z", raw=b"\x00\xff", digest="d", size=2, agent_id="a")
    reply = await leader.commit(
        fx.SaveAgent(AGENT),
        fx.IndexAgent("a"),
        fx.SetState("a", "inbox"),
        fx.SaveMetadata("a", {"type": "scribe"}),
        fx.SaveMeasurements("a", {"tokens": 12.0, "cpu": 0.1}),
        fx.ForgetAgent("gone"),
        fx.SaveCommand("c1", {"status": "failed", "body": b"\x00\xff"}, ttl_s=60.0),
        fx.PushCommand("a", b"first"),
        fx.PushCommand("a", b"second"),
        fx.PushCancel("a", b"popped next"),
        fx.WithdrawCommand("b", "w", b"too late"),
        fx.WithdrawCommand("b", "w", b"not in the list"),
        fx.ReleaseCommand("b", "w"),
        fx.SaveGroup("g", {"total": "2"}, ttl_s=60.0),
        fx.AddFanoutTargets([b"one", b"two"]),
        fx.SaveHold({"fleet": "pause"}),
        fx.SaveRequestReply("r", b"yes", 60.0),
        fx.RemoveDeadLetters((old_dead_letter.decode(),)),
        fx.DeliverMail("a", b"one"),
        fx.DeliverMail("a", b"two"),
        fx.DeferMail("a", b"three"),
        fx.DeferMail("a", b"four"),
        fx.ReleaseMail("a"),
        fx.ReleaseMail("b"),
        fx.DeferMail("a", b"five"),
        fx.SendReply("a", "m1", b"yes", 60.0),
        fx.SendReply(None, "r1", b"no", 60.0),
        fx.SetDeadline("command:new", 1_800_000_000.25),
        fx.ExpectDeadline("command:old", 7.0),
        fx.ClearDeadline("command:old"),
        FACT,
        dead_letter,
    )
    assert reply == CommitReply(CommitCode.APPLIED, [])
    found = {
        "agent": await leader.call("GET", keys.agent("a")),
        "index": await leader.call("SMEMBERS", keys.index),
        "state": await leader.state("a"),
        "metadata": await leader.call("HGETALL", keys.metadata("a")),
        "measurements": await leader.call("HGETALL", keys.agent_measurements("a")),
        "gone": await leader.call("EXISTS", keys.state("gone"), keys.agent("gone"), keys.commands("gone")),
        "heartbeats": await leader.call("ZCARD", keys.heartbeats),
        "command": await leader.call("HGETALL", keys.command("c1")),
        "pushed": await leader.call("LRANGE", keys.commands("a"), 0, -1),
        "withdrawn": await leader.call("LRANGE", keys.commands("b"), 0, -1),
        "group": await leader.call("HGETALL", keys.group("g")),
        "fanout": await leader.call("LRANGE", keys.fanout, 0, -1),
        "hold": await leader.call("HGET", keys.holds, "fleet"),
        "saved_reply": await leader.call("GET", keys.saved_reply("r")),
        "inbox": await leader.call("LRANGE", keys.inbox("a"), 0, -1),
        "mail": await leader.call("LRANGE", keys.mail("a"), 0, -1),
        "replies": [
            await leader.call("LRANGE", key, 0, -1) for key in (keys.agent_reply("a", "m1"), keys.request_reply("r1"))
        ],
        "deadlines": await leader.call("ZRANGE", keys.deadlines, 0, -1, "WITHSCORES"),
        "ledger": await leader.call("GET", keys.ledger),
        "audit": await leader.audit(),
        "dead_letters": await leader.dead_letters(),
    }
    assert found == {
        "agent": encode(AGENT),
        "index": {b"a"},
        "state": "inbox",
        "metadata": {b"type": b"scribe"},
        "measurements": {b"tokens": b"12.0", b"cpu": b"0.1"},
        "gone": 0,
        "heartbeats": 0,
        "command": {b"status": b"failed", b"body": b"\x00\xff"},
        "pushed": [b"second", b"first", b"popped next"],
        "withdrawn": [b"withdraw", b"keep", b"keep", b"not in the list"],
        "group": {b"total": b"2"},
        "fanout": [b"two", b"one"],
        "hold": b"pause",
        "saved_reply": b"yes",
        "inbox": [b"four", b"three", b"two", b"one"],
        "mail": [b"five"],
        "replies": [[b"yes"], [b"no"]],
        "deadlines": [b"command:new", b"1800000000.25"],
        "ledger": b"L1",
        "audit": [{"event": "tested", "at": FACT.at, "by": "engine", "agent_id": "a"}],
        "dead_letters": [
            {
                "code": b"x",
                "reason": b"y",
                "source": b"z",
                "raw": b"\x00\xff",
                "digest": b"d",
                "size": b"2",
                "agent_id": b"a",
            }
        ],
    }
    kept = [keys.command("c1"), keys.agent_reply("a", "m1"), keys.request_reply("r1")]
    assert all([0 < await leader.call("PTTL", key) <= 60_000 for key in kept])
    assert await leader.call("PTTL", keys.agent("a")) == -1


async def test_one_audit_entry_holds_all_facts_of_a_commit(leader: Leader) -> None:
    """It also has the id of the commit and the epoch. A commit without facts adds no entry."""
    await leader.commit(FACT, FACT, commit_id="L1")
    await leader.commit(fx.IndexAgent("a"), commit_id="L2", previous="L1")
    (entry,) = await leader.call("XRANGE", leader.keys.audit, "-", "+")
    fields = {name: value for name, value in entry[1].items() if name != b"facts"}
    assert (fields, len(await leader.audit())) == ({b"commit": b"L1", b"epoch": b"1"}, 2)


async def test_events_are_published_in_order_and_after_the_writes(leader: Leader) -> None:
    """A subscriber that receives an event finds the change written."""
    with Cli(leader.client.connection_pool.connection_kwargs["port"]) as subscriber:
        subscriber("SUBSCRIBE", leader.keys.state_changes)
        await leader.commit(
            fx.Publish("state_changes", {"n": 1}), fx.SetState("a", "inbox"), fx.Publish("state_changes", {"n": "2\n"})
        )
        assert [subscriber.read()[2] for _ in range(2)] == [b'{"n":1}', b'{"n":"2\\n"}']
    assert await leader.state("a") == "inbox"


async def test_the_last_state_in_a_batch_wins(leader: Leader) -> None:
    """Also if the agent is forgotten in between, and if it is forgotten last."""
    await leader.commit(fx.SetState("a", "inbox"), fx.SetState("a", "idle"))
    assert await leader.state("a") == "idle"
    await leader.commit(fx.ForgetAgent("a"), fx.SetState("a", "unknown"), previous="L1", commit_id="L2")
    assert await leader.state("a") == "unknown"
    await leader.commit(fx.SetState("a", "idle"), fx.ForgetAgent("a"), previous="L2", commit_id="L3")
    assert await leader.state("a") is None


async def test_a_commit_trims_only_its_own_messages(leader: Leader) -> None:
    """Messages pushed later stay."""
    await leader.push(b"1", b"2", b"3", b"4")
    reply = await leader.commit(*CHANGE, trim=leader.trim(b"1", b"2", b"3"))
    assert (reply, await leader.queue()) == (CommitReply(CommitCode.APPLIED, []), [b"4"])


async def test_an_oversized_message_moves_whole_to_a_bounded_list(leader: Leader) -> None:
    """The newest is first; the oldest are dropped."""
    for number in range(5):
        message = b"%d" % number * 5000
        await leader.push(message)
        name = message_digest(message)
        trim = SourceTrim(leader.keys.response_queue, 1, name, name, oversized=True)
        reply = await leader.commit(commit_id=f"L{number + 1}", previous=f"L{number}", trim=trim)
        assert reply == CommitReply(CommitCode.APPLIED, [])
    kept = await leader.call("LRANGE", leader.keys.oversized, 0, -1)
    assert kept == [b"4" * 5000, b"3" * 5000, b"2" * 5000]


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500, 9000])
async def test_a_large_batch_is_written_whole_or_not_at_all(leader: Leader, count: int) -> None:
    """The counts lie around the 1,000 keys of a chunk and above the 7,999 values that Lua can unpack."""
    agents = [AgentRecord(agent_id=f"a{n}", state=f"s{n}", since=n, first_seen_at=n) for n in range(count)]
    effects: list[fx.Effect] = [
        effect
        for agent in agents
        for effect in (
            fx.SetState(agent.agent_id, agent.state),
            fx.IndexAgent(agent.agent_id),
            fx.SaveAgent(agent),
            fx.SaveMetadata(agent.agent_id, {"type": agent.state}),
        )
    ]
    last = leader.keys.state(f"a{count - 1}")
    await leader.call("HSET", last, "not", "a string")
    assert await leader.refusal(*effects) == CommitCode.WRONG_TYPE
    await leader.call("DEL", last)
    assert (await leader.commit(*effects)).code == CommitCode.APPLIED
    assert await leader.call("SCARD", leader.keys.index) == count
    keys = leader.keys
    for key, expected in (
        (keys.state, [agent.state.encode() for agent in agents]),
        (keys.agent, [encode(agent) for agent in agents]),
    ):
        assert await leader.call("MGET", *(key(agent.agent_id) for agent in agents)) == expected
