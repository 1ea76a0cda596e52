"""The laws of messages between agents, on a real server: what waits outlives its engine, and is bounded."""

import json
from functools import partial
from typing import Any

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine


async def tell(engine: Running, message_id: str, content: object, **fields: Any) -> None:  # noqa: ANN401
    payload = {"to": "b", "content": content, **fields}
    await engine.say({"type": "message", "agent_id": "a", "id": message_id, "reply": True, "payload": payload})


async def go(engine: Running, *states: str) -> None:
    await engine.say(*({"type": "state_transition", "agent_id": "b", "payload": {"target": state}} for state in states))


async def answer(engine: Running, message_id: str) -> dict[str, Any]:
    """Wait for what the sender is told."""
    _, body = await engine.call("BRPOP", engine.keys.agent_reply("a", message_id), 5)
    found: dict[str, Any] = json.loads(body)
    return found


async def read(engine: Running) -> Any:  # noqa: ANN401
    """Take the oldest message out of the inbox, as its agent does."""
    popped = await engine.call("BRPOP", engine.keys.inbox("b"), 5)
    return json.loads(popped[1])["payload"]["content"]


async def test_what_waits_outlives_its_engine_and_comes_in_order(server: EmbeddedServer, prefix: str) -> None:
    """Sent to one who works, under two engines; all of it is there when the state has changed, and not before."""
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "b", "payload": {"type": "scribe"}})
        await go(engine, "inbox", "deep_work")
        for number in (1, 2):
            await tell(engine, f"m{number}", number)
            assert (await answer(engine, f"m{number}"))["ok"] is True
    async with running_engine(server, prefix) as engine:
        await tell(engine, "m3", 3, thread_id="t-1")
        await answer(engine, "m3")
        assert await engine.call("LLEN", engine.keys.inbox("b")) == 0
        await go(engine, "inbox")
        await eventually(partial(engine.audit, "messages_released"))
        await tell(engine, "m4", 4)
        assert [await read(engine) for _ in range(4)] == [1, 2, 3, 4]
        assert (await engine.record("b"))["mail_waiting"] == ""
        assert await engine.call("EXISTS", engine.keys.mail("b")) == 0


async def test_a_full_inbox_refuses_and_loses_nothing(server: EmbeddedServer, prefix: str) -> None:
    """Its sender is told; what was there stays, and there is room again once something is read."""
    async with running_engine(server, prefix, mail__max_unread=2) as engine:
        await engine.say({"type": "register", "agent_id": "b", "payload": {"type": "scribe"}})
        for number in (1, 2, 3):
            await tell(engine, f"m{number}", number)
        refusal = await answer(engine, "m3")
        assert (refusal["ok"], refusal["error"]["code"], refusal["error"]["details"]) == (
            False,
            "inbox_full",
            {"unread": 2},
        )
        assert await read(engine) == 1
        await tell(engine, "m4", 4)
        assert (await answer(engine, "m4"))["ok"] is True
        assert [await read(engine), await read(engine)] == [2, 4]
        assert await engine.dead_letters() == []


async def test_two_that_answer_each_other_for_ever_come_to_an_end(server: EmbeddedServer, prefix: str) -> None:
    """In one thread, as fast as they can: at the last hop the engine refuses the answer."""
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
