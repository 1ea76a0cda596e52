"""What becomes of a message from one agent to another: delivered, kept until its recipient may have it, or refused.

What is refused is no dead letter: its sender is told, where it asked for a reply, and a loop would wash all others out
of them. What was accepted is never dropped: the bound counts what lies in the inbox together with what waits for it, so
that what waits always fits.
"""

from typing import Any

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.mail.limits import TokenBucket
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest


def send(ctx: DecisionContext, agent: AgentRecord, response: m.Message, raw: bytes) -> ErrorReply | None:
    """Deliver a message to its recipient, hold it until the recipient accepts messages, or refuse it."""
    payload, draft = response.payload, ctx.draft
    recipient = draft.agent(payload.to)
    if recipient is None:
        reason = f"there is no agent {payload.to} to send a message to"
        ctx.dead_letter("unknown_recipient", reason, raw, source="response_queue", agent_id=agent.agent_id)
        return ErrorReply("message_refused", "unknown_recipient", reason)
    message_id = response.id or message_digest(raw).partition(":")[0]
    accepts = ctx.machine(recipient).state(recipient.state).accepts_messages
    error = _why_not(ctx, agent, recipient, payload, accepts=bool(accepts))
    details: dict[str, Any] = {"to": payload.to, "thread_id": payload.thread_id}
    if error is not None:
        ctx.decision.outcome, ctx.decision.code = "refused", error.code
        ctx.record("message_refused", agent_id=agent.agent_id, code=error.code, reason=error.message, details=details)
        ctx.publish_error(error.code, error.message, agent_id=agent.agent_id, details={**details, **error.details})
        return error
    _count(ctx, agent, payload)
    content: dict[str, Any] = {"from": agent.agent_id, "content": payload.content}
    if payload.thread_id is not None:
        content["thread_id"] = payload.thread_id
    body = encode(m.CommandMessage(id=message_id, type="message", payload=content, timestamp=draft.at), recipient.codec)
    if accepts is True:
        release_mail(ctx, recipient)  # its machine was read anew since, and lets it have what waited
        ctx.add(fx.DeliverMail(payload.to, body))
        ctx.record("message_delivered", agent_id=agent.agent_id, details=details)
    else:
        recipient.mail_waiting += 1
        ctx.add(fx.HoldMail(payload.to, body))
        ctx.add(fx.SaveAgent(payload.to, {"mail_waiting": str(recipient.mail_waiting)}))
        ctx.record("message_waiting", agent_id=agent.agent_id, details=details)
    return None


def _why_not(
    ctx: DecisionContext, agent: AgentRecord, recipient: AgentRecord, payload: m.MessagePayload, *, accepts: bool
) -> ErrorReply | None:
    policy, draft, to = ctx.policy, ctx.draft, payload.to
    if not accepts:
        message = f"{to} is in {recipient.state}, where it accepts no messages"
        return ErrorReply("message_refused", "not_accepting", message, {"state": recipient.state})
    if payload.thread_id is not None and draft.hops(payload.thread_id, agent.agent_id) >= policy.mail.max_hops:
        message = f"thread {payload.thread_id} has come as far as mail.max_hops = {policy.mail.max_hops} allows"
        return ErrorReply("message_refused", "too_many_hops", message, {"max_hops": policy.mail.max_hops})
    bucket = _bucket(ctx, agent, to)
    if not bucket.has_one:
        wait_s = round((1 - bucket.left) / policy.mail.pair_per_second, 3)
        message = f"{agent.agent_id} sends more to {to} than mail.pair_per_second allows; again in {wait_s:g} s"
        return ErrorReply("message_refused", "rate_limited", message, {"retry_after": wait_s})
    if draft.unread_mail(to) >= policy.mail.max_unread:
        message = f"{to} has mail.max_unread = {policy.mail.max_unread} messages that it has not read"
        return ErrorReply("message_refused", "inbox_full", message, {"unread": draft.unread_mail(to)})
    return None


def _bucket(ctx: DecisionContext, agent: AgentRecord, to: str) -> TokenBucket:
    policy, draft = ctx.policy, ctx.draft
    known = draft.token_bucket(agent.agent_id, to)
    if known is None:
        return TokenBucket(policy.mail.pair_burst, draft.now)
    return known.refilled(draft.now, policy.mail.pair_per_second, policy.mail.pair_burst)


def _count(ctx: DecisionContext, agent: AgentRecord, payload: m.MessagePayload) -> None:
    draft, to, thread_id = ctx.draft, payload.to, payload.thread_id
    draft.set_token_bucket(agent.agent_id, to, _bucket(ctx, agent, to).taken())
    draft.add_mail(to)
    if thread_id is not None:
        hops = draft.hops(thread_id, agent.agent_id) + 1
        draft.set_hops(thread_id, to, max(hops, draft.hops(thread_id, to)))


def release_mail(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Deliver the messages that are held for an agent, if its state accepts messages now."""
    if not agent.mail_waiting or ctx.machine(agent).state(agent.state).accepts_messages is not True:
        return
    count, agent.mail_waiting = agent.mail_waiting, 0
    ctx.add(fx.ReleaseMail(agent.agent_id))
    ctx.add(fx.SaveAgent(agent.agent_id, {"mail_waiting": ""}))
    ctx.record("messages_released", agent_id=agent.agent_id, details={"count": count})
