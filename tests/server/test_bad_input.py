"""Invalid input neither stops the engine nor delays other messages. It is dead-lettered in full, with the reason."""

import json
from functools import partial
from typing import Any

import msgspec
import pytest

from aism_engine.domain.text import message_digest
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine
from tests.support.server import Cli

MIB = 1_048_576


def message(**fields: object) -> bytes:
    return json.dumps({"type": "heartbeat", "agent_id": "a", **fields}).encode()


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


AGENT_IDS: list[object] = ["a:b", "*", "{a}", "a b", "x" * 10_240, "", 7, ["a"], True, "a\n", "ä"]
INVALID: dict[str, tuple[bytes, str]] = {
    "an empty message": (b"", "invalid_json"),
    "not JSON": (b"hello", "invalid_json"),
    "a truncated object": (b'{"type":"heartbeat"', "invalid_json"),
    "NaN": (b'{"type":"measurement","agent_id":"a","payload":{"x":NaN}}', "invalid_json"),
    "an array": (b"[1, 2]", "not_an_object"),
    "a string": (b'"heartbeat"', "not_an_object"),
    "a number": (b"17", "not_an_object"),
    "null": (b"null", "not_an_object"),
    "no type": (b'{"agent_id":"a"}', "invalid_message"),
    "no agent": (b'{"type":"heartbeat"}', "invalid_message"),
    "no target": (message(type="state_transition", payload={}), "invalid_message"),
    "a wrong field": (message(type="progress", command_id="c", payload={"percent": "half"}), "invalid_message"),
    "a wrong id": (message(id="m:1"), "invalid_message"),
    "an infinite number": (b'{"type":"measurement","agent_id":"a","payload":{"x":1e400}}', "invalid_message"),
    "a huge integer": (message(type="result", command_id="c", payload={"x": 10**100}), "invalid_message"),
    "5,000 digits": (b'{"type":"heartbeat","agent_id":"a","timestamp":' + b"9" * 5000 + b"}", "invalid_message"),
    "NaN in MessagePack": (
        msgspec.msgpack.encode({"type": "result", "agent_id": "a", "command_id": "c", "payload": {"x": float("nan")}}),
        "invalid_message",
    ),
    "an unknown type": (message(type="unknown"), "unknown_type"),
    "a request in the wrong queue": (message(type="send", id="r1"), "unknown_type"),
    "invalid UTF-8": (b'{"type":"heartbeat","agent_id":"a","mood":"\xff"}', "invalid_utf8"),
    "broken MessagePack": (b"\x82\xa4type\xa9heart", "invalid_msgpack"),
    "100,000 brackets": (nested(100_000), "not_an_object"),
    "100,000 levels": (b'{"type":"heartbeat","agent_id":"a","mood":' + nested(100_000) + b"}", "too_deep"),
    "100,000 levels of payload": (
        b'{"type":"result","agent_id":"a","command_id":"c","payload":{"x":' + nested(100_000) + b"}}",
        "too_deep",
    ),
    "900 levels of type": (b'{"type":' + nested(900) + b',"agent_id":"a"}', "unknown_type"),
    "an unknown command": (message(type="ack", command_id="c9"), "unknown_command"),
    "a command of another agent": (message(type="result", command_id="others"), "foreign_command"),
    "an unknown recipient": (message(type="message", payload={"to": "nobody", "content": 1}), "unknown_recipient"),
    "just too large": (b'{"type":"heartbeat","agent_id":"a","x":"' + b"y" * MIB + b'"}', "oversized"),
    "20 MB": (b'{"type":"heartbeat","agent_id":"a","x":"' + b"y" * 20_000_000 + b'"}', "oversized"),
}
INVALID |= {f"agent_id {agent_id!r:.20}": (message(agent_id=agent_id), "invalid_agent_id") for agent_id in AGENT_IDS}


