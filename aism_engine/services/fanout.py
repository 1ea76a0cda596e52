"""Applies an accepted request for many agents to each of them. A message of the fan-out queue is one target.

A target leaves the queue in the commit that applies it, so a crash neither skips a target nor applies one twice.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from aism_engine.domain.commands.command import child_id
from aism_engine.domain.commands.fanout import FanoutTarget, decide_fanout_target, refuse_target
from aism_engine.domain.dead_letters import add_dead_letter
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.plain_words import explain
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request
from aism_engine.services.base import ServiceContext
from aism_engine.services.queue_consumer import QueueHandler

_DECODER: Final = msgspec.json.Decoder(FanoutTarget)


async def _look_up(context: ServiceContext, fleet: Fleet, messages: Sequence[FanoutTarget]) -> Lookups:
    store, group_requests = context.store, dict[str, m.Request]()
    for group_id in {target.group_id for target in messages}:
        with suppress(MalformedError):
            if (raw := await store.group_request(group_id)) is not None:
                group_requests[group_id] = decode_request(raw)
    command_ids = {child_id(each.group_id, each.agent_id) for each in messages if each.agent_id is not None}
    command_ids |= {each.command_id for each in messages if each.command_id is not None}
    commands = await store.commands(command_ids.difference(fleet.commands))
    return Lookups(commands=commands, group_requests=group_requests)


def _decode(raw: bytes) -> FanoutTarget | MalformedError:
    try:
        return _DECODER.decode(raw)
    except ValueError as error:
        return MalformedError("invalid_message", explain(error))


def _dead_letter(draft: Draft, policy: Policy, error: MalformedError, raw: bytes) -> Decision:
    """Decide on a message that cannot be applied.

    A message that cannot be decoded is dead-lettered. A target is refused if its decision raised an exception, or if
    its commit failed on a Redis key of the wrong type.
    """
    decision = Decision("fanout_target")
    target = _decode(raw)
    if isinstance(target, MalformedError):
        ctx = DecisionContext(draft, policy, decision, "engine")
        add_dead_letter(ctx, error.code, error.reason, raw, "fanout")
    else:
        ctx = DecisionContext(draft, policy, decision, "operator", target.group_id)
        refuse_target(ctx, target, error.code, error.reason)
    return decision


FANOUT_HANDLER: Final = QueueHandler(
    name="fanout",
    source="fanout",
    decode=lambda _policy, raws: [_decode(raw) for raw in raws],
    look_up=_look_up,
    decide=decide_fanout_target,
    dead_letter=_dead_letter,
)
