"""Applies what agents send. The rules are in `domain/responses.py`."""

from collections.abc import Sequence
from typing import Final

from aism_engine.domain.dead_letters import dead_letter_response
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import AnyResponse, decode_responses
from aism_engine.domain.responses import decide_response
from aism_engine.services.base import ServiceContext
from aism_engine.services.queue_consumer import QueueHandler


async def _look_up(context: ServiceContext, fleet: Fleet, messages: Sequence[AnyResponse]) -> Lookups:
    store = context.store
    agent_ids = {message.agent_id for message in messages}
    command_ids = {message.command_id for message in messages if message.command_id is not None}
    recipients = {message.payload.to for message in messages if isinstance(message, m.Message)}
    measuring = {message.agent_id for message in messages if isinstance(message, m.Measurement)}
    applied_until = store.now - (context.clock.monotonic() - context.watermark.applied_until)
    return Lookups(
        await store.snapshots(agent_ids.difference(fleet.agents)),
        await store.commands(command_ids.difference(fleet.commands)),
        unread=await store.unread_counts(recipients),
        measurements=await store.measurements(measuring & fleet.unloaded_measurements),
        applied_until=applied_until if applied_until > fleet.loaded_at else 0.0,
    )


RESPONSE_HANDLER: Final = QueueHandler[AnyResponse](
    name="response_consumer",
    source="response_queue",
    decode=lambda policy, raws: decode_responses(raws, policy.handlers),
    look_up=_look_up,
    decide=decide_response,
    dead_letter=dead_letter_response,
)
