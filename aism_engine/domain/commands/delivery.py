"""Dispatch of waiting commands to the lists of their agents, and detection of what has left these lists."""

import re
from typing import Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.commands.lifecycle import advance
from aism_engine.domain.decision import DecisionContext, agent_decision

_HEAD: Final = re.compile(
    rb"""(?: \{"id":"                                     # JSON
          | [\x80-\x8f] \xa2id (?: [\xa0-\xbf] | \xd9. )  # MessagePack: a small map, the key, the head of a string
          ) (?P<id> [A-Za-z0-9._-]+ ) (?= ["\xa0-\xbf] )    # up to the end of the string, or the head of the next key
    """,
    re.VERBOSE | re.DOTALL,
)


def command_id_of(head: bytes) -> str | None:
    """Read the command id from the head of a body that the engine has written. Return None for anything else."""
    found = _HEAD.match(head)
    return None if found is None else found["id"].decode()


def may_dispatch(ctx: DecisionContext, agent: AgentRecord) -> bool:
    """Tell whether one more command may be pushed to the agent's list now: it has credit, and no pause holds it."""
    in_flight = ctx.draft.commands_of(agent.agent_id).in_flight(acks=agent.acks)
    return in_flight < ctx.policy.commands.max_in_flight and not ctx.draft.is_paused(agent)


@agent_decision("dispatch")
def decide_dispatch(ctx: DecisionContext, agent: AgentRecord, limit: int) -> None:
    """Push up to `limit` waiting commands to an agent's list, by priority and order, as far as its credit allows."""
    draft = ctx.draft
    while limit > 0 and (waiting := draft.commands_of(agent.agent_id).waiting) and may_dispatch(ctx, agent):
        command = draft.command(waiting[0][2])
        if command is None:
            break
        if command.was_sent:  # the list must never hold two copies
            ctx.add(fx.WithdrawCommand(agent.agent_id, command.command_id))
        advance(ctx, command, command.queue, draft.now, draft.next_seq())
        ctx.add(fx.ReleaseCommand(agent.agent_id, command.command_id))
        limit -= 1


@agent_decision("delivery")
def decide_deliveries(ctx: DecisionContext, agent: AgentRecord, head: bytes, last_seq: int) -> None:
    """Mark the commands that have left an agent's list as delivered.

    `head` is the head of the oldest element of the list, empty if the list is empty. All commands that were pushed
    before this element have been popped. A command after `last_seq` was pushed after the list was read: the list does
    not show whether it has left.
    """
    draft = ctx.draft
    indexed = draft.commands_of(agent.agent_id).queued
    queued = [command for each in indexed if (command := draft.command(each)) and command.seq <= last_seq]
    queued.sort(key=lambda command: command.seq)  # an orphan that was added again is indexed last
    oldest = command_id_of(head) if head else None
    ids = [command.command_id for command in queued]
    popped = queued if not head else queued[: ids.index(oldest)] if oldest in ids else []
    for command in popped:
        advance(ctx, command, command.deliver, draft.now, acks=agent.acks)
        draft.note_activity(agent.agent_id)
