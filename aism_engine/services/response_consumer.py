"""The consumer: what agents say, from the tail of the response queue."""

from collections.abc import Sequence

from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_response
from aism_engine.domain.responses import dead_letter_response, decide_response
from aism_engine.services.base import ServiceContext
from aism_engine.services.queue_consumer import QueueConsumer, QueueLimits
from aism_engine.services.wakeup import Wakeup


class ResponseConsumer(QueueConsumer[m.Response | m.Custom]):
    """Applies each response exactly once, or buries it."""

    name = "response_consumer"

    def __init__(self, context: ServiceContext, hint: Wakeup, limits: QueueLimits) -> None:
        super().__init__(context, hint, "response_queue", limits, self._decode_response)

    async def look_up(self, fleet: Fleet, messages: Sequence[m.Response | m.Custom]) -> Lookups:
        strangers = {message.agent_id for message in messages if message.agent_id not in fleet.agents}
        ended = {
            message.command_id
            for message in messages
            if message.command_id is not None and message.command_id not in fleet.commands
        }
        recipients = {message.payload.to for message in messages if isinstance(message, m.Message)}
        measuring = {
            message.agent_id for message in messages if isinstance(message, m.Measurement)
        } & fleet.unloaded_measurements
        return Lookups(
            await self._store.snapshots(strangers),
            await self._store.commands(ended),
            unread=await self._store.unread(recipients),
            measurements=await self._store.measurements(measuring),
        )

    def decide(self, draft: Draft, message: m.Response | m.Custom, raw: bytes) -> Decision:
        return decide_response(draft, self._policy, message, raw)

    def dead_letter(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        return dead_letter_response(draft, self._policy, error, raw)

    def _decode_response(self, raw: bytes) -> m.Response | m.Custom:
        return decode_response(raw, self._policy.handlers)

    def seen(self, at: float, length: int) -> None:
        self._context.watermark.observe(at, length)

    def applied(self, count: int) -> None:
        self._context.watermark.advance(count)
