"""Messages from one agent to another: delivered, kept waiting until the recipient accepts them, or refused.

Only a message to an unknown recipient is dead-lettered. Any other refused message is not: the reply tells the sender,
and a loop of messages would push all other dead letters out. An accepted message is never dropped: `mail.max_unread`
counts the inbox and the waiting messages together, so waiting messages always fit into the inbox.

Two limits end or slow down loops of messages. Both are counted in memory and start afresh with a new leader: a takeover
allows a loop some more messages, never an unlimited number.

- Hops end a loop within a thread. The hop count of a message is one more than the highest hop count that its sender
  received in the thread. An agent that writes to many others at once adds one hop only.
- The rate of a pair, a token bucket for each sender and recipient, slows a loop outside of threads, or one that begins
  a new thread each time.
"""

from math import ceil
from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.dead_letters import add_dead_letter
from aism_engine.domain.decision import DecisionContext, ErrorReply
from aism_engine.domain.fleet import TokenBucket
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest
from aism_engine.durations import format_duration

_ROUNDING: Final = 1e-6
"""Tolerance for float rounding, so that a sender who waits `retry_after` gets a token."""


def send(ctx: DecisionContext, agent: AgentRecord, response: m.Message, raw: bytes) -> ErrorReply | None:
    """Deliver a message to its recipient, keep it waiting, or refuse it."""
    payload, draft = response.payload, ctx.draft
    recipient = draft.agent(payload.to)
    if recipient is None:
        reason = f"there is no agent {payload.to} to send a message to"
        add_dead_letter(ctx, "unknown_recipient", reason, raw, agent_id=agent.agent_id)
        return ErrorReply("message_refused", "unknown_recipient", reason)
    message_id = response.id or message_digest(raw).partition(":")[0]
    accepts = ctx.machine(recipient).state(recipient.state).accepts_messages
    tokens = _tokens(ctx, agent.agent_id, payload.to)
    error = _check(ctx, agent, recipient, payload, tokens)
    details: dict[str, Any] = {"to": payload.to, "thread_id": payload.thread_id}
    if error is not None:
        ctx.decision.outcome, ctx.decision.code = "refused", error.code
        ctx.record("message_refused", agent_id=agent.agent_id, code=error.code, reason=error.message, details=details)
        ctx.publish_error(error.code, error.message, agent_id=agent.agent_id, details={**details, **error.details})
        return error
    draft.token_buckets[agent.agent_id, payload.to] = TokenBucket(tokens - 1, draft.now)
    draft.new_mail[payload.to] += 1
    content: dict[str, Any] = {"from": agent.agent_id, "content": payload.content}
    if payload.thread_id is not None:
        hops = (draft.hops.find((payload.thread_id, agent.agent_id)) or 0) + 1
        received = (payload.thread_id, payload.to)
        draft.hops[received] = max(hops, draft.hops.find(received) or 0)
        content["thread_id"] = payload.thread_id
    body = encode(m.CommandMessage(id=message_id, type="message", payload=content, timestamp=draft.at), recipient.codec)
    if accepts is True:
        release_mail(ctx, recipient)  # a reload of the machines may have left messages waiting
        ctx.add(fx.DeliverMail(payload.to, body))
        ctx.record("message_delivered", agent_id=agent.agent_id, details=details)
    else:
        recipient.mail_waiting += 1
        ctx.add(fx.DeferMail(payload.to, body))
        ctx.add(fx.SaveAgent(recipient))
        ctx.record("message_waiting", agent_id=agent.agent_id, details=details)
    return None


def release_mail(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Move an agent's waiting messages to its inbox, if its state accepts messages."""
    if not agent.mail_waiting or ctx.machine(agent).state(agent.state).accepts_messages is not True:
        return
    count, agent.mail_waiting = agent.mail_waiting, 0
    ctx.add(fx.ReleaseMail(agent.agent_id))
    ctx.add(fx.SaveAgent(agent))
    ctx.record("messages_released", agent_id=agent.agent_id, details={"count": count})


def _tokens(ctx: DecisionContext, sender: str, recipient: str) -> float:
    """Return how many tokens the bucket of a pair holds now."""
    limits, now = ctx.policy.mail, ctx.draft.now
    known = ctx.draft.token_buckets.find((sender, recipient))
    if known is None:
        return limits.pair_burst
    return min(limits.pair_burst, known.tokens + max(0.0, now - known.at) * limits.pair_per_second)


def _check(
    ctx: DecisionContext, agent: AgentRecord, recipient: AgentRecord, payload: m.MessagePayload, tokens: float
) -> ErrorReply | None:
    """Return why a message is refused; None if it is accepted."""
    limits, draft, to, thread_id = ctx.policy.mail, ctx.draft, payload.to, payload.thread_id
    if ctx.machine(recipient).state(recipient.state).accepts_messages is False:
        message = f"{to} is in {recipient.state}, which accepts no messages"
        return ErrorReply("message_refused", "not_accepting", message, {"state": recipient.state})
    if thread_id is not None and (draft.hops.find((thread_id, agent.agent_id)) or 0) >= limits.max_hops:
        message = f"thread {thread_id} has reached mail.max_hops = {limits.max_hops}"
        return ErrorReply("message_refused", "too_many_hops", message, {"max_hops": limits.max_hops})
    if tokens < 1 - _ROUNDING:
        # Rounded up to a millisecond, so that a retry is never too early. Half of the tolerance is subtracted, so that
        # float noise does not add a further millisecond.
        wait_s = ceil((1 - _ROUNDING / 2 - tokens) / limits.pair_per_second * 1000) / 1000
        wait = format_duration(wait_s)
        message = f"{agent.agent_id} sends to {to} faster than mail.pair_per_second allows; retry in {wait}"
        return ErrorReply("message_refused", "rate_limited", message, {"retry_after": wait_s})
    if draft.unread_mail(to) >= limits.max_unread:
        message = f"the inbox of {to} has reached mail.max_unread = {limits.max_unread}"
        return ErrorReply("message_refused", "inbox_full", message, {"unread": draft.unread_mail(to)})
    return None
