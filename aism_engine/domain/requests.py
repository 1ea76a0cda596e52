"""What it means when an operator asks for something: whom it means, and whether it is allowed now."""

from collections.abc import Callable
from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.commands.accept import send
from aism_engine.domain.commands.holds import cancel, confirm_losses, hold
from aism_engine.domain.dead_letters import purge, replay
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, encode
from aism_engine.domain.text import truncate

SOURCE: Final = "request_queue"
_UNANSWERABLE: Final = frozenset({"wrong_type"})
"""Codes of requests whose very reply may be what cannot be written."""


def decide_request(draft: Draft, policy: Policy, request: m.Request, raw: bytes) -> Decision:
    """Decide on a request. Accepted means: what it asks for is committed with the reply that says so.

    One that was asked before, and decided within the retention, is answered as it was then, and changes nothing.
    """
    decision = Decision(request.kind)
    ctx = DecisionContext(draft, policy, decision, "operator", request.id)
    answer = draft.request_replies.get(request.id) or draft.lookups.request_replies.get(request.id)
    if answer is not None:
        decision.outcome = "duplicate"
    else:
        answer = _decide(ctx, request, raw)
        draft.request_replies[request.id] = answer
        ctx.add(fx.SaveRequestReply(request.id, answer, policy.commands.retention))
    if request.reply:
        ctx.add(fx.SendReply(None, request.id, answer, policy.protocol.reply_ttl))
    return decision


def dead_letter_request(draft: Draft, policy: Policy, error: MalformedError, raw: bytes) -> Decision:
    """Bury what could not be decoded; whoever asked is told, where it can be read who that was."""
    decision = Decision("malformed")
    ctx = DecisionContext(draft, policy, decision, "operator", error.message_id)
    ctx.dead_letter(error.code, error.reason, raw, source=SOURCE, agent_id=error.agent_id)
    if error.message_id is not None and error.code not in _UNANSWERABLE:
        reply = ErrorReply("request_refused", error.code, error.reason)
        ctx.answer(None, error.message_id, {"ok": False, "error": reply})
    return decision


def _decide(ctx: DecisionContext, request: m.Request, raw: bytes) -> bytes:
    reply = _HANDLERS[type(request)](ctx, request, raw)
    if isinstance(reply, ErrorReply):
        ctx.decision.outcome, ctx.decision.code = "refused", reply.code
        ctx.record("request_refused", type=request.kind, code=reply.code, reason=reply.message)
        reply = {"ok": False, "error": reply}
    return encode({"id": request.id, "timestamp": ctx.draft.at, **reply})


def _forget(ctx: DecisionContext, request: m.Forget, _raw: bytes) -> dict[str, Any] | ErrorReply:
    agent_id = request.payload.agent_id
    agent = ctx.draft.agent(agent_id)
    if agent is None:
        return ErrorReply("forget_refused", "unknown_agent", f"there is no agent {agent_id}")
    ctx.forget(agent, truncate(request.payload.reason or "") or None)
    return {"ok": True, "agent_id": agent_id}


_HANDLERS: Final[dict[type, Callable[..., dict[str, Any] | ErrorReply]]] = {
    m.Send: send,
    m.Cancel: cancel,
    m.Pause: hold,
    m.Drain: hold,
    m.Resume: hold,
    m.Replay: replay,
    m.Purge: purge,
    m.Forget: _forget,
    m.ConfirmLosses: confirm_losses,
}
