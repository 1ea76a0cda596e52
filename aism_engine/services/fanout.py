"""The errands: what a request to many has still to do, one target after the other."""

from collections.abc import Sequence

import msgspec

from aism_engine.domain.commands.accept import child_id
from aism_engine.domain.commands.fanout import FanoutTarget, decide_fanout_target, refuse_target
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request
from aism_engine.services.base import ServiceContext
from aism_engine.services.queue_consumer import QueueConsumer, QueueLimits
from aism_engine.services.wakeup import Wakeup

_ERRANDS = msgspec.json.Decoder(FanoutTarget)


class Fanout(QueueConsumer[FanoutTarget]):
    """Does what was accepted for many: what is done leaves the queue in the same commit, so a crash leaves no hole and
    no double.
    """

    name = "fanout"

    def __init__(self, context: ServiceContext, hint: Wakeup, limits: QueueLimits) -> None:
        super().__init__(context, hint, "fanout", limits, _read)
        self._requests: dict[str, m.Request | None] = {}

    async def look_up(self, fleet: Fleet, messages: Sequence[FanoutTarget]) -> Lookups:
        groups = {target.group_id for target in messages}
        self._requests = {
            group_id: self._requests.get(group_id) or await self._request(group_id) for group_id in groups
        }
        named = {child_id(each.group_id, each.agent_id) for each in messages if each.agent_id is not None}
        named |= {each.command_id for each in messages if each.command_id is not None}
        return Lookups(commands=await self._store.commands(named - fleet.commands.keys()))

    async def _request(self, group_id: str) -> m.Request | None:
        raw = await self._store.group_request(group_id)
        try:
            return None if raw is None else decode_request(raw)
        except MalformedError:
            return None

    def decide(self, draft: Draft, message: FanoutTarget, raw: bytes) -> Decision:  # noqa: ARG002
        return decide_fanout_target(draft, self._policy, message, self._requests.get(message.group_id))

    def dead_letter(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        """Give up on one target: a key of its has the wrong type. What is no errand is dropped with its reason."""
        decision = Decision("fanout_target")
        try:
            target = _read(raw)
        except MalformedError:
            DecisionContext(draft, self._policy, decision, "engine").dead_letter(
                error.code, error.reason, raw, source="fanout"
            )
            return decision
        ctx = DecisionContext(draft, self._policy, decision, "operator", target.group_id)
        refuse_target(ctx, target, error.code, error.reason)
        return decision


def _read(raw: bytes) -> FanoutTarget:
    try:
        return _ERRANDS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedError("invalid_message", str(error)) from None
