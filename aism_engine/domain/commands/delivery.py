"""What leaves the engine, and what has left the list of an agent."""

import re
from typing import Final

import msgspec

from aism_engine.domain import effects as fx
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy

_JSON_ID: Final = re.compile(rb'\A\{"id":"([A-Za-z0-9._-]+)"')
HEAD_BYTES: Final = 192
"""Of a body, where its id stands: it is the first field, of at most 128 characters."""


def command_id_of(head: bytes) -> str | None:
    """Read the id of a command off the head of a body that the engine has written; none where it is no such thing."""
    if found := _JSON_ID.match(head):
        return found[1].decode()
    unpacker = head[1:] if head[:1] and 0x80 <= head[0] < 0x90 else b""  # noqa: PLR2004  a small MessagePack map
    if not unpacker.startswith(b"\xa2id"):
        return None
    try:
        return _first_text(unpacker[3:])
    except (IndexError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _first_text(packed: bytes) -> str:
    """Read the one text that MessagePack has here, of up to 255 bytes."""
    start, size = (2, packed[1]) if packed[0] == 0xD9 else (1, packed[0] & 0x1F)  # noqa: PLR2004
    return packed[start : start + size].decode()


def decide_deliveries(draft: Draft, policy: Policy, agent_id: str, head: bytes, until: int) -> Decision:
    """Note which commands have left an agent's list, from the head of what lies at its tail (empty: nothing does).

    Of the commands that were in the list when it was read, those up to turn `until`, the tail is the oldest: what was
    pushed before it has been taken.
    """
    decision = Decision("delivery", "unchanged")
    agent = draft.agent(agent_id)
    if agent is None:
        return decision
    there = [command for each in agent.queued if (command := draft.command(each)) and command.seq <= until]
    there.sort(key=lambda command: command.seq)  # one that was found again was filed last
    oldest = command_id_of(head) if head else None
    ids = [command.command_id for command in there]
    taken = there if not head else there[: ids.index(oldest)] if oldest in ids else []
    ctx = DecisionContext(draft, policy, decision, "engine")
    for command in taken:
        ctx.advance(command, command.deliver, draft.now, acks=agent.acks)
        ctx.record_command(command)
        draft.note_activity(agent_id)
        decision.outcome = "applied"
    return decision


def decide_dispatch(draft: Draft, policy: Policy, agent_id: str, most: int) -> Decision:
    """Hand out what waits for an agent, in its order, at most so many, as far as its credit goes."""
    decision = Decision("dispatch", "unchanged")
    agent = draft.agent(agent_id)
    ctx = DecisionContext(draft, policy, decision, "engine")
    while agent is not None and agent.waiting and most > 0 and ctx.may_dispatch(agent):
        command = draft.command(agent.waiting[0][2])
        if command is None:
            break
        if command.was_sent:  # never a second copy in the list
            ctx.add(fx.WithdrawCommand(agent_id, command.command_id))
        ctx.advance(command, command.queue, draft.now, draft.next_seq())
        ctx.add(fx.ReleaseCommand(agent_id, command.command_id))
        ctx.record_command(command)
        decision.outcome = "applied"
        most -= 1
    return decision
