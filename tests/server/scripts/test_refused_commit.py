"""Laws of commit.lua: what it refuses. A script that refuses writes nothing."""

import math
from collections.abc import Callable, Sequence

import pytest

from aism_engine.domain import effects as fx
from aism_engine.domain.decision import Decision
from aism_engine.domain.text import message_digest
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.batch import _WRITERS, SHARED, Batch, SourceTrim
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import CommitCode
from tests.server.scripts.conftest import AGENT, BOUNDS, CHANGE, FACT, LEDGER, TOKEN, Leader


async def test_a_commit_is_applied_once(leader: Leader) -> None:
    """It can be sent again after a lost reply, even if its sender is fenced and its messages are gone by now."""
    await leader.push(b"1", b"2")
    assert (await leader.commit(*CHANGE, trim=leader.trim(b"1"))).code == CommitCode.APPLIED
    again = await leader.refusal(*CHANGE, trim=leader.trim(b"1"))
    assert again == CommitCode.REPLAYED
    await leader.call("SET", leader.keys.epoch, "2:another")
    assert await leader.refusal(*CHANGE, trim=leader.trim(b"1")) == CommitCode.REPLAYED


@pytest.mark.parametrize("epoch", ["2:another", "1:another", "11:me", "1:m", None])
async def test_a_former_leader_cannot_write(leader: Leader, epoch: str | None) -> None:
    """The token is compared whole: after a failover two leaders may have the same epoch."""
    if epoch is None:
        await leader.call("DEL", leader.keys.epoch)
    else:
        await leader.call("SET", leader.keys.epoch, epoch)
    assert await leader.refusal(*CHANGE) == CommitCode.FENCED


@pytest.mark.parametrize("ledger", ["L9", "", "L", None])
async def test_a_commit_that_does_not_follow_the_ledger_is_out_of_step(leader: Leader, ledger: str | None) -> None:
    """Another engine wrote, or the server lost its latest writes."""
    if ledger is None:
        await leader.call("DEL", leader.keys.ledger)
    else:
        await leader.call("SET", leader.keys.ledger, ledger)
    assert await leader.refusal(*CHANGE) == CommitCode.OUT_OF_STEP


async def test_the_first_commit_needs_no_ledger(leader: Leader) -> None:
    await leader.call("DEL", leader.keys.ledger)
    assert (await leader.commit(*CHANGE, previous="")).code == CommitCode.APPLIED


@pytest.mark.parametrize(
    "change",
    [
        ("RPOP", "{}"),
        ("RPOP", "{}", "2"),
        ("DEL", "{}"),
        ("RPUSH", "{}", "before the oldest"),
        ("LREM", "{}", "1", "2"),
        ("LSET", "{}", "-1", "another"),
        ("LINSERT", "{}", "AFTER", "1", "between"),
        ("LTRIM", "{}", "2", "-1"),
    ],
    ids=" ".join,
)
async def test_a_queue_whose_tail_is_not_what_was_peeked_is_not_trimmed(leader: Leader, change: Sequence[str]) -> None:
    await leader.push(b"1", b"2", b"3")
    await leader.call(*(word.format(leader.keys.response_queue) for word in change))
    code = await leader.refusal(*CHANGE, trim=leader.trim(b"1", b"2"))
    assert code == CommitCode.SOURCE_MOVED


_VALUES: dict[str, tuple[str, ...]] = {
    "string": ("SET", "{}", "x"),
    "list": ("RPUSH", "{}", "x"),
    "hash": ("HSET", "{}", "x", "y"),
    "zset": ("ZADD", "{}", "1", "x"),
    "stream": ("XADD", "{}", "*", "x", "y"),
    "set": ("SADD", "{}", "x"),
}
DEAD_LETTER = fx.DeadLetter(code="x", reason="y", source="z", raw=b"", digest="d", size=0)


