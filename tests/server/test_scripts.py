"""Laws of the Lua scripts. A script that refuses writes nothing."""

import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files

import pytest
from redis.exceptions import NoScriptError

from aism_engine.clock import SystemClock
from aism_engine.domain import effects as fx
from aism_engine.domain.commands.delivery import command_id_of
from aism_engine.domain.decision import Decision
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest
from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store import scripts
from aism_engine.store.batch import _WRITERS, SHARED, Batch, Bounds, SourceTrim
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import PEEK, CommitCode, LeaseCode
from aism_engine.store.store import CommitReply, Peek, Store
from tests.support.engine import Client, Reader, plain_client
from tests.support.server import Cli, test_server_binary

TOKEN, LEDGER = "1:me", "L0"
BOUNDS = Bounds(audit=1000, dead_letters=1000, oversized=3)
FACT = fx.Fact(event="tested", by="engine", at="2027-01-15T08:00:00.000Z", agent_id="a")


class Leader(Reader):
    """Calls scripts as the newest leader, whose last commit is L0."""

    def __init__(self, client: Client, store: Store) -> None:
        super().__init__(client, store.keys.prefix)
        self.store = store

    async def commit(
        self,
        *effects: fx.Effect,
        token: str = TOKEN,
        commit_id: str = "L1",
        previous: str = LEDGER,
        trim: SourceTrim | None = None,
    ) -> CommitReply:
        batch = Batch(self.keys, BOUNDS, [Decision("test", effects=list(effects))])
        return await self.store.commit(*batch.call(token, commit_id, previous, trim))

    async def refusal(self, *effects: fx.Effect, trim: SourceTrim | None = None) -> CommitCode:
        """Return the code of a commit that must neither change a key nor publish anything."""
        before = await self.dump()
        with Cli(self.client.connection_pool.connection_kwargs["port"]) as subscriber:
            subscriber("PSUBSCRIBE", f"{self.keys.prefix}:*")
            reply = await self.commit(*effects, trim=trim)
            await self.call("PUBLISH", f"{self.keys.prefix}:the-end", "")
            received = subscriber.read()[2]
        assert await self.dump() == before
        assert received == f"{self.keys.prefix}:the-end".encode()
        return reply.code

    async def push(self, *messages: bytes) -> None:
        """Push messages to the response queue, oldest first."""
        await self.call("LPUSH", self.keys.response_queue, *messages)

    async def queue(self) -> list[bytes]:
        """Return the messages in the response queue, oldest first."""
        found: list[bytes] = await self.call("LRANGE", self.keys.response_queue, 0, -1)
        return found[::-1]

    async def peek(self, **bounds: int) -> Peek:
        defaults = {"max_messages": 100, "max_bytes": 10**7, "max_message_bytes": 5000}
        return await self.store.peek(self.keys.response_queue, **(defaults | bounds))

    async def peeked_lengths(self, **bounds: int) -> list[int]:
        """Peek, and return the lengths of the messages."""
        return [len(message) for message in (await self.peek(**bounds)).messages]

    def trim(self, *messages: bytes) -> SourceTrim:
        return SourceTrim(
            self.keys.response_queue, len(messages), message_digest(messages[0]), message_digest(messages[-1])
        )


@pytest.fixture
async def leader(server: EmbeddedServer, redis_client: Client, prefix: str) -> AsyncIterator[Leader]:
    client = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    leader = Leader(redis_client, Store(client, Keys(prefix), SystemClock()))
    await redis_client.set(leader.keys.epoch, TOKEN)
    await redis_client.set(leader.keys.ledger, LEDGER)
    yield leader
    await client.aclose()


CHANGE = (
    fx.SaveAgent("a", {"state": "inbox"}),
    fx.SetState("a", "inbox"),
    fx.Publish("state_changes", b"{}"),
    FACT,
)


# Headers and codes


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