@pytest.mark.parametrize("what", INVALID)
async def test_invalid_message_is_dead_lettered_and_the_next_one_is_applied(
    server: EmbeddedServer, engine: Running, what: str
) -> None:
    """Its code is in the dead letter, in the event on the errors channel, in the audit and in a metric."""
    raw, code = INVALID[what]
    await engine.say({"type": "heartbeat", "agent_id": "b"})
    await eventually(lambda: engine.record("b"))
    await engine.ask({"type": "send", "id": "others", "payload": {"agent_id": "b", "command": {"type": "work"}}})
    await engine.replied("others")
    with Cli(server.port) as subscriber:
        subscriber("SUBSCRIBE", engine.keys.errors)
        await engine.say(raw, {"type": "state_transition", "agent_id": "a", "payload": {"target": "served"}})
        await eventually(partial(engine.state_is, "a", "served"))
        event = json.loads(subscriber.read()[2])
    (dead_letter,) = await engine.dead_letters()
    found = {name: dead_letter[name] for name in ("code", "raw", "digest", "size", "source")}
    assert found == {
        "code": code.encode(),
        "raw": raw[:4096] if code == "oversized" else raw,
        "digest": message_digest(raw).encode(),
        "size": str(len(raw)).encode(),
        "source": b"response_queue",
    }
    assert dead_letter["reason"]
    assert (event["code"], event["message"]) == (code, dead_letter["reason"].decode())
    assert event["details"] == {"digest": message_digest(raw), "size": len(raw)}
    assert [fact["code"] for fact in await engine.audit("dead_letter_added")] == [code]
    await eventually(lambda: engine.metric("aism_dead_letters_total", code=code) == 1)
    kept = await engine.call("LRANGE", engine.keys.oversized, 0, -1)
    assert kept == ([raw] if code == "oversized" else [])
    assert await engine.is_drained()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"hello", "invalid_json"),
        (b"[]", "not_an_object"),
        (b'{"type":"send","id":"r1"}', "invalid_message"),
        (b'{"type":"unknown","id":"r1"}', "unknown_type"),
        (b'{"type":"send","id":"r1","payload":{"agent_id":"a*","command":{"type":"x"}}}', "invalid_message"),
        (b'{"type":"replay","id":"r1","payload":{"dead_letter_id":"1-99999999999999999999"}}', "invalid_message"),
        (b'{"type":"replay","id":"r1","payload":{"dead_letter_id":"\\u0663-0"}}', "invalid_message"),
        (b'{"type":"purge","id":"r1","payload":{"dead_letter_ids":["99999999999999999999-0"]}}', "invalid_message"),
        (b'{"type":"send","x":' + nested(100_000) + b"}", "too_deep"),
        (b'{"type":"send","x":"\xff"}', "invalid_utf8"),
        (b'{"type":"send","x":"' + b"y" * MIB + b'"}', "oversized"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_invalid_request_is_dead_lettered(engine: Running, raw: bytes, code: str) -> None:
    """It also gets a reply if its id can be read."""
    await engine.ask(raw, {"type": "forget", "id": "next", "payload": {"agent_id": "a"}})
    assert (await engine.replied("next"))["error"]["code"] == "unknown_agent"
    (dead_letter,) = await engine.dead_letters()
    assert (dead_letter["code"].decode(), dead_letter["source"]) == (code, b"request_queue")
    assert dead_letter["raw"] == raw[: 4096 if code == "oversized" else None]
    assert [fact["by"] for fact in await engine.audit("dead_letter_added")] == ["operator"]
    if b'"r1"' in raw:
        assert (await engine.replied("r1"))["error"]["code"] == code


async def test_oversized_list_is_bounded(server: EmbeddedServer, prefix: str) -> None:
    """It keeps the newest messages. The dead letters of the others still have their digests."""
    large = [bytes([48 + number]) * 3000 for number in range(6)]
    async with running_engine(
        server,
        prefix,
        protocol__max_message_bytes=2000,
        retention__oversized_messages=2,
        response_consumer__batch_bytes=10_000,
    ) as engine:
        await engine.say(*large)
        await eventually(engine.is_drained)
        assert await engine.call("LRANGE", engine.keys.oversized, 0, -1) == [large[5], large[4]]
        assert [dead_letter["digest"].decode() for dead_letter in await engine.dead_letters()] == [
            message_digest(raw) for raw in large
        ]


async def test_message_of_exactly_the_limit_is_applied(engine: Running) -> None:
    """One byte more is oversized."""
    frame = b'{"type":"state_transition","agent_id":"a","payload":{"target":"%b"},"x":"%b"}'
    fits = frame % (b"fits", b"y" * (MIB - len(frame % (b"fits", b""))))
    large = frame % (b"large", b"y" * (MIB + 1 - len(frame % (b"large", b""))))
    assert (len(fits), len(large)) == (MIB, MIB + 1)
    await engine.say(fits, large)
    await eventually(engine.is_drained)
    assert (await engine.state("a"), [code for code, _ in await engine.dead_lettered()]) == ("fits", ["oversized"])


async def test_valid_and_invalid_messages_in_one_batch_keep_their_order(engine: Running) -> None:
    """Valid ones are applied and invalid ones dead-lettered, each in the order in which they were pushed."""
    messages: list[bytes | dict[str, Any]] = []
    for number in range(200):
        messages += [
            {"type": "state_transition", "agent_id": "a", "payload": {"target": f"s{number}"}},
            b"bad %d" % number,
            message(type="ack", command_id=f"c{number}"),
        ]
    await engine.say(*messages)
    await eventually(engine.is_drained)
    assert [fact["new_state"] for fact in await engine.audit("state_changed")] == [f"s{n}" for n in range(200)]
    assert [code for code, _ in await engine.dead_lettered()] == ["invalid_json", "unknown_command"] * 200


async def test_next_leader_loads_agents_with_deeply_nested_contexts(server: EmbeddedServer, prefix: str) -> None:
    """The stack of a load is deeper than that of a decision, so what one can decode may be too deep for the other."""
    agents = {f"a{levels}": nested(levels) for levels in range(440, 1000, 5)} | {
        f"b{levels}": nested(levels) for levels in range(950, 1000)
    }
    template = '{"type":"state_transition","agent_id":"%s","id":"m","payload":{"target":"deep","context":{"x":%s}}}'
    async with running_engine(server, prefix) as engine:
        await engine.say(*((template % (agent_id, levels.decode())).encode() for agent_id, levels in agents.items()))
        await eventually(engine.is_drained)
        before = {agent_id: agent.state for agent_id, agent in engine.engine.writer.fleet.agents.items()}
        assert before["a440"] == "deep"
    async with running_engine(server, prefix) as engine:
        fleet = engine.engine.writer.fleet
        assert {agent_id: agent.state for agent_id, agent in fleet.agents.items()} == before
        assert all(fleet.has_seen(agent_id, "m") for agent_id in before)
