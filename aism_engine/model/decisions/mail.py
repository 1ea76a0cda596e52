"""What becomes of a message from one agent to another: delivered, kept until its recipient may have it, or refused.

What is refused is no dead letter: its sender is told, where it asked for a reply, and a loop would wash all others out
of them. What was accepted is never dropped: the bound counts what lies in the inbox together with what waits for it, so
that what waits always fits.
"""

from typing import Any

from aism_engine.model import effects as fx
from aism_engine.model import messages as m
from aism_engine.model.agent import Agent
from aism_engine.model.codec import encode
from aism_engine.model.decisions import standing
from aism_engine.model.decisions.common import Scope
from aism_engine.model.decisions.faults import Fault
from aism_engine.model.mail import Bucket


def send(scope: Scope, agent: Agent, recipient: Agent, response: m.Message, message_id: str) -> Fault | None:
    """Deliver a message, or keep it, in the order of all that are for this recipient; or say why not."""
    payload, draft = response.payload, scope.draft
    accepts = scope.machine(recipient).state(recipient.state).accepts_messages
    fault = _why_not(scope, agent, recipient, payload, accepts=bool(accepts))
    details: dict[str, Any] = {"to": payload.to, "thread_id": payload.thread_id}
    if fault is not None:
        scope.decision.outcome, scope.decision.code = "refused", fault.code
        scope.record("message_refused", agent_id=agent.agent_id, code=fault.code, reason=fault.message, details=details)
        scope.trouble(fault.code, fault.message, agent_id=agent.agent_id, details={**details, **fault.details})
        return fault
    _count(scope, agent, payload)
    content: dict[str, Any] = {"from": agent.agent_id, "content": payload.content}
    if payload.thread_id is not None:
        content["thread_id"] = payload.thread_id
    body = encode(m.Command(id=message_id, type="message", payload=content, timestamp=draft.at), recipient.codec)
    if accepts is True:
        standing.release_mail(scope, recipient)  # its machine was read anew since, and lets it have what waited
        scope.add(fx.Deliver(payload.to, body))
        scope.record("message_delivered", agent_id=agent.agent_id, details=details)
    else:
        recipient.mail_waiting += 1
        scope.add(fx.KeepMail(payload.to, body))
        scope.add(fx.SaveAgent(payload.to, {"mail_waiting": str(recipient.mail_waiting)}))
        scope.record("message_waiting", agent_id=agent.agent_id, details=details)
    return None


def _why_not(scope: Scope, agent: Agent, recipient: Agent, payload: m.MessagePayload, *, accepts: bool) -> Fault | None:
    rules, draft, to = scope.rules, scope.draft, payload.to
    if not accepts:
        message = f"{to} is in {recipient.state}, where it accepts no messages"
        return Fault("message_refused", "not_accepting", message, {"state": recipient.state})
    if payload.thread_id is not None and draft.hops(payload.thread_id, agent.agent_id) >= rules.max_hops:
        message = f"thread {payload.thread_id} has come as far as messages.max_hops = {rules.max_hops} allows"
        return Fault("message_refused", "too_many_hops", message, {"max_hops": rules.max_hops})
    bucket = _bucket(scope, agent, to)
    if not bucket.has_one:
        wait_s = round((1 - bucket.left) / rules.pair_per_s, 3)
        message = f"{agent.agent_id} sends more to {to} than messages.pair_per_second allows; again in {wait_s:g} s"
        return Fault("message_refused", "rate_limited", message, {"retry_after": wait_s})
    if draft.mail_of(to) >= rules.inbox_keep:
        message = f"{to} has agents.inbox_keep = {rules.inbox_keep} messages that it has not read"
        return Fault("message_refused", "inbox_full", message, {"unread": draft.mail_of(to)})
    return None


def _bucket(scope: Scope, agent: Agent, to: str) -> Bucket:
    rules, draft = scope.rules, scope.draft
    known = draft.bucket(agent.agent_id, to)
    if known is None:
        return Bucket(rules.pair_burst, draft.now)
    return known.refilled(draft.now, rules.pair_per_s, rules.pair_burst)


def _count(scope: Scope, agent: Agent, payload: m.MessagePayload) -> None:
    draft, to, thread_id = scope.draft, payload.to, payload.thread_id
    draft.set_bucket(agent.agent_id, to, _bucket(scope, agent, to).taken())
    draft.add_mail(to)
    if thread_id is not None:
        hops = draft.hops(thread_id, agent.agent_id) + 1
        draft.set_hops(thread_id, to, max(hops, draft.hops(thread_id, to)))
