"""Messages between agents on a real server, across a takeover."""

import json
from functools import partial
from typing import Any

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine


async def send(engine: Running, message_id: str, content: object, **fields: Any) -> None:  # noqa: ANN401
    payload = {"to": "b", "content": content, **fields}
    await engine.say({"type": "message", "agent_id": "a", "id": message_id, "reply": True, "payload": payload})


async def go(engine: Running, *states: str) -> None:
    await engine.say(*({"type": "state_transition", "agent_id": "b", "payload": {"target": state}} for state in states))


async def reply(engine: Running, message_id: str) -> dict[str, Any]:
    """Wait for the reply to the sender."""
    _, body = await engine.call("BRPOP", engine.keys.agent_reply("a", message_id), 300)
    found: dict[str, Any] = json.loads(body)
    return found


async def read(engine: Running) -> Any:  # noqa: ANN401
    """Pop the oldest message from the inbox."""
    popped = await engine.call("BRPOP", engine.keys.inbox("b"), 300)
    return json.loads(popped[1])["payload"]["content"]


async def test_waiting_messages_survive_a_takeover_and_arrive_in_order(server: EmbeddedServer, prefix: str) -> None:
    """They are delivered when the recipient changes its state, and not before."""
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "b", "payload": {"type": "scribe"}})
        await go(engine, "inbox", "deep_work")
        for number in (1, 2):
            await send(engine, f"m{number}", number)
            assert (await reply(engine, f"m{number}"))["ok"] is True
    async with running_engine(server, prefix) as engine:
        await send(engine, "m3", 3, thread_id="t-1")
        await reply(engine, "m3")
        assert await engine.call("LLEN", engine.keys.inbox("b")) == 0
        await go(engine, "inbox")
        await eventually(partial(engine.audit, "messages_released"))
        await send(engine, "m4", 4)
        assert [await read(engine) for _ in range(4)] == [1, 2, 3, 4]
        assert (await engine.record("b"))["mail_waiting"] == 0
        assert await engine.call("EXISTS", engine.keys.mail("b")) == 0


async def test_a_full_inbox_refuses_messages_and_loses_none(server: EmbeddedServer, prefix: str) -> None:
    """There is room again when the agent has read a message."""
    async with running_engine(server, prefix, mail__max_unread=2) as engine:
        await engine.say({"type": "register", "agent_id": "b", "payload": {"type": "scribe"}})
        for number in (1, 2, 3):
            await send(engine, f"m{number}", number)
        refusal = await reply(engine, "m3")
        assert (refusal["ok"], refusal["error"]["code"], refusal["error"]["details"]) == (
            False,
            "inbox_full",
            {"unread": 2},
        )
        assert await read(engine) == 1
        await send(engine, "m4", 4)
        assert (await reply(engine, "m4"))["ok"] is True
        assert [await read(engine), await read(engine)] == [2, 4]
        assert await engine.dead_letters() == []


async def test_max_hops_ends_a_conversation(server: EmbeddedServer, prefix: str) -> None:
    """Two agents reply to each other in one thread; the last reply is refused."""
    async with running_engine(server, prefix, mail__max_hops=20) as engine:
        pair = ["a", "b"]
        await engine.say({"type": "heartbeat", "agent_id": "b"})
        for number in range(21):
            sender, to = pair[number % 2], pair[1 - number % 2]
            payload = {"to": to, "content": number, "thread_id": "t"}
            await engine.say({"type": "message", "agent_id": sender, "id": f"m{number}", "payload": payload})
        await eventually(engine.is_drained)
        (refused,) = await eventually(partial(engine.audit, "message_refused"))
        assert (refused["cause"], refused["code"]) == ("m20", "too_many_hops")
        assert len(await engine.audit("message_delivered")) == 20
