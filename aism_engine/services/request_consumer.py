"""The dispatcher: what operators ask for, from the tail of the request queue."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from aism_engine.domain.commands.delivery import command_id_of
from aism_engine.domain.commands.selector import Selector
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request
from aism_engine.domain.requests import dead_letter_request, decide_request
from aism_engine.services.base import ServiceContext
from aism_engine.services.queue_consumer import QueueConsumer, QueueLimits
from aism_engine.services.wakeup import Wakeup

_HEAR_OUT_S: Final = 1.0
_LOOK_EVERY_S: Final = 0.01


class RequestConsumer(QueueConsumer[m.Request]):
    """Accepts requests, or says why not. Accepted means: the record is committed, the command is on its way."""

    name = "request_consumer"

    def __init__(self, context: ServiceContext, hint: Wakeup, fanout: Wakeup, limits: QueueLimits) -> None:
        super().__init__(context, hint, "request_queue", limits, decode_request)
        self._fanout = fanout

    async def look_up(self, fleet: Fleet, messages: Sequence[m.Request]) -> Lookups:
        asked_at = self._clock.monotonic()
        named = {agent_id for message in messages if (agent_id := getattr(message.payload, "agent_id", None))}
        snapshots = await self._store.snapshots(named - fleet.agents.keys())
        if not all(seen.exists for seen in snapshots.values()) or any(_fits_nobody(fleet, each) for each in messages):
            await self._hear_out(asked_at)
        commands = {message.id for message in messages if isinstance(message, m.Send)}
        commands |= {
            message.payload.command_id
            for message in messages
            if isinstance(message, m.Cancel) and message.payload.command_id is not None
        }
        dead_letters = await self._store.dead_letters(
            {message.payload.dead_letter_id for message in messages if isinstance(message, m.Replay)}
        )
        given_up_on = (
            command_id_of(dead_letter.raw) for dead_letter in dead_letters.values() if dead_letter.source == "commands"
        )
        commands |= {command_id for command_id in given_up_on if command_id is not None}
        saying = {dead_letter.agent_id for dead_letter in dead_letters.values() if dead_letter.agent_id is not None}
        return Lookups(
            snapshots,
            await self._store.commands(commands - fleet.commands.keys()),
            request_replies=await self._store.answers([message.id for message in messages]),
            dead_letters=dead_letters,
            measurements=await self._store.measurements(saying & fleet.unloaded_measurements),
        )

    async def _hear_out(self, asked_at: float) -> None:
        """Let the consumer read what lay in its queue when we were asked: a stranger may have registered there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_OUT_S):
                while self._context.watermark.applied_until < asked_at:  # noqa: ASYNC110  it is told at each look
                    await asyncio.sleep(_LOOK_EVERY_S)

    def applied(self, count: int) -> None:  # noqa: ARG002
        self._fanout.set()  # among them there may have been a request to many

    def decide(self, draft: Draft, message: m.Request, raw: bytes) -> Decision:
        return decide_request(draft, self._policy, message, raw)

    def dead_letter(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        return dead_letter_request(draft, self._policy, error, raw)


def _fits_nobody(fleet: Fleet, request: m.Request) -> bool:
    """Tell whether a selector means nobody that we know of yet; one that cannot be read is not to be waited for."""
    text: str | None = getattr(request.payload, "select", None)
    if text is None:
        return False
    with suppress(ValueError):
        selector = Selector.parse(text)
        return not any(selector.matches(agent) for agent in fleet.agents.values())
    return False
