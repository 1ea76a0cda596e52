"""Requests of operators: the handler of each type, and the steps that all types share."""

from collections.abc import Callable
from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents import liveness, membership
from aism_engine.domain.commands.accept import send
from aism_engine.domain.commands.cancel import cancel
from aism_engine.domain.commands.holds import hold
from aism_engine.domain.dead_letters import purge
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.replay import replay

_HANDLERS: Final[dict[type, Callable[..., dict[str, Any] | ErrorReply]]] = {
    m.Send: send,
    m.Cancel: cancel,
    m.Pause: hold,
    m.Drain: hold,
    m.Resume: hold,
    m.Replay: replay,
    m.Purge: purge,
    m.Forget: membership.forget,
    m.ConfirmLosses: liveness.confirm_losses,
}


def decide_request(draft: Draft, policy: Policy, request: m.Request, raw: bytes) -> Decision:
    """Decide on a request. The reply is committed together with the effects.

    A request id that was decided within `commands.retention` gets the same reply again, and changes nothing.
    """
    decision = Decision(request.kind)
    ctx = DecisionContext(draft, policy, decision, "operator", request.id)
    reply = draft.request_replies.get(request.id) or draft.lookups.request_replies.get(request.id)
    if reply is not None:
        decision.outcome = "duplicate"
    else:
        reply = draft.request_replies[request.id] = _decide(ctx, request, raw)
        ctx.add(fx.SaveRequestReply(request.id, reply, policy.commands.retention))
    if request.reply:
        ctx.add(fx.SendReply(None, request.id, reply, policy.protocol.reply_ttl))
    return decision


def _decide(ctx: DecisionContext, request: m.Request, raw: bytes) -> bytes:
    """Call the handler, and encode the reply."""
    reply = _HANDLERS[type(request)](ctx, request, raw)
    if isinstance(reply, ErrorReply):
        ctx.decision.outcome, ctx.decision.code = "refused", reply.code
        ctx.record("request_refused", type=request.kind, code=reply.code, reason=reply.message)
        reply = {"ok": False, "error": reply}
    return encode({"id": request.id, "timestamp": ctx.draft.at, **reply})