# commit.lua: what it writes


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
        fx.SaveAgent("a", {"state": "inbox", "since": "now"}),
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
        "agent": await leader.record("a"),
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
        "agent": {"state": "inbox", "since": "now"},
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
            fx.Publish("state_changes", b"1"), fx.SetState("a", "inbox"), fx.Publish("state_changes", b"2\xff")
        )
        assert [subscriber.read()[2] for _ in range(2)] == [b"1", b"2\xff"]
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
    effects = [effect for n in range(count) for effect in (fx.SetState(f"a{n}", "x"), fx.IndexAgent(f"a{n}"))]
    last = leader.keys.state(f"a{count - 1}")
    await leader.call("HSET", last, "not", "a string")
    assert await leader.refusal(*effects) == CommitCode.WRONG_TYPE
    await leader.call("DEL", last)
    assert (await leader.commit(*effects)).code == CommitCode.APPLIED
    assert await leader.call("SCARD", leader.keys.index) == count
    assert [await leader.state(f"a{n}") for n in (0, count // 2, count - 1)] == ["x"] * 3


# commit.lua: what it refuses


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
    assert set(_WRITERS) == effects


_TYPED: dict[str, tuple[str, Callable[[Keys], str], fx.Effect]] = {
    "the state": ("string", lambda keys: keys.state("b"), fx.SetState("b", "x")),
    "the record": ("hash", lambda keys: keys.agent("b"), fx.SaveAgent("b", {"x": "y"})),
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


# peek.lua


async def test_a_peek_reads_the_oldest_messages_and_removes_none(leader: Leader) -> None:
    messages = [b"1", b"\x00\xff\r\n", b"3"]
    await leader.push(*messages)
    peek = await leader.peek(max_messages=2)
    assert (peek.messages, peek.oversized, peek.length) == (messages[:2], "", 3)
    assert await leader.queue() == messages
    assert peek.trim == SourceTrim(
        leader.keys.response_queue, 2, message_digest(messages[0]), message_digest(messages[1])
    )


async def test_a_peek_at_an_empty_queue_returns_no_messages(leader: Leader) -> None:
    """Also if `skip` exceeds the length of the queue."""
    assert await leader.peeked_lengths() == []
    await leader.push(b"1")
    assert (await leader.peeked_lengths(skip=1), await leader.peeked_lengths(skip=7)) == ([], [])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, [100, 200, 300, 400]),
        ({"max_messages": 3}, [100, 200, 300]),
        ({"max_messages": 1}, [100]),
        ({"max_bytes": 1000}, [100, 200, 300, 400]),
        ({"max_bytes": 999}, [100, 200, 300]),
        ({"max_bytes": 300}, [100, 200]),
        ({"max_bytes": 50}, [100]),
        ({"skip": 1}, [200, 300, 400]),
        ({"skip": 2, "max_messages": 1}, [300]),
        ({"skip": 2, "max_bytes": 10}, [300]),
        ({"max_message_bytes": 300}, [100, 200, 300]),
        ({"max_message_bytes": 200}, [100, 200]),
        ({"max_message_bytes": 100}, [100]),
    ],
)
async def test_a_peek_is_bounded_in_count_and_in_bytes(
    leader: Leader, bounds: dict[str, int], expected: list[int]
) -> None:
    """The first message is returned whatever its size. An oversized message ends the batch and is not part of it."""
    await leader.push(*(b"x" * size for size in (100, 200, 300, 400)))
    assert await leader.peeked_lengths(**bounds) == expected