def test_every_effect_has_a_writer() -> None:
    effects = {*fx.Effect.__subclasses__(), *fx.AgentEffect.__subclasses__()} - {fx.AgentEffect}
    assert set(_WRITERS) == effects - {fx.SaveAgent, fx.SetState, fx.Fact, fx.Publish}  # Batch translates these itself


_TYPED: dict[str, tuple[str, Callable[[Keys], str], fx.Effect]] = {
    "the state": ("string", lambda keys: keys.state("b"), fx.SetState("b", "x")),
    "the record": ("string", lambda keys: keys.agent("a"), fx.SaveAgent(AGENT)),
    "the metadata": ("hash", lambda keys: keys.metadata("b"), fx.SaveMetadata("b", {"x": "y"})),
    "the measurements": ("hash", lambda keys: keys.agent_measurements("b"), fx.SaveMeasurements("b", {"x": 1.0})),
    "the commands": ("list", lambda keys: keys.commands("b"), fx.PushCommand("b", b"x")),
    "the commands with a `cancel`": ("list", lambda keys: keys.commands("b"), fx.PushCancel("b", b"x")),
    "the list of a withdrawn command": ("list", lambda keys: keys.commands("b"), fx.WithdrawCommand("b", "x")),
    "the record of a withdrawn command": ("hash", lambda keys: keys.command("x"), fx.WithdrawCommand("b", "x")),
    "the list of a released command": ("list", lambda keys: keys.commands("b"), fx.ReleaseCommand("b", "x")),
    "a group": ("hash", lambda keys: keys.group("g"), fx.SaveGroup("g", {"x": "y"})),
    "the fan-out queue": ("list", lambda keys: keys.fanout, fx.AddFanoutTargets([b"x"])),
    "the holds": ("hash", lambda keys: keys.holds, fx.SaveHold({"fleet": "pause"})),
    "a saved reply": ("string", lambda keys: keys.saved_reply("r"), fx.SaveRequestReply("r", b"x", 5.0)),
    "removed dead letters": ("stream", lambda keys: keys.dead_letters, fx.RemoveDeadLetters(("1-1",))),
    "the inbox": ("list", lambda keys: keys.inbox("b"), fx.DeliverMail("b", b"x")),
    "held mail": ("list", lambda keys: keys.mail("b"), fx.ReleaseMail("b")),
    "a reply": ("list", lambda keys: keys.agent_reply("b", "m"), fx.SendReply("b", "m", b"x", 5.0)),
    "an operator's reply": ("list", lambda keys: keys.request_reply("r"), fx.SendReply(None, "r", b"x", 5.0)),
    "a command": ("hash", lambda keys: keys.command("c"), fx.SaveCommand("c", {"x": "y"})),
    "the index": ("set", lambda keys: keys.index, fx.IndexAgent("b")),
    "the deadlines": ("zset", lambda keys: keys.deadlines, fx.SetDeadline("x", 1.0)),
    "the heartbeats": ("zset", lambda keys: keys.heartbeats, fx.ForgetAgent("b")),
    "the audit": ("stream", lambda keys: keys.audit, FACT),
    "the dead letters": ("stream", lambda keys: keys.dead_letters, DEAD_LETTER),
}


@pytest.mark.parametrize("what", _TYPED)
async def test_a_key_of_the_wrong_type_stops_the_whole_commit(leader: Leader, what: str) -> None:
    """Redis does not roll back, so every type is checked before the first write."""
    right, name, effect = _TYPED[what]
    key = name(leader.keys)
    for kind, words in _VALUES.items():
        await leader.call("DEL", key)
        await leader.call(*(word.format(key) for word in words))
        if kind != right:
            assert await leader.refusal(*CHANGE, effect) == CommitCode.WRONG_TYPE
    await leader.call("DEL", key)
    await leader.call(*(word.format(key) for word in _VALUES[right]))
    assert (await leader.commit(*CHANGE[:3], effect)).code == CommitCode.APPLIED


