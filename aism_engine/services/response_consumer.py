"""Handles what agents send."""

from collections.abc import Sequence

from aism_engine.domain.dead_letters import dead_letter_response
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.effects import DeadLetterSource
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_response
from aism_engine.domain.responses import decide_response
from aism_engine.services.base import ServiceContext


class ResponseQueueHandler:
    """Applies responses. The rules are in `domain/responses.py`."""

    name = "response_consumer"
    source: DeadLetterSource = "response_queue"

    def __init__(self, context: ServiceContext) -> None:
        self._context = context

    def decode(self, raw: bytes) -> m.Response | m.Custom:
        return decode_response(raw, self._context.policy.handlers)

    async def look_up(self, fleet: Fleet, messages: Sequence[m.Response | m.Custom]) -> Lookups:
        store = self._context.store
        unknown_agents = {message.agent_id for message in messages if message.agent_id not in fleet.agents}
        ended_commands = {
            message.command_id
            for message in messages
            if message.command_id is not None and message.command_id not in fleet.commands
        }
        recipients = {message.payload.to for message in messages if isinstance(message, m.Message)}
        measuring = {message.agent_id for message in messages if isinstance(message, m.Measurement)}
        return Lookups(
            await store.snapshots(unknown_agents),
            await store.commands(ended_commands),
            unread=await store.unread_counts(recipients),
            measurements=await store.measurements(measuring & fleet.unloaded_measurements),
        )

    def decide(self, draft: Draft, message: m.Response | m.Custom, raw: bytes) -> Decision:
        return decide_response(draft, self._context.policy, message, raw)

    def dead_letter(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        return dead_letter_response(draft, self._context.policy, error, raw)
