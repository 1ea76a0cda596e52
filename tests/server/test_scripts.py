"""The laws of the Lua scripts: each answers with its codes, and whatever is not applied has written nothing."""

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.resources import files

import pytest
from redis.exceptions import NoScriptError

from aism_engine.clock import SystemClock
from aism_engine.domain import effects as fx
from aism_engine.domain.decision import Decision
from aism_engine.domain.text import message_digest
from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store import scripts
from aism_engine.store.batch import SHARED, Batch, Bounds, SourceTrim
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import PEEK, CommitCode, LeaseCode
from aism_engine.store.store import CommitReply, Store
from tests.support.engine import Client, Reader
from tests.support.resp import Cli

TOKEN, LEDGER = "1:me", "L0"
BOUNDS = Bounds(audit=1000, dead_letters=1000, oversized=3)
FACT = fx.Fact(event="tested", by="engine", at="2027-01-15T08:00:00.000Z", agent_id="a")


class Desk(Reader):
    """A place from which commits are sent by hand, as the newest leader with the ledger at L0."""

    def __init__(self, client: Client, store: Store) -> None:
        super().__init__(client, store.keys.prefix)
        self.store = store

    async def commit(
        self,
        *effects: fx.Effect,
        token: str = TOKEN,
        commit_id: str = "L1",
        previous: str = LEDGER,
        taken: SourceTrim | None = None,
    ) -> CommitReply:
        batch = Batch(self.keys, BOUNDS, [Decision("test", effects=list(effects))])
        return await self.store.commit(*batch.call(token, commit_id, previous, taken))

    async def refuses(self, attempt: Callable[[], Awaitable[CommitReply]]) -> CommitCode:
        """Make an attempt that must leave no trace: no key changed, nothing published."""
        before = await self.dump()
        with Cli("127.0.0.1", self.client.connection_pool.connection_kwargs["port"]) as ear:
            ear("PSUBSCRIBE", f"{self.keys.prefix}:*")
            reply = await attempt()
            await self.call("PUBLISH", f"{self.keys.prefix}:the-end", "")
            heard = ear.read()[2]
        assert await self.dump() == before
        assert heard == f"{self.keys.prefix}:the-end".encode()
        return reply.code

    async def fill(self, *messages: bytes) -> None:
        """Push messages to the response queue, the oldest first."""
        await self.call("LPUSH", self.keys.response_queue, *messages)

    async def queue(self) -> list[bytes]:
        """What lies in the response queue, the oldest first."""
        found: list[bytes] = await self.call("LRANGE", self.keys.response_queue, 0, -1)
        return found[::-1]

    def taken(self, *messages: bytes) -> SourceTrim:
        return SourceTrim(
            self.keys.response_queue, len(messages), message_digest(messages[0]), message_digest(messages[-1])
        )


@pytest.fixture
async def desk(server: EmbeddedServer, redis_client: Client, prefix: str) -> AsyncIterator[Desk]:
    client = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    desk = Desk(redis_client, Store(client, Keys(prefix), SystemClock()))
    await redis_client.set(desk.keys.epoch, TOKEN)
    await redis_client.set(desk.keys.ledger, LEDGER)
    yield desk
    await client.aclose()


CHANGE = (
    fx.SaveAgent("a", {"state": "inbox"}),
    fx.SetState("a", "inbox"),
    fx.Publish("state_changes", b"{}"),
    fx.RecordFact(FACT),
)


# The codes


