"""Requests of operators: the handler of each type, and the steps that all types share."""

from collections.abc import Callable
from hashlib import sha1
from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents import liveness, membership
from aism_engine.domain.commands.accept import id_reused, send
from aism_engine.domain.commands.cancel import cancel
from aism_engine.domain.commands.holds import hold
from aism_engine.domain.dead_letters import purge
from aism_engine.domain.decision import Decision, DecisionContext, ErrorReply
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode, encode_sorted
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

    The same request again, within `commands.retention`, gets the same reply, and changes nothing. Another request under
    the same id is refused.
    """
    decision = Decision(request.kind)
    ctx = DecisionContext(draft, policy, decision, "operator", request.id, request.operator)
    saved = draft.request_replies.get(request.id) or draft.lookups.request_replies.get(request.id)
    digest = sha1(encode_sorted([request.kind, request.payload]), usedforsecurity=False).hexdigest().encode()
    if saved is None:
        reply = _encode_reply(ctx, request, _HANDLERS[type(request)](ctx, request, raw))
        if decision.code != "id_reused":
            saved = draft.request_replies[request.id] = b"%s %s" % (digest, reply)
            ctx.add(fx.SaveRequestReply(request.id, saved, policy.commands.retention))
    elif saved.startswith((digest, b"{")):  # an engine of an earlier version saved the reply without a digest
        decision.outcome, reply = "duplicate", saved[saved.index(b"{") :]
    else:
        reply = _encode_reply(ctx, request, id_reused(request))
    if request.reply:
        ctx.add(fx.SendReply(None, request.id, reply, policy.protocol.reply_ttl))
    return decision


def _encode_reply(ctx: DecisionContext, request: m.Request, reply: dict[str, Any] | ErrorReply) -> bytes:
    if isinstance(reply, ErrorReply):
        ctx.decision.outcome, ctx.decision.code = "refused", reply.code
        ctx.record("request_refused", type=request.kind, code=reply.code, reason=reply.message)
        reply = {"ok": False, "error": reply}
    return encode({"id": request.id, "timestamp": ctx.draft.at, **reply})