@pytest.mark.parametrize("size", [101, 4096, 4097, 1_000_000])
async def test_an_oversized_message_is_peeked_as_head_and_digest(leader: Leader, size: int) -> None:
    """It is returned alone, once it is the oldest, so the engine never has the whole message in memory."""
    message = (bytes(range(256)) * (size // 256 + 1))[:size]
    await leader.push(b"small", message, b"later")
    assert await leader.peeked_lengths(max_message_bytes=100) == [5]
    peek = await leader.peek(max_message_bytes=100, skip=1)
    assert (peek.messages, peek.oversized, peek.length) == ([message[:4096]], message_digest(message), 3)
    assert peek.trim == SourceTrim(
        leader.keys.response_queue, 1, message_digest(message), message_digest(message), oversized=True
    )


@pytest.mark.parametrize("size", [0, 1, 255, 4095, 4096, 4097, 8192, 100_000])
async def test_python_and_lua_compute_the_same_digest(leader: Leader, size: int) -> None:
    for message in (b"x" * size, (bytes(range(256)) * 400)[:size], b"\x00" * size):
        await leader.push(message)
        peek = await leader.peek(max_message_bytes=-1)
        assert peek.oversized == message_digest(message)
        await leader.call("DEL", leader.keys.response_queue)


async def test_messages_with_the_same_head_differ_by_their_length(leader: Leader) -> None:
    assert message_digest(b"x" * 5000) != message_digest(b"x" * 5001)
    await leader.push(b"x" * 5000)
    trim = leader.trim(b"x" * 5001)
    assert await leader.refusal(*CHANGE, trim=trim) == CommitCode.SOURCE_MOVED


# acquire_lease.lua and release_lease.lua


@pytest.fixture
async def candidate(leader: Leader) -> Leader:
    """A fleet that has had no leader yet."""
    await leader.call("DEL", leader.keys.epoch, leader.keys.ledger)
    return leader


async def test_a_free_lease_is_taken_under_a_new_epoch(candidate: Leader) -> None:
    """The epoch outlives the lease, and only grows."""
    assert await candidate.store.acquire_lease("me", 5.0, None) == (LeaseCode.TAKEN, "1:me")
    assert 4000 < await candidate.call("PTTL", candidate.keys.lease) <= 5000
    assert await candidate.call("PTTL", candidate.keys.epoch) == -1
    await candidate.call("DEL", candidate.keys.lease)
    assert await candidate.store.acquire_lease("you", 5.0, None) == (LeaseCode.TAKEN, "2:you")


async def test_only_the_holder_renews_a_lease(candidate: Leader) -> None:
    """The token stays the same. Any other engine gets the token of the holder."""
    await candidate.store.acquire_lease("me", 0.5, None)
    assert await candidate.store.acquire_lease("me", 60.0, "1:me") == (LeaseCode.RENEWED, "1:me")
    assert await candidate.call("PTTL", candidate.keys.lease) > 5000
    for holder, token in (("you", None), ("you", "1:you"), ("you", "0:me"), ("me", None)):
        assert await candidate.store.acquire_lease(holder, 60.0, token) == (LeaseCode.HELD, "1:me")


async def test_an_expired_lease_is_taken_under_a_new_epoch(candidate: Leader) -> None:
    """Also by its last holder: another engine may have led in between."""
    await candidate.store.acquire_lease("me", 5.0, None)
    await candidate.call("DEL", candidate.keys.lease)
    assert await candidate.store.acquire_lease("me", 5.0, "1:me") == (LeaseCode.TAKEN, "2:me")


async def test_a_lease_without_its_epoch_is_not_renewed(candidate: Leader) -> None:
    """A server that lost its latest writes may have a lease and an older epoch."""
    await candidate.store.acquire_lease("me", 5.0, None)
    await candidate.call("SET", candidate.keys.epoch, "1:another")
    assert await candidate.store.acquire_lease("me", 5.0, "1:me") == (LeaseCode.TAKEN, "2:me")


@pytest.mark.parametrize(
    ("epoch", "token"),
    [
        *((damaged, "1:me") for damaged in ("", "nonsense", "x:y", ":me", "-5:me")),
        (f"{10**15}:you", f"{10**15 + 1}:me"),
    ],
)
async def test_a_damaged_epoch_restarts_at_one_and_a_large_one_goes_on(
    candidate: Leader, epoch: str, token: str
) -> None:
    await candidate.call("SET", candidate.keys.epoch, epoch)
    assert await candidate.store.acquire_lease("me", 5.0, None) == (LeaseCode.TAKEN, token)


async def test_the_lease_leaves_when_an_engine_last_led(candidate: Leader) -> None:
    """It is written at each renewal by the holder, and outlives the lease. A damaged key costs nobody the lease."""
    keys = candidate.keys
    await candidate.store.acquire_lease("me", 5.0, None)
    taken_at = int(await candidate.call("GET", keys.led_at))
    assert taken_at <= (await candidate.call("TIME"))[0]
    for holder, token, written in (("you", None, False), ("me", "1:me", True)):
        await candidate.call("SET", keys.led_at, "0")
        await candidate.store.acquire_lease(holder, 5.0, token)
        assert (int(await candidate.call("GET", keys.led_at)) >= taken_at) is written
    await candidate.store.release_lease("1:me")
    assert await candidate.call("PTTL", keys.led_at) == -1


async def test_a_full_server_costs_no_engine_its_lease() -> None:
    """A renewal needs no memory."""
    with EmbeddedServer(test_server_binary(), append_only=False) as server:
        async with plain_client(server) as client:
            store = Store(client, Keys("full"), SystemClock())
            await store.acquire_lease("me", 60.0, None)
            await client.config_set("maxmemory", 1)
            await client.delete(store.keys.led_at)
            assert await store.acquire_lease("me", 60.0, "1:me") == (LeaseCode.RENEWED, "1:me")


async def test_only_the_holder_releases_a_lease(candidate: Leader) -> None:
    """A standby then takes it at once, under the next epoch."""
    await candidate.store.acquire_lease("me", 5.0, None)
    assert await candidate.store.release_lease("1:you") is False
    assert await candidate.store.release_lease("1:me") is True
    assert await candidate.store.release_lease("1:me") is False
    assert await candidate.store.acquire_lease("you", 5.0, None) == (LeaseCode.TAKEN, "2:you")


# push_published.lua and the script cache


async def test_published_messages_are_queued_in_order_or_not_at_all(leader: Leader) -> None:
    """A push may arrive after a later one of the same epoch, or from a former leader."""
    for token, number, message in (
        ("1:me", 1, b"a"),
        ("1:me", 3, b"c"),
        ("1:me", 2, b"late"),
        ("1:me", 3, b"again"),
        ("2:you", 1, b"d"),
        ("1:me", 4, b"stale"),
    ):
        await leader.store.push_published(token, number, [message, message + b"'"])
    queued = await leader.call("LRANGE", leader.keys.response_queue, 0, -1)
    assert queued[::-1] == [b"a", b"a'", b"c", b"c'", b"d", b"d'"]
    assert await leader.call("GET", leader.keys.publication_cursor) == b"2:1"


async def test_a_script_missing_on_the_server_is_sent_whole(leader: Leader) -> None:
    """The script cache of a server is empty after each restart."""
    await leader.push(b"1")
    with pytest.raises(NoScriptError):
        await leader.call("EVALSHA", "0" * 40, 0)
    await leader.call("SCRIPT", "FLUSH")
    assert await leader.peeked_lengths() == [1]
    await leader.call("SCRIPT", "FLUSH")
    assert (await leader.commit(*CHANGE, trim=leader.trim(b"1"))).code == CommitCode.APPLIED
    assert not (await leader.call("SCRIPT", "EXISTS", PEEK.digest))[0]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("command_id", ["c", "c" * 100])
async def test_the_oldest_command_of_a_list_is_found_behind_cancels(
    leader: Leader, codec: str, command_id: str
) -> None:
    """A command whose payload looks like a `cancel` is a command."""
    commands = leader.keys.commands("a")

    def message(message_id: str, kind: str) -> bytes:
        payload = {"id": "c", "type": "cancel"}
        return encode(m.CommandMessage(id=message_id, type=kind, payload=payload, timestamp="now"), codec)

    async def oldest() -> str | None:
        return command_id_of((await leader.store.list_heads(["a"]))["a"])

    await leader.call("LPUSH", commands, message(command_id, "work"))
    assert await oldest() == command_id
    await leader.call("RPUSH", commands, message(f"{command_id}.cancel", "cancel"), message("other", "cancel"))
    assert await oldest() == command_id
    await leader.call("LREM", commands, 0, message(command_id, "work"))
    assert await leader.store.list_heads(["a"]) == {"a": b""}