async def test_all_keys_of_the_wrong_type_are_mapped_to_their_decisions(leader: Leader) -> None:
    """The others can then be committed without them. Keys of the engine belong to no decision."""
    keys = leader.keys
    for key in (keys.inbox("c"), keys.state("d"), keys.index):
        await leader.call("HSET", key, "x", "y")
    effects = (fx.DeliverMail("c", b"x"), fx.SetState("d", "x"), fx.IndexAgent("e"), fx.DeliverMail("c", b"y"))
    batch = Batch(keys, BOUNDS, [Decision("test", effects=[*CHANGE, effect]) for effect in effects])
    reply = await leader.store.commit(*batch.call(TOKEN, "L1", LEDGER, None))
    users = batch.users_of_keys(reply.details)
    inbox, state, index = [keys.inbox("c")], [keys.state("d")], [keys.index]
    assert users == {0: inbox, 1: state, 2: index, 3: inbox, SHARED: index}


@pytest.mark.parametrize("with_source", [True, False])
async def test_a_source_of_the_wrong_type_is_an_outage(leader: Leader, *, with_source: bool) -> None:
    """Nothing is written, also by a commit that trims no queue."""
    await leader.call("SET", leader.keys.response_queue, "not a list")
    before = await leader.dump()
    with pytest.raises(ServerUnavailableError) as caught:
        await leader.commit(*CHANGE, trim=leader.trim(b"1") if with_source else None)
    assert caught.value.outage == "wrong_type"
    assert await leader.dump() == before


async def test_an_oversized_list_of_the_wrong_type_stops_the_commit(leader: Leader) -> None:
    message = b"x" * 5000
    await leader.push(message)
    await leader.call("SET", leader.keys.oversized, "not a list")
    trim = SourceTrim(leader.keys.response_queue, 1, message_digest(message), message_digest(message), oversized=True)
    assert await leader.refusal(*CHANGE, trim=trim) == CommitCode.WRONG_TYPE


_SCORES = [0.0, -1.5, 0.1 + 0.2, 1_800_000_000.123456, 1_800_000_000_123.0, 5e-324, 1.7e308, math.inf, -math.inf]


@pytest.mark.parametrize("score", _SCORES)
async def test_scores_are_compared_exactly(leader: Leader, score: float) -> None:
    await leader.call("ZADD", leader.keys.heartbeats, repr(score), "a")
    (read,) = (await leader.store.heartbeat_scores(["a"])).values()
    assert read == score
    if math.isfinite(score):
        expect = fx.ExpectScore("a", math.nextafter(score, math.inf))
        assert await leader.refusal(*CHANGE, expect) == CommitCode.SCORE_MOVED
    assert (await leader.commit(*CHANGE, fx.ExpectScore("a", score))).code == CommitCode.APPLIED


async def test_a_removed_heartbeat_or_deadline_has_moved(leader: Leader) -> None:
    """The reply contains the numbers of the failed watches."""
    await leader.call("ZADD", leader.keys.heartbeats, 1, "a")
    assert await leader.refusal(*CHANGE, fx.ExpectScore("b", 1.0)) == CommitCode.SCORE_MOVED
    gone = fx.ExpectDeadline("command:c", 1.0)
    assert await leader.refusal(*CHANGE, gone) == CommitCode.SCORE_MOVED
    reply = await leader.commit(fx.ExpectScore("a", 1.0), gone)
    assert reply.details == [2]


async def test_fencing_is_checked_first(leader: Leader) -> None:
    """A former leader learns that it is one, and not that a key has the wrong type or its queue has moved."""
    await leader.call("SET", leader.keys.epoch, "2:another")
    await leader.call("SET", leader.keys.ledger, "L9")
    await leader.call("SET", leader.keys.audit, "x")
    code = await leader.refusal(*CHANGE, fx.ExpectScore("a", 1.0), trim=leader.trim(b"1"))
    assert code == CommitCode.FENCED
