"""`Engine(handlers=...)`: response types that an operator adds to the protocol."""

import json
from typing import Any

from structlog.testing import capture_logs

from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import DecisionContext, ErrorReply
from aism_engine.domain.protocol.messages import Custom
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine


def rate(ctx: DecisionContext, agent: AgentRecord, response: Custom, _raw: bytes) -> ErrorReply | None:
    """Record a rating from 1 to 5, refuse any other number, and raise for what is not a number."""
    if not 1 <= response.payload["stars"] <= 5:
        return ErrorReply("rating_refused", "out_of_range", "stars: expected 1 to 5")
    ctx.record("rated", agent_id=agent.agent_id, details=response.payload)
    return None


async def _reply(engine: Running, message_id: str) -> Any:  # noqa: ANN401
    found = await engine.call("BRPOP", engine.keys.agent_reply("a", message_id), 300)
    return json.loads(found[1])


async def test_handler_decides_on_responses_of_its_type(server: EmbeddedServer, prefix: str) -> None:
    """A duplicate is not applied; an exception of the handler dead-letters the response."""
    with capture_logs():
        async with running_engine(server, prefix, {"rating": rate}) as engine:
            message = {"type": "rating", "agent_id": "a", "reply": True}
            await engine.say(*({**message, "id": f"m{stars}", "payload": {"stars": stars}} for stars in (4, 4, 9)))
            raising = json.dumps({**message, "id": "m0", "payload": {"stars": "many"}}).encode()
            await engine.say(raising)
            assert (await _reply(engine, "m4"))["ok"]
            assert (await _reply(engine, "m9"))["error"]["code"] == "out_of_range"
            await eventually(engine.dead_letters)
            assert await engine.dead_lettered() == [("internal_error", raising)]
            assert [fact["details"] for fact in await engine.audit("rated")] == [{"stars": 4}]


async def test_response_type_without_a_handler_is_dead_lettered(server: EmbeddedServer, prefix: str) -> None:
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "rating", "agent_id": "a", "payload": {"stars": 4}})
        await eventually(engine.dead_letters)
        assert [code for code, _ in await engine.dead_lettered()] == ["unknown_type"]
