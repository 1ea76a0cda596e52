"""Keys of the wrong type, and damaged records: each delays only what needs it."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from aism_engine.domain.decision import Decision
from aism_engine.services import timekeeper
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.support.engine import Running, eventually, running_engine
from tests.support.workers import SOON_S, WORKER, open_workers

MIB = 1_048_576


WRONG: dict[str, tuple[str, ...]] = {
    "string": ("SET", "{}", "x"),
    "list": ("RPUSH", "{}", "x"),
    "hash": ("HSET", "{}", "x", "y"),
}
AGENT_KEYS: dict[str, tuple[Callable[[Keys], str], str, dict[str, Any]]] = {
    "state": (lambda keys: keys.state("a"), "list", {"type": "state_transition", "payload": {"target": "x"}}),
    "metadata": (lambda keys: keys.metadata("a"), "string", {"type": "register", "payload": {"type": "x"}}),
    "measurements": (lambda keys: keys.agent_measurements("a"), "list", {"type": "measurement", "payload": {"x": 1}}),
    "inbox": (lambda keys: keys.inbox("a"), "hash", {"type": "message", "payload": {"to": "a", "content": 1}}),
    "record": (lambda keys: keys.agent("a"), "list", {"type": "state_transition", "payload": {"target": "x"}}),
    "command record": (lambda keys: keys.command("c1"), "list", {"type": "ack", "command_id": "c1"}),
    "replies": (lambda keys: keys.agent_reply("a", "m1"), "hash", {"type": "heartbeat", "id": "m1", "reply": True}),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("what", AGENT_KEYS)
async def test_agent_key_of_the_wrong_type_dead_letters_only_that_message(
    engine: Running, what: str, *, known: bool
) -> None:
    """Other messages of the batch are applied; once the key is removed, the same message is applied too."""
    name, wrong, fields = AGENT_KEYS[what]
    key, response = name(engine.keys), {"agent_id": "a", **fields}
    if known:
        await engine.say({"type": "heartbeat", "agent_id": "a"})
        await eventually(lambda: engine.record("a"))
        await engine.ask({"type": "send", "id": "c1", "payload": {"agent_id": "a", "command": {"type": "work"}}})
        await engine.replied("c1")
        await engine.call("DEL", key)
    await engine.call(*(word.format(key) for word in WRONG[wrong]))
    others = [{"type": "state_transition", "agent_id": f"b{n}", "payload": {"target": "served"}} for n in range(2)]
    await engine.say(others[0], response, others[1])
    await eventually(engine.is_drained)
    assert [await engine.state(f"b{n}") for n in range(2)] == ["served", "served"]
    (dead_letter,) = await engine.dead_letters()
    unknown = what == "command record" and not known
    assert dead_letter["code"] == (b"unknown_command" if unknown else b"wrong_type")
    assert (json.loads(dead_letter["raw"]), dead_letter["agent_id"]) == (response, b"a")
    assert unknown or key in dead_letter["reason"].decode()
    assert engine.refusal is None
    if unknown:
        return
    await engine.call("DEL", key)
    await engine.say(response)
    await eventually(engine.is_drained)
    assert len(await engine.dead_letters()) == 1


@pytest.mark.parametrize("what", ["commands", "command record", "replies"])
async def test_key_of_the_wrong_type_dead_letters_only_the_request_that_needs_it(engine: Running, what: str) -> None:
    """The requests before and after it are applied."""
    keys = engine.keys
    key = {"commands": keys.commands("a"), "command record": keys.command("r1"), "replies": keys.request_reply("r1")}
    await engine.say({"type": "heartbeat", "agent_id": "a"}, {"type": "heartbeat", "agent_id": "b"})
    await eventually(lambda: engine.record("b"))
    await engine.call("SET", key[what], "x")
    send = {"type": "send", "payload": {"agent_id": "a", "command": {"type": "work"}}}
    other = {"type": "send", "payload": {"agent_id": "b", "command": {"type": "work"}}}
    await engine.ask({**other, "id": "r0"}, {**send, "id": "r1"}, {**other, "id": "r2"})
    assert [(await engine.replied(each))["ok"] for each in ("r0", "r2")] == [True, True]
    (dead_letter,) = await engine.dead_letters()
    assert (dead_letter["code"], json.loads(dead_letter["raw"])["id"]) == (b"wrong_type", "r1")
    assert key[what] in dead_letter["reason"].decode()


async def test_messages_that_use_one_wrong_key_are_dead_lettered_together(engine: Running) -> None:
    """Failing one by one, they would delay the others."""
    await engine.call("SET", engine.keys.agent_measurements("a"), "x")
    failing = [{"type": "measurement", "agent_id": "a", "payload": {"x": n}} for n in range(2000)]
    other = {"type": "state_transition", "agent_id": "b", "payload": {"target": "served"}}
    before = engine.metric("aism_commits_total", code="wrong_type")
    await engine.say({"type": "heartbeat", "agent_id": "a"}, *failing, other)
    await eventually(partial(engine.state_is, "b", "served"))
    assert [code for code, _ in await engine.dead_lettered()] == ["wrong_type"] * 2000
    assert engine.metric("aism_commits_total", code="wrong_type") - before < 200


@pytest.mark.parametrize("wrong", ["commands", "command records"])
async def test_deadline_that_needs_a_wrong_key_does_not_delay_others(
    server: EmbeddedServer, prefix: str, wrong: str
) -> None:
    """Even if more of them are due than fit into one batch. The command expires nevertheless."""
    async with running_engine(server, prefix, timekeeper__batch=3) as engine:
        await engine.say({"type": "heartbeat", "agent_id": "a"}, {"type": "heartbeat", "agent_id": "b"})
        await eventually(lambda: engine.record("b"))
        send: dict[str, Any] = {
            "type": "send",
            "payload": {"agent_id": "a", "command": {"type": "work"}, "options": {"ttl": 0.3}},
        }
        await engine.ask(*({**send, "id": f"a{n}"} for n in range(5)))
        await engine.ask({**send, "id": "b0", "payload": {**send["payload"], "agent_id": "b"}})
        await engine.replied("b0")
        keys = engine.keys
        for key in [keys.commands("a")] if wrong == "commands" else [keys.command(f"a{n}") for n in range(5)]:
            await engine.call("DEL", key)
            await engine.call("SET", key, "x")
        await eventually(partial(_has_facts, engine, 6, "command_expired"))
        await eventually(lambda: not engine.engine.writer.fleet.commands)
        assert (await engine.command("b0"))["status"] == "expired"
        if wrong == "commands":
            assert {(await engine.command(f"a{n}"))["status"] for n in range(5)} == {"expired"}


async def _has_facts(engine: Running, count: int, event: str) -> bool:
    return len(await engine.audit(event)) == count


@pytest.mark.parametrize("how", ["loss", "first heartbeat", "metadata"])
async def test_wrong_key_of_a_watched_agent_does_not_delay_others(
    server: EmbeddedServer, prefix: str, how: str
) -> None:
    """The reaper and the registrar leave this agent out, and go on with the rest."""
    liveness: dict[str, object] = {"liveness__silent_after": 0.2, "liveness__lost_after": 0.5}
    async with running_engine(server, prefix, **(liveness if how == "loss" else {})) as engine:
        keys = engine.keys
        if how == "first heartbeat":
            await engine.call("LPUSH", keys.agent("a"), "x")
        seconds = await engine.now()
        await engine.call("ZADD", keys.heartbeats, seconds, "a", seconds, "b")
        await eventually(lambda: engine.record("b"))
        if how == "first heartbeat":
            return
        await eventually(lambda: engine.record("a"))
        await engine.call("DEL", keys.agent("a"))
        await engine.call("LPUSH", keys.agent("a"), "x")
        if how == "loss":
            await eventually(lambda: engine.audit("agent_lost", agent_id="b"))
        else:
            await engine.call("HSET", keys.metadata("a"), "type", "changed")
            await engine.call("HSET", keys.metadata("b"), "type", "changed")
            await eventually(lambda: engine.audit("metadata_changed", agent_id="b"))


ENGINE_KEYS: dict[str, Callable[[Keys], str]] = {
    "audit": lambda keys: keys.audit,
    "dead letters": lambda keys: keys.dead_letters,
    "index": lambda keys: keys.index,
    "oversized": lambda keys: keys.oversized,
    "response queue": lambda keys: keys.response_queue,
    "ledger": lambda keys: keys.ledger,
}


@pytest.mark.parametrize("what", ENGINE_KEYS)
async def test_engine_waits_while_a_key_of_its_own_has_the_wrong_type(engine: Running, what: str) -> None:
    """It reports the outage by name, writes nothing, and resumes by itself once the key is restored."""
    key = ENGINE_KEYS[what](engine.keys)
    await engine.say({"type": "heartbeat", "agent_id": "known"})
    await eventually(lambda: engine.record("known"))
    await eventually(engine.is_drained)
    kept = await engine.call("DUMP", key)
    await engine.call("DEL", key)
    await engine.call("HSET", key, "wrong", "type")
    messages: list[bytes | dict[str, Any]] = [
        b"not json",
        b"x" * (MIB + 1),
        {"type": "state_transition", "agent_id": "new", "payload": {"target": "served"}},
    ]
    if what != "response queue":
        await engine.say(*messages)
    await eventually(lambda: engine.outage == "wrong_type")
    for _ in range(20):  # the successful steps of other services do not hide it
        await engine.call("PING")
        assert engine.outage == "wrong_type"
    assert engine.engine.checks()["redis"].ok is False
    assert engine.metric("aism_redis_up") == 0
    assert engine.metric("aism_redis_outages_total", outage="wrong_type") == 1
    assert await engine.state("new") is None
    if kept is None:
        await engine.call("DEL", key)
    else:
        await engine.call("RESTORE", key, 0, kept, "REPLACE")  # one command: the engine writes as soon as it can
    if what == "response queue":
        await engine.say(*messages)
    await eventually(partial(engine.state_is, "new", "served"))
    await eventually(lambda: engine.outage is None)
    await eventually(engine.is_drained)
    assert [code for code, _ in await engine.dead_lettered()] == ["invalid_json", "oversized"]
    assert engine.metric("aism_redis_up") == 1


async def test_heartbeats_of_the_wrong_type_stop_only_their_readers(engine: Running) -> None:
    """Messages are still applied, while the engine reports the outage."""
    await engine.call("SET", engine.keys.heartbeats, "x")
    await eventually(lambda: engine.outage == "wrong_type")
    await engine.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "served"}})
    await eventually(partial(engine.state_is, "a", "served"))
    assert engine.outage == "wrong_type"
    await engine.call("DEL", engine.keys.heartbeats)
    await eventually(lambda: engine.outage is None)


async def test_heartbeats_of_invalid_agent_ids_are_ignored(engine: Running) -> None:
    """An agent id becomes part of a key."""
    for name in (b"a:b", b"*", b"\xff\xfe", b"", b"x" * 10_000):
        await engine.call("ZADD", engine.keys.heartbeats, 1_800_000_000, name)
    await engine.call("ZADD", engine.keys.heartbeats, 1_800_000_000, "valid")
    await eventually(lambda: engine.record("valid"))
    assert await engine.call("SMEMBERS", engine.keys.index) in ({b"valid"}, [b"valid"])
    await eventually(lambda: engine.metric("aism_invalid_heartbeat_members") == 5)
    assert await engine.call("ZCARD", engine.keys.heartbeats) == 6


async def test_agent_whose_heartbeat_is_removed_becomes_unknown(engine: Running) -> None:
    """It does not stay fresh without a heartbeat. The next heartbeat makes it fresh again."""

    async def liveness_is(liveness: str) -> bool:
        return (await engine.record("a")).get("liveness") == liveness

    for score in (1_800_000_000, 1_800_000_001):
        await engine.call("ZADD", engine.keys.heartbeats, score, "a")
        await eventually(partial(liveness_is, "fresh"))
        await engine.call("ZREM", engine.keys.heartbeats, "a")
        await eventually(partial(liveness_is, "unknown"))


async def test_malformed_deadlines_are_removed(server: EmbeddedServer, prefix: str) -> None:
    """Also if they are the oldest and more than one batch, and if they are invalid UTF-8."""
    async with running_engine(server, prefix, timekeeper__batch=2, timekeeper__grace=0.1) as engine:
        malformed = (b"\xff\xfe", b"command:\xff", b"group:\xff", b"other:\xff", b"", "command:unknown", "malformed")
        await engine.call("ZADD", engine.keys.deadlines, *(part for each in malformed for part in (1, each)))
        await eventually(partial(_has_none, engine, engine.keys.deadlines))


async def _has_none(engine: Running, key: str) -> bool:
    return bool(await engine.call("EXISTS", key) == 0)


async def test_engine_starts_with_damaged_records(server: EmbeddedServer, prefix: str) -> None:
    """It loads the agents, commands and facts that it can read. Agents with damaged records join anew."""
    async with running_engine(server, prefix) as engine:
        for agent_id in "abc":
            await engine.say({"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}})
        await eventually(lambda: engine.record("c"))
        for agent_id in "ab":
            payload = {"agent_id": agent_id, "command": {"type": "work"}}
            await engine.ask({"type": "send", "id": f"c-{agent_id}", "payload": payload})
            await engine.replied(f"c-{agent_id}")
        keys = engine.keys
        await engine.call("SET", keys.agent("a"), "{")
        await engine.call("SET", keys.agent("b"), '{"agent_id":"b","since":"yesterday"}')
        await engine.call("HSET", keys.command("c-a"), "status", "sleeping")
        await engine.call("DEL", keys.command("c-b"))
        await engine.call("SADD", keys.index, "unknown", b"\xff", "a:b")
        await engine.call("ZADD", keys.deadlines, 1, "command:unknown", 1, b"\xff", 1, "malformed")
        await engine.call("XADD", keys.audit, "*", "facts", "not json")
        await engine.call("XADD", keys.audit, "*", "facts", '[{"cause": 7}]')
        await engine.call("XADD", keys.audit, "*", "odd", b"\xff")
    async with running_engine(server, prefix) as engine:
        assert set(engine.engine.writer.fleet.agents) == {"c"}
        await engine.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "anything"}})
        await eventually(partial(engine.state_is, "a", "anything"))


@pytest.mark.parametrize("wrong", [("agent",), ("state",), ("agent", "state")])
async def test_unknown_agent_whose_record_cannot_be_written_does_not_delay_others(
    engine: Running, wrong: tuple[str, ...]
) -> None:
    """All its messages of a batch are dead-lettered together."""
    for each in wrong:
        await engine.call("LPUSH", getattr(engine.keys, each)("a"), "x")
    heartbeats = [{"type": "heartbeat", "agent_id": "a", "id": f"m{number}"} for number in range(200)]
    await engine.say(*heartbeats, {"type": "heartbeat", "agent_id": "b", "id": "m"})
    await eventually(lambda: engine.record("b"))
    assert [code for code, _ in await engine.dead_lettered()] == ["wrong_type"] * 200
    assert engine.metric("aism_commits_total", code="wrong_type") <= 4


@pytest.mark.parametrize("wrong", [("record", "list"), ("group",), ("record", "group"), ("record", "list", "group")])
async def test_deadline_is_decided_whichever_of_its_keys_have_the_wrong_type(
    server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch, wrong: tuple[str, ...]
) -> None:
    """The agent has taken the command, so a `cancel` is due too. The command ends, and other requests are served."""
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        monkeypatch.setattr(timekeeper, "decide_deadline", lambda *_: Decision("deadline", "unchanged"))
        options = {"ack_timeout": SOON_S, "max_attempts": 1}
        await workers.request("g", "send", select=f"id={WORKER}", command={"type": "work"}, options=options)
        command_id = (await workers.pop())["id"]
        await workers.wait_status(command_id, "delivered")
        keys = workers.keys
        names = {"record": keys.command(command_id), "list": keys.commands(WORKER), "group": keys.group("g")}
        for each in wrong:
            await workers.call("DEL", names[each])
            await workers.call("SET", names[each], "mine")
        monkeypatch.undo()
        await eventually(lambda: not workers.engine.writer.fleet.commands)
        await workers.register("other")
        assert (await workers.send("next", "other"))["ok"]
        assert workers.metric("aism_service_failures_total", service="timekeeper") == 0


async def test_fanout_skips_the_targets_of_a_group_whose_record_has_the_wrong_type(
    server: EmbeddedServer, prefix: str
) -> None:
    """The targets of other groups are served, and there is no outage."""
    async with open_workers(server, prefix) as workers:
        await workers.call("SET", workers.keys.group("damaged"), "mine")
        await workers.call("LPUSH", workers.keys.fanout, json.dumps({"group_id": "damaged", "agent_id": WORKER}))
        await workers.register(WORKER)
        await workers.request("g", "send", select=f"id={WORKER}", command={"type": "work"}, options={})
        assert (await workers.pop())["id"] == f"g.{WORKER}"
        assert workers.refusal is None
