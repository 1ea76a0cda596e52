"""What it means when an operator asks for something: whom it means, and whether it is allowed now."""

from collections.abc import Callable
from typing import Any, Final

from aism_engine.model import effects as fx
from aism_engine.model import messages as m
from aism_engine.model.codec import MalformedError, encode
from aism_engine.model.decisions.common import Decision, Scope
from aism_engine.model.decisions.controls import cancel, confirm_losses, hold
from aism_engine.model.decisions.faults import Fault
from aism_engine.model.decisions.letters import purge, replay
from aism_engine.model.decisions.sending import send
from aism_engine.model.draft import Draft
from aism_engine.model.rules import Rules
from aism_engine.model.texts import clip

SOURCE: Final = "request_queue"
_UNANSWERABLE: Final = frozenset({"wrong_type"})
"""Codes of requests whose very reply may be what cannot be written."""


def decide_request(draft: Draft, rules: Rules, request: m.Request, raw: bytes) -> Decision:
    """Decide on a request. Accepted means: what it asks for is committed with the reply that says so.

    One that was asked before, and decided within the retention, is answered as it was then, and changes nothing.
    """
    decision = Decision(request.kind)
    scope = Scope(draft, rules, decision, "operator", request.id)
    answer = draft.answers.get(request.id) or draft.lookups.answers.get(request.id)
    if answer is not None:
        decision.outcome = "duplicate"
    else:
        answer = _decide(scope, request, raw)
        draft.answers[request.id] = answer
        scope.add(fx.SaveAnswer(request.id, answer, rules.retention_s))
    if request.reply:
        scope.add(fx.Answer(None, request.id, answer, rules.reply_ttl_s))
    return decision


def bury_request(draft: Draft, rules: Rules, error: MalformedError, raw: bytes) -> Decision:
    """Bury what could not be decoded; whoever asked is told, where it can be read who that was."""
    decision = Decision("malformed")
    scope = Scope(draft, rules, decision, "operator", error.message_id)
    scope.bury(error.code, error.reason, raw, source=SOURCE, agent_id=error.agent_id)
    if error.message_id is not None and error.code not in _UNANSWERABLE:
        fault = Fault("request_refused", error.code, error.reason)
        scope.answer(None, error.message_id, {"ok": False, "error": fault})
    return decision


def _decide(scope: Scope, request: m.Request, raw: bytes) -> bytes:
    reply = _HANDLERS[type(request)](scope, request, raw)
    if isinstance(reply, Fault):
        scope.decision.outcome, scope.decision.code = "refused", reply.code
        scope.record("request_refused", type=request.kind, code=reply.code, reason=reply.message)
        reply = {"ok": False, "error": reply}
    return encode({"id": request.id, "timestamp": scope.draft.at, **reply})


def _forget(scope: Scope, request: m.Forget, _raw: bytes) -> dict[str, Any] | Fault:
    agent_id = request.payload.agent_id
    agent = scope.draft.agent(agent_id)
    if agent is None:
        return Fault("forget_refused", "unknown_agent", f"there is no agent {agent_id}")
    scope.forget(agent, clip(request.payload.reason or "") or None)
    return {"ok": True, "agent_id": agent_id}


_HANDLERS: Final[dict[type, Callable[..., dict[str, Any] | Fault]]] = {
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