LUA = files("aism_engine.store") / "lua"
SCRIPTS = sorted(path.name.removesuffix(".lua") for path in LUA.iterdir() if path.name.endswith(".lua"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_codes_of_a_script_are_the_same_in_its_header_its_code_and_its_enum(name: str) -> None:
    header, code = _split(name)
    expected = getattr(scripts, name.upper()).codes
    described = {
        found[0]: int(found[1]) for found in re.findall(r"^--   ([A-Z_]+) +(-?\d+)  +\S", header, re.MULTILINE)
    }
    assert described == expected
    defined = re.search(r"^local code = \{(.*?)\}", code, re.MULTILINE | re.DOTALL)
    assert {
        name: int(value) for name, value in re.findall(r"(\w+) = (-?\d+)", defined[1] if defined else "")
    } == expected
    assert set(re.findall(r"\bcode\.(\w+)", code)) == expected.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_header_of_a_script_lists_its_keys_its_arguments_and_what_it_returns(name: str) -> None:
    header, code = _split(name)
    assert re.search(r"^-- Returns ", header, re.MULTILINE)
    for array in ("KEYS", "ARGV"):
        described = re.findall(rf"^-- {array}\[(\d+)(\.\.)?\] ", header, re.MULTILINE)
        assert [int(number) for number, _ in described] == list(range(1, len(described) + 1))
        assert {int(number) for number in re.findall(rf"\b{array}\[(\d+)\]", code)} <= set(range(1, len(described) + 1))
        assert bool(described) == bool(re.search(rf"\b{array}\b", code))


def _split(name: str) -> tuple[str, str]:
    """Split a script into its header and its code."""
    lines = (LUA / f"{name}.lua").read_text().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "".join(lines[:end]), "".join(lines[end:])


# What commit.lua writes


async def test_an_applied_commit_has_written_every_effect(desk: Desk) -> None:
    """One of each kind, each in its place; the ledger is the commit's."""
    keys = desk.keys
    await desk.call("ZADD", keys.heartbeats, 5, "gone")
    for key in (keys.state("gone"), keys.agent("gone"), keys.commands("gone")):
        await desk.call("SET", key, "anything")
    await desk.call("SADD", keys.index, "gone")
    await desk.call("RPUSH", keys.commands("b"), "keep", "withdraw", "keep")
    await desk.call("HSET", keys.command("w"), "body", "withdraw")
    await desk.call("ZADD", keys.deadlines, 7, "command:old")
    (old_letter,) = [await desk.call("XADD", keys.dead_letters, "*", "code", "old")]
    letter = fx.DeadLetter(code="x", reason="y", source="z", raw=b"\x00\xff", digest="d", size=2, agent_id="a")
    reply = await desk.commit(
        fx.SaveAgent("a", {"state": "inbox", "since": "now"}),
        fx.IndexAgent("a"),
        fx.SetState("a", "inbox"),
        fx.SaveMetadata("a", {"type": "scribe"}),
        fx.SaveMeasurements("a", {"tokens": 12.0, "cpu": 0.1}),
        fx.ForgetAgent("gone"),
        fx.SaveCommand("c1", {"status": "failed", "body": b"\x00\xff"}, ttl_s=60.0),
        fx.PushCommand("a", b"first"),
        fx.PushCommand("a", b"second"),
        fx.WithdrawCommand("b", "w", b"too late"),
        fx.WithdrawCommand("b", "w", b"it is not there"),
        fx.ReleaseCommand("b", "w"),
        fx.SaveGroup("g", {"total": "2"}, ttl_s=60.0),
        fx.AddFanoutTargets([b"one", b"two"]),
        fx.SaveHold("pause"),
        fx.SaveRequestReply("r", b"yes", 60.0),
        fx.RemoveDeadLetters((old_letter.decode(),)),
        fx.DeliverMail("a", b"one"),
        fx.DeliverMail("a", b"two"),
        fx.HoldMail("a", b"three"),
        fx.HoldMail("a", b"four"),
        fx.ReleaseMail("a"),
        fx.ReleaseMail("b"),
        fx.HoldMail("a", b"five"),
        fx.SendReply("a", "m1", b"yes", 60.0),
        fx.SendReply(None, "r1", b"no", 60.0),
        fx.SetDeadline("command:new", 1_800_000_000.25),
        fx.ExpectDeadline("command:old", 7.0),
        fx.ClearDeadline("command:old"),
        fx.RecordFact(FACT),
        fx.AddDeadLetter(letter),
    )
    assert reply == CommitReply(CommitCode.APPLIED, [])
    found = {
        "agent": await desk.record("a"),
        "index": await desk.call("SMEMBERS", keys.index),
        "state": await desk.state("a"),
        "metadata": await desk.call("HGETALL", keys.metadata("a")),
        "measurements": await desk.call("HGETALL", keys.agent_measurements("a")),
        "gone": await desk.call("EXISTS", keys.state("gone"), keys.agent("gone"), keys.commands("gone")),
        "beats": await desk.call("ZCARD", keys.heartbeats),
        "command": await desk.call("HGETALL", keys.command("c1")),
        "pushed": await desk.call("LRANGE", keys.commands("a"), 0, -1),
        "withdrawn": await desk.call("LRANGE", keys.commands("b"), 0, -1),
        "group": await desk.call("HGETALL", keys.group("g")),
        "fanout": await desk.call("LRANGE", keys.fanout, 0, -1),
        "hold": await desk.call("HGET", keys.holds, "fleet"),
        "answer": await desk.call("GET", keys.saved_reply("r")),
        "inbox": await desk.call("LRANGE", keys.inbox("a"), 0, -1),
        "mail": await desk.call("LRANGE", keys.mail("a"), 0, -1),
        "answers": [
            await desk.call("LRANGE", key, 0, -1) for key in (keys.agent_reply("a", "m1"), keys.request_reply("r1"))
        ],
        "deadlines": await desk.call("ZRANGE", keys.deadlines, 0, -1, "WITHSCORES"),
        "ledger": await desk.call("GET", keys.ledger),
        "audit": await desk.audit(),
        "letters": await desk.dead_letters(),
    }
    assert found == {
        "agent": {"state": "inbox", "since": "now"},
        "index": {b"a"},
        "state": "inbox",
        "metadata": {b"type": b"scribe"},
        "measurements": {b"tokens": b"12.0", b"cpu": b"0.1"},
        "gone": 0,
        "beats": 0,
        "command": {b"status": b"failed", b"body": b"\x00\xff"},
        "pushed": [b"second", b"first"],
        "withdrawn": [b"withdraw", b"it is not there", b"keep", b"keep"],
        "group": {b"total": b"2"},
        "fanout": [b"two", b"one"],
        "hold": b"pause",
        "answer": b"yes",
        "inbox": [b"four", b"three", b"two", b"one"],
        "mail": [b"five"],
        "answers": [[b"yes"], [b"no"]],
        "deadlines": [b"command:new", b"1800000000.25"],
        "ledger": b"L1",
        "audit": [{"event": "tested", "at": FACT.at, "by": "engine", "agent_id": "a"}],
        "letters": [
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
    assert all([0 < await desk.call("PTTL", key) <= 60_000 for key in kept])
    assert await desk.call("PTTL", keys.agent("a")) == -1


async def test_an_entry_of_the_audit_is_one_commit(desk: Desk) -> None:
    """With the id of the commit, the epoch, and all its facts; a commit without facts leaves none."""
    await desk.commit(fx.RecordFact(FACT), fx.RecordFact(FACT), commit_id="L1")
    await desk.commit(fx.IndexAgent("a"), commit_id="L2", previous="L1")
    (entry,) = await desk.call("XRANGE", desk.keys.audit, "-", "+")
    fields = {name: value for name, value in entry[1].items() if name != b"facts"}
    assert (fields, len(await desk.audit())) == ({b"commit": b"L1", b"epoch": b"1"}, 2)


async def test_events_are_published_in_order_and_after_the_writes(desk: Desk) -> None:
    """Whoever hears of a change finds it written."""
    with Cli("127.0.0.1", desk.client.connection_pool.connection_kwargs["port"]) as ear:
        ear("SUBSCRIBE", desk.keys.state_changes)
        await desk.commit(
            fx.Publish("state_changes", b"1"), fx.SetState("a", "inbox"), fx.Publish("state_changes", b"2\xff")
        )
        assert [ear.read()[2] for _ in range(2)] == [b"1", b"2\xff"]
    assert await desk.state("a") == "inbox"


async def test_the_last_of_two_states_in_one_batch_holds(desk: Desk) -> None:
    """Also after the agent was forgotten in between, and also when it is forgotten last."""
    await desk.commit(fx.SetState("a", "inbox"), fx.SetState("a", "idle"))
    assert await desk.state("a") == "idle"
    await desk.commit(fx.ForgetAgent("a"), fx.SetState("a", "unknown"), previous="L1", commit_id="L2")
    assert await desk.state("a") == "unknown"
    await desk.commit(fx.SetState("a", "idle"), fx.ForgetAgent("a"), previous="L2", commit_id="L3")
    assert await desk.state("a") is None


async def test_what_was_taken_leaves_the_queue_in_the_same_step(desk: Desk) -> None:
    """From its tail, and nothing that came meanwhile; the reply says how much is left."""
    await desk.fill(b"1", b"2", b"3", b"4")
    reply = await desk.commit(*CHANGE, taken=desk.taken(b"1", b"2", b"3"))
    assert (reply, await desk.queue()) == (CommitReply(CommitCode.APPLIED, []), [b"4"])


async def test_an_oversized_message_is_moved_whole_to_a_bounded_list(desk: Desk) -> None:
    """Inside the server; the newest first, the oldest go."""
    for number in range(5):
        whole = b"%d" % number * 5000
        await desk.fill(whole)
        name = message_digest(whole)
        taken = SourceTrim(desk.keys.response_queue, 1, name, name, oversized=True)
        reply = await desk.commit(commit_id=f"L{number + 1}", previous=f"L{number}", taken=taken)
        assert reply == CommitReply(CommitCode.APPLIED, [])
    kept = await desk.call("LRANGE", desk.keys.oversized, 0, -1)
    assert kept == [b"4" * 5000, b"3" * 5000, b"2" * 5000]


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500, 9000])
async def test_all_of_a_large_batch_or_nothing(desk: Desk, count: int) -> None:
    """Past the thousand at which the script takes its keys in turns, and the 7,999 values that Lua can unpack."""
    effects = [effect for n in range(count) for effect in (fx.SetState(f"a{n}", "x"), fx.IndexAgent(f"a{n}"))]
    last = desk.keys.state(f"a{count - 1}")
    await desk.call("HSET", last, "not", "a string")
    assert await desk.refuses(lambda: desk.commit(*effects)) == CommitCode.WRONG_TYPE
    await desk.call("DEL", last)
    assert (await desk.commit(*effects)).code == CommitCode.APPLIED
    assert await desk.call("SCARD", desk.keys.index) == count
    assert [await desk.state(f"a{n}") for n in (0, count // 2, count - 1)] == ["x"] * 3


# What commit.lua refuses


async def test_a_commit_that_was_written_before_is_not_written_again(desk: Desk) -> None:
    """The one whose reply was lost may be sent again as it is: even by now fenced, and with its source gone."""
    await desk.fill(b"1", b"2")
    assert (await desk.commit(*CHANGE, taken=desk.taken(b"1"))).code == CommitCode.APPLIED
    again = await desk.refuses(lambda: desk.commit(*CHANGE, taken=desk.taken(b"1")))
    assert again == CommitCode.REPLAYED
    await desk.call("SET", desk.keys.epoch, "2:another")
    assert await desk.refuses(lambda: desk.commit(*CHANGE, taken=desk.taken(b"1"))) == CommitCode.REPLAYED


@pytest.mark.parametrize("epoch", ["2:another", "1:another", "11:me", "1:m", None])
async def test_a_leader_of_the_past_cannot_write(desk: Desk, epoch: str | None) -> None:
    """The token is compared whole: after a failover two holders may have been given the same number."""
    if epoch is None:
        await desk.call("DEL", desk.keys.epoch)
    else:
        await desk.call("SET", desk.keys.epoch, epoch)
    assert await desk.refuses(lambda: desk.commit(*CHANGE)) == CommitCode.FENCED


@pytest.mark.parametrize("ledger", ["L9", "", "L", None])
async def test_a_commit_that_does_not_follow_the_last_one_is_out_of_step(desk: Desk, ledger: str | None) -> None:
    """Another wrote, or the server went back in time."""
    if ledger is None:
        await desk.call("DEL", desk.keys.ledger)
    else:
        await desk.call("SET", desk.keys.ledger, ledger)
    assert await desk.refuses(lambda: desk.commit(*CHANGE)) == CommitCode.OUT_OF_STEP


async def test_the_first_commit_of_all_follows_nothing(desk: Desk) -> None:
    """An empty server has no ledger."""
    await desk.call("DEL", desk.keys.ledger)
    assert (await desk.commit(*CHANGE, previous="")).code == CommitCode.APPLIED


@pytest.mark.parametrize(
    "meddle",
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
async def test_a_queue_whose_tail_is_not_what_was_peeked_is_left_alone(desk: Desk, meddle: Sequence[str]) -> None:
    """Whoever took from it, or put something before what was read: it is to be peeked at again."""
    await desk.fill(b"1", b"2", b"3")
    await desk.call(*(word.format(desk.keys.response_queue) for word in meddle))
    attempt = await desk.refuses(lambda: desk.commit(*CHANGE, taken=desk.taken(b"1", b"2")))
    assert attempt == CommitCode.SOURCE_MOVED


async def test_what_is_pushed_meanwhile_is_no_reason_to_peek_again(desk: Desk) -> None:
    """New messages come in at the other end."""
    await desk.fill(b"1")
    taken = desk.taken(b"1")
    await desk.fill(b"2")
    assert (await desk.commit(*CHANGE, taken=taken)).code == CommitCode.APPLIED
    assert await desk.queue() == [b"2"]


_VALUES: dict[str, tuple[str, ...]] = {
    "string": ("SET", "{}", "x"),
    "list": ("RPUSH", "{}", "x"),
    "hash": ("HSET", "{}", "x", "y"),
    "zset": ("ZADD", "{}", "1", "x"),
    "stream": ("XADD", "{}", "*", "x", "y"),
    "set": ("SADD", "{}", "x"),
}
LETTER = fx.DeadLetter(code="x", reason="y", source="z", raw=b"", digest="d", size=0)
_TYPED: dict[str, tuple[str, Callable[[Keys], str], fx.Effect]] = {
    "the state": ("string", lambda keys: keys.state("b"), fx.SetState("b", "x")),
    "the record": ("hash", lambda keys: keys.agent("b"), fx.SaveAgent("b", {"x": "y"})),
    "the metadata": ("hash", lambda keys: keys.metadata("b"), fx.SaveMetadata("b", {"x": "y"})),
    "the measurements": ("hash", lambda keys: keys.agent_measurements("b"), fx.SaveMeasurements("b", {"x": 1.0})),
    "the commands": ("list", lambda keys: keys.commands("b"), fx.PushCommand("b", b"x")),
    "what is withdrawn": ("list", lambda keys: keys.commands("b"), fx.WithdrawCommand("b", "x")),
    "what it is withdrawn by": ("hash", lambda keys: keys.command("x"), fx.WithdrawCommand("b", "x")),
    "what is released": ("list", lambda keys: keys.commands("b"), fx.ReleaseCommand("b", "x")),
    "a group": ("hash", lambda keys: keys.group("g"), fx.SaveGroup("g", {"x": "y"})),
    "the errands": ("list", lambda keys: keys.fanout, fx.AddFanoutTargets([b"x"])),
    "the holds": ("hash", lambda keys: keys.holds, fx.SaveHold("pause")),
    "an answer": ("string", lambda keys: keys.saved_reply("r"), fx.SaveRequestReply("r", b"x", 5.0)),
    "the letters that are removed": ("stream", lambda keys: keys.dead_letters, fx.RemoveDeadLetters(("1-1",))),
    "the inbox": ("list", lambda keys: keys.inbox("b"), fx.DeliverMail("b", b"x")),
    "what waits": ("list", lambda keys: keys.mail("b"), fx.ReleaseMail("b")),
    "a reply": ("list", lambda keys: keys.agent_reply("b", "m"), fx.SendReply("b", "m", b"x", 5.0)),
    "an operator's reply": ("list", lambda keys: keys.request_reply("r"), fx.SendReply(None, "r", b"x", 5.0)),
    "a command": ("hash", lambda keys: keys.command("c"), fx.SaveCommand("c", {"x": "y"})),
    "the index": ("set", lambda keys: keys.index, fx.IndexAgent("b")),
    "the deadlines": ("zset", lambda keys: keys.deadlines, fx.SetDeadline("x", 1.0)),
    "the heartbeats": ("zset", lambda keys: keys.heartbeats, fx.ForgetAgent("b")),
    "the audit": ("stream", lambda keys: keys.audit, fx.RecordFact(FACT)),
    "the dead letters": ("stream", lambda keys: keys.dead_letters, fx.AddDeadLetter(LETTER)),
}


@pytest.mark.parametrize("what", _TYPED)
async def test_a_key_of_the_wrong_type_stops_the_whole_commit(desk: Desk, what: str) -> None:
    """Redis does not roll back, so every type is checked before the first write. The right type is let through."""
    right, name, effect = _TYPED[what]
    key = name(desk.keys)
    for kind, words in _VALUES.items():
        await desk.call("DEL", key)
        await desk.call(*(word.format(key) for word in words))
        if kind != right:
            assert await desk.refuses(lambda: desk.commit(*CHANGE, effect)) == CommitCode.WRONG_TYPE
    await desk.call("DEL", key)
    await desk.call(*(word.format(key) for word in _VALUES[right]))
    assert (await desk.commit(*CHANGE[:3], effect)).code == CommitCode.APPLIED


async def test_all_wrong_types_are_told_and_whose_decisions_they_were(desk: Desk) -> None:
    """So that the others can go on without them; a key that belongs to nobody in particular is the engine's."""
    keys = desk.keys
    for key in (keys.inbox("c"), keys.state("d"), keys.index):
        await desk.call("HSET", key, "x", "y")
    effects = (fx.DeliverMail("c", b"x"), fx.SetState("d", "x"), fx.IndexAgent("e"), fx.DeliverMail("c", b"y"))
    batch = Batch(keys, BOUNDS, [Decision("test", effects=[*CHANGE, effect]) for effect in effects])
    reply = await desk.store.commit(*batch.call(TOKEN, "L1", LEDGER, None))
    owners = batch.owners_of_keys(reply.details)
    assert SHARED in owners.pop(keys.index)
    assert owners == {keys.inbox("c"): {0, 3}, keys.state("d"): {1}}


@pytest.mark.parametrize("with_source", [True, False])
async def test_a_source_of_the_wrong_type_is_an_outage_and_writes_nothing(desk: Desk, *, with_source: bool) -> None:
    """Also for those who commit without taking from a queue."""
    await desk.call("SET", desk.keys.response_queue, "not a list")
    before = await desk.dump()
    with pytest.raises(ServerUnavailableError) as caught:
        await desk.commit(*CHANGE, taken=desk.taken(b"1") if with_source else None)
    assert caught.value.outage == "wrong_type"
    assert await desk.dump() == before


async def test_a_list_of_the_oversized_of_the_wrong_type_writes_nothing(desk: Desk) -> None:
    """The message stays where it is, and nothing is said of it."""
    whole = b"x" * 5000
    await desk.fill(whole)
    await desk.call("SET", desk.keys.oversized, "not a list")
    taken = SourceTrim(desk.keys.response_queue, 1, message_digest(whole), message_digest(whole), oversized=True)
    assert await desk.refuses(lambda: desk.commit(*CHANGE, taken=taken)) == CommitCode.WRONG_TYPE


_SCORES = [0.0, -1.5, 0.1 + 0.2, 1_800_000_000.123456, 1_800_000_000_123.0, 5e-324, 1.7e308, math.inf, -math.inf]


@pytest.mark.parametrize("score", _SCORES)
async def test_a_score_is_expected_to_the_last_bit(desk: Desk, score: float) -> None:
    """What was read is what is compared, whatever its size; one bit more is another heartbeat."""
    await desk.call("ZADD", desk.keys.heartbeats, repr(score), "a")
    (read,) = (await desk.store.heartbeat_scores(["a"])).values()
    assert read == score
    if math.isfinite(score):
        expect = fx.ExpectScore("a", math.nextafter(score, math.inf))
        assert await desk.refuses(lambda: desk.commit(*CHANGE, expect)) == CommitCode.SCORE_MOVED
    assert (await desk.commit(*CHANGE, fx.ExpectScore("a", score))).code == CommitCode.APPLIED


async def test_a_heartbeat_or_deadline_that_is_gone_has_moved(desk: Desk) -> None:
    """One that was expected is not there; the answer says which it was."""
    await desk.call("ZADD", desk.keys.heartbeats, 1, "a")
    assert await desk.refuses(lambda: desk.commit(*CHANGE, fx.ExpectScore("b", 1.0))) == CommitCode.SCORE_MOVED
    gone = fx.ExpectDeadline("command:c", 1.0)
    assert await desk.refuses(lambda: desk.commit(*CHANGE, gone)) == CommitCode.SCORE_MOVED
    reply = await desk.commit(fx.ExpectScore("a", 1.0), gone)
    assert reply.details == [2]


async def test_fencing_comes_before_everything_else(desk: Desk) -> None:
    """A stale leader learns that it is one, and not that a key is wrong or its queue has moved."""
    await desk.call("SET", desk.keys.epoch, "2:another")
    await desk.call("SET", desk.keys.ledger, "L9")
    await desk.call("SET", desk.keys.audit, "x")
    attempt = await desk.refuses(lambda: desk.commit(*CHANGE, fx.ExpectScore("a", 1.0), taken=desk.taken(b"1")))
    assert attempt == CommitCode.FENCED


# What peek.lua shows


async def peeked(
    desk: Desk, *, most: int = 100, most_bytes: int = 10_000, limit: int = 5000, skip: int = 0
) -> list[int]:
    """Peek, and give the lengths of what was found."""
    peek = await desk.store.peek(
        desk.keys.response_queue, max_messages=most, max_bytes=most_bytes, max_message_bytes=limit, skip=skip
    )
    return [len(message) for message in peek.messages]


async def test_a_peek_takes_nothing_away_and_reads_the_oldest_first(desk: Desk) -> None:
    """With the length of the whole queue; messages are binary."""
    messages = [b"1", b"\x00\xff\r\n", b"3"]
    await desk.fill(*messages)
    peek = await desk.store.peek(desk.keys.response_queue, max_messages=2, max_bytes=100, max_message_bytes=100)
    assert (peek.messages, peek.oversized, peek.length) == (messages[:2], "", 3)
    assert await desk.queue() == messages
    assert peek.trim == SourceTrim(
        desk.keys.response_queue, 2, message_digest(messages[0]), message_digest(messages[1])
    )


async def test_a_peek_at_nothing_finds_nothing(desk: Desk) -> None:
    """An empty queue is no list at all; one that has less than is left out, too."""
    assert await peeked(desk) == []
    await desk.fill(b"1")
    assert (await peeked(desk, skip=1), await peeked(desk, skip=7)) == ([], [])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, [100, 200, 300, 400]),
        ({"most": 3}, [100, 200, 300]),
        ({"most": 1}, [100]),
        ({"most_bytes": 1000}, [100, 200, 300, 400]),
        ({"most_bytes": 999}, [100, 200, 300]),
        ({"most_bytes": 300}, [100, 200]),
        ({"most_bytes": 50}, [100]),
        ({"skip": 1}, [200, 300, 400]),
        ({"skip": 2, "most": 1}, [300]),
        ({"skip": 2, "most_bytes": 10}, [300]),
        ({"limit": 300}, [100, 200, 300]),
        ({"limit": 200}, [100, 200]),
        ({"limit": 100}, [100]),
    ],
)
async def test_a_peek_is_bounded_in_count_and_in_bytes(desk: Desk, bounds: dict[str, int], expected: list[int]) -> None:
    """The first message is given whatever its size; one that is too large ends the batch, and is not part of it."""
    await desk.fill(*(b"x" * size for size in (100, 200, 300, 400)))
    assert await peeked(desk, **bounds) == expected


@pytest.mark.parametrize("size", [101, 4096, 4097, 1_000_000])
async def test_an_oversized_message_is_shown_by_its_head_and_digest(desk: Desk, size: int) -> None:
    """It comes alone, and only when it is the oldest: the engine never has it in memory."""
    whole = bytes(range(256)) * (size // 256 + 1)
    whole = whole[:size]
    await desk.fill(b"small", whole, b"later")
    assert await peeked(desk, limit=100) == [5]
    peek = await desk.store.peek(
        desk.keys.response_queue, max_messages=10, max_bytes=10**7, max_message_bytes=100, skip=1
    )
    assert (peek.messages, peek.oversized, peek.length) == ([whole[:4096]], message_digest(whole), 3)
    assert peek.trim == SourceTrim(
        desk.keys.response_queue, 1, message_digest(whole), message_digest(whole), oversized=True
    )


async def test_a_message_of_exactly_the_limit_is_read(desk: Desk) -> None:
    """The bound is the largest that is let through."""
    await desk.fill(b"x" * 5000)
    assert await peeked(desk, limit=5000, most_bytes=10) == [5000]
    assert (
        await desk.store.peek(desk.keys.response_queue, max_messages=1, max_bytes=10, max_message_bytes=4999)
    ).oversized


@pytest.mark.parametrize("size", [0, 1, 255, 4095, 4096, 4097, 8192, 100_000])
async def test_python_and_lua_name_a_message_alike(desk: Desk, size: int) -> None:
    """By the SHA-1 of its first 4 KiB and its length, whatever its bytes are."""
    for whole in (b"x" * size, (bytes(range(256)) * 400)[:size], b"\x00" * size):
        await desk.fill(whole)
        peek = await desk.store.peek(desk.keys.response_queue, max_messages=1, max_bytes=1, max_message_bytes=-1)
        assert peek.oversized == message_digest(whole)
        await desk.call("DEL", desk.keys.response_queue)


async def test_two_messages_with_one_head_differ_by_their_length(desk: Desk) -> None:
    """Of one message that replaced another in the same batch, the head or the length tells."""
    assert message_digest(b"x" * 5000) != message_digest(b"x" * 5001)
    await desk.fill(b"x" * 5000)
    taken = desk.taken(b"x" * 5001)
    assert await desk.refuses(lambda: desk.commit(*CHANGE, taken=taken)) == CommitCode.SOURCE_MOVED


# Who leads, by lease.lua and release.lua


@pytest.fixture
async def free(desk: Desk) -> Desk:
    """Nobody has led here yet."""
    await desk.call("DEL", desk.keys.epoch, desk.keys.ledger)
    return desk


async def test_a_free_lease_is_taken_under_a_new_epoch(free: Desk) -> None:
    """The epoch outlives the lease, and only ever grows."""
    assert await free.store.acquire_lease("me", 5.0, None) == (LeaseCode.TAKEN, "1:me")
    assert 4000 < await free.call("PTTL", free.keys.lease) <= 5000
    assert await free.call("PTTL", free.keys.epoch) == -1
    await free.call("DEL", free.keys.lease)
    assert await free.store.acquire_lease("you", 5.0, None) == (LeaseCode.TAKEN, "2:you")


async def test_a_lease_is_renewed_by_its_holder_alone(free: Desk) -> None:
    """Under the same token; whoever else asks is told whose it is."""
    await free.store.acquire_lease("me", 0.5, None)
    assert await free.store.acquire_lease("me", 60.0, "1:me") == (LeaseCode.RENEWED, "1:me")
    assert await free.call("PTTL", free.keys.lease) > 5000
    for holder, token in (("you", None), ("you", "1:you"), ("you", "0:me"), ("me", None)):
        assert await free.store.acquire_lease(holder, 60.0, token) == (LeaseCode.HELD, "1:me")


async def test_a_lease_that_has_expired_is_taken_anew(free: Desk) -> None:
    """Also by the one who held it: others may have led in between."""
    await free.store.acquire_lease("me", 5.0, None)
    await free.call("DEL", free.keys.lease)
    assert await free.store.acquire_lease("me", 5.0, "1:me") == (LeaseCode.TAKEN, "2:me")


async def test_a_lease_under_a_lost_epoch_is_not_renewed(free: Desk) -> None:
    """A server that went back in time may hold a lease without the epoch that belongs to it."""
    await free.store.acquire_lease("me", 5.0, None)
    await free.call("SET", free.keys.epoch, "1:another")
    assert await free.store.acquire_lease("me", 5.0, "1:me") == (LeaseCode.TAKEN, "2:me")


@pytest.mark.parametrize("epoch", ["", "nonsense", "x:y", ":me", "-5:me"])
async def test_a_damaged_epoch_begins_again(free: Desk, epoch: str) -> None:
    """It is no reason not to lead."""
    await free.call("SET", free.keys.epoch, epoch)
    assert await free.store.acquire_lease("me", 5.0, None) == (LeaseCode.TAKEN, "1:me")


async def test_an_epoch_is_written_out_whole(free: Desk) -> None:
    """Lua's numbers would turn into 1e+15."""
    await free.call("SET", free.keys.epoch, "1000000000000000:you")
    assert await free.store.acquire_lease("me", 5.0, None) == (LeaseCode.TAKEN, "1000000000000001:me")


async def test_a_lease_is_released_by_its_holder_alone(free: Desk) -> None:
    """Then a standby takes it at once; the epoch stays."""
    await free.store.acquire_lease("me", 5.0, None)
    assert await free.store.release_lease("1:you") is False
    assert await free.store.release_lease("1:me") is True
    assert await free.store.release_lease("1:me") is False
    assert await free.store.acquire_lease("you", 5.0, None) == (LeaseCode.TAKEN, "2:you")


# All of them


async def test_what_was_heard_is_queued_in_order_or_never(desk: Desk) -> None:
    """A push may arrive late, behind what was heard after it: under the same epoch, or from a leader of the past."""
    for token, number, message in (
        ("1:me", 1, b"a"),
        ("1:me", 3, b"c"),
        ("1:me", 2, b"late"),
        ("1:me", 3, b"again"),
        ("2:you", 1, b"d"),
        ("1:me", 4, b"stale"),
    ):
        await desk.store.push_published(token, number, [message, message + b"'"])
    queued = await desk.call("LRANGE", desk.keys.response_queue, 0, -1)
    assert queued[::-1] == [b"a", b"a'", b"c", b"c'", b"d", b"d'"]
    assert await desk.call("GET", desk.keys.publication_cursor) == b"2:1"


async def test_a_script_missing_on_the_server_is_sent_whole(desk: Desk) -> None:
    """The cache of scripts dies with every restart: nobody notices."""
    await desk.fill(b"1")
    with pytest.raises(NoScriptError):
        await desk.call("EVALSHA", "0" * 40, 0)
    await desk.call("SCRIPT", "FLUSH")
    assert await peeked(desk) == [1]
    await desk.call("SCRIPT", "FLUSH")
    assert (await desk.commit(*CHANGE, taken=desk.taken(b"1"))).code == CommitCode.APPLIED
    assert not (await desk.call("SCRIPT", "EXISTS", PEEK.digest))[0]
