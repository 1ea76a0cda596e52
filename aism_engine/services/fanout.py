"""Applies an accepted request for many agents to each of them."""

from collections.abc import Sequence
from typing import Final

import msgspec

from aism_engine.domain.commands.accept import child_id
from aism_engine.domain.commands.fanout import FanoutTarget, decide_fanout_target, refuse_target
from aism_engine.domain.dead_letters import add_dead_letter
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.effects import DeadLetterSource
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request
from aism_engine.services.base import ServiceContext

_DECODER: Final = msgspec.json.Decoder(FanoutTarget)


class FanoutQueueHandler:
    """Applies a request to one target per message.

    A target leaves the queue in the commit that applies it, so a crash neither skips a target nor applies one twice.
    """

    name = "fanout"
    source: DeadLetterSource = "fanout"

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._requests: dict[str, m.Request | None] = {}
        """The requests of the groups in the current batch."""

    def decode(self, raw: bytes) -> FanoutTarget:
        try:
            return _DECODER.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedError("invalid_message", str(error)) from None

    async def look_up(self, fleet: Fleet, messages: Sequence[FanoutTarget]) -> Lookups:
        group_ids = {target.group_id for target in messages}
        self._requests = {
            group_id: self._requests.get(group_id) or await self._load_request(group_id) for group_id in group_ids
        }
        command_ids = {child_id(each.group_id, each.agent_id) for each in messages if each.agent_id is not None}
        command_ids |= {each.command_id for each in messages if each.command_id is not None}
        return Lookups(commands=await self._context.store.commands(command_ids - fleet.commands.keys()))

    def decide(self, draft: Draft, message: FanoutTarget, raw: bytes) -> Decision:  # noqa: ARG002  of the protocol
        return decide_fanout_target(draft, self._context.policy, message, self._requests.get(message.group_id))

    def dead_letter(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        """Refuse a target whose keys have the wrong type; dead-letter what is not a target."""
        decision = Decision("fanout_target")
        try:
            target = self.decode(raw)
        except MalformedError:
            ctx = DecisionContext(draft, self._context.policy, decision, "engine")
            add_dead_letter(ctx, error.code, error.reason, raw, self.source)
        else:
            ctx = DecisionContext(draft, self._context.policy, decision, "operator", target.group_id)
            refuse_target(ctx, target, error.code, error.reason)
        return decision

    async def _load_request(self, group_id: str) -> m.Request | None:
        raw = await self._context.store.group_request(group_id)
        try:
            return None if raw is None else decode_request(raw)
        except MalformedError:
            return None
