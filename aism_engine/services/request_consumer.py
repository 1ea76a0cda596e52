"""Accepts or refuses what operators request. The rules are in `domain/requests.py`."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from aism_engine.domain.commands.delivery import command_id_of
from aism_engine.domain.commands.selector import Selector
from aism_engine.domain.dead_letters import dead_letter_request
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import decode_requests
from aism_engine.domain.requests import decide_request
from aism_engine.services.base import ServiceContext
from aism_engine.services.queue_consumer import QueueHandler

_CATCH_UP_S: Final = 1.0
"""Longest wait for the response consumer when a request names an unknown agent, or its selector matches no agent."""


async def _look_up(context: ServiceContext, fleet: Fleet, messages: Sequence[m.Request]) -> Lookups:
    store, asked_at = context.store, context.clock.monotonic()
    agent_ids = {agent_id for message in messages if (agent_id := getattr(message.payload, "agent_id", None))}
    snapshots = await store.snapshots(agent_ids.difference(fleet.agents))
    if not all(snapshot.exists for snapshot in snapshots.values()) or any(
        _selects_nobody(fleet, message) for message in messages
    ):
        with suppress(TimeoutError):  # the agent may have registered in a response that is not applied yet
            async with asyncio.timeout(_CATCH_UP_S):
                await context.watermark.wait_until(asked_at)
    replayed = {message.payload.dead_letter_id for message in messages if isinstance(message, m.Replay)}
    dead_letters = await store.dead_letters(replayed)
    command_ids: set[str | None] = {message.id for message in messages if isinstance(message, m.Send)}
    command_ids |= {message.payload.command_id for message in messages if isinstance(message, m.Cancel)}
    command_ids |= {command_id_of(each.raw) for each in dead_letters.values() if each.source == "commands"}
    senders = {each.agent_id for each in dead_letters.values() if each.agent_id is not None}
    return Lookups(
        snapshots,
        await store.commands({each for each in command_ids if each is not None}.difference(fleet.commands)),
        request_replies=await store.saved_replies([message.id for message in messages]),
        dead_letters=dead_letters,
        measurements=await store.measurements(senders & fleet.unloaded_measurements),
    )


def _selects_nobody(fleet: Fleet, request: m.Request) -> bool:
    """Return whether the request has a valid selector that matches no known agent."""
    text: str | None = getattr(request.payload, "select", None)
    if text is None:
        return False
    with suppress(ValueError):
        selector = Selector.parse(text)
        return not any(selector.matches(agent) for agent in fleet.agents.values())
    return False


REQUEST_HANDLER: Final = QueueHandler[m.Request](
    name="request_consumer",
    source="request_queue",
    decode=lambda _policy, raws: decode_requests(raws),
    look_up=_look_up,
    decide=decide_request,
    dead_letter=dead_letter_request,
)
