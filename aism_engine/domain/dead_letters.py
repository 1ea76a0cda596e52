"""Dead letters: messages and commands that were given up on, kept with the reason. `replay.py` applies one again."""

from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.decision import Decision, DecisionContext, ErrorReply
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError
from aism_engine.domain.text import message_digest, truncate, truncate_reason

_SENDERS: Final[dict[fx.DeadLetterSource, fx.Actor]] = {
    "response_queue": "agent",
    "request_queue": "operator",
    "fanout": "engine",
}


def add_dead_letter(
    ctx: DecisionContext,
    code: str,
    reason: str,
    raw: bytes,
    source: fx.DeadLetterSource = "response_queue",
    agent_id: str | None = None,
    oversized: tuple[str, int] | None = None,
) -> None:
    """Add a message or command to the dead letters, with the reason, and publish the error.

    `oversized` is the digest and the size of the whole message, if `raw` is only its head.
    """
    ctx.decision.outcome, ctx.decision.code = "dead_lettered", code
    reason = truncate(reason)
    digest, size = oversized or (message_digest(raw), len(raw))
    ctx.add(
        fx.DeadLetter(code=code, reason=reason, source=source, raw=raw, digest=digest, size=size, agent_id=agent_id)
    )
    details = {"digest": digest, "size": size}
    ctx.record("dead_letter_added", agent_id=agent_id, code=code, reason=reason, details={"source": source, **details})
    ctx.publish_error(code, reason, agent_id=agent_id, details=details)


def dead_letter_response(draft: Draft, policy: Policy, error: MalformedError, raw: bytes) -> Decision:
    """Dead-letter a response that cannot be decoded or committed. Reply if it asks for that and its ids can be read."""
    ctx = DecisionContext(draft, policy, Decision("malformed"), "agent", error.message_id)
    add_dead_letter(ctx, error.code, error.reason, raw, agent_id=error.agent_id)
    if error.reply and error.agent_id is not None and error.message_id is not None:
        reply = ErrorReply("message_refused", error.code, error.reason)
        ctx.reply(error.agent_id, error.message_id, {"ok": False, "error": reply})
    return ctx.decision


def dead_letter_request(draft: Draft, policy: Policy, error: MalformedError, raw: bytes) -> Decision:
    """Dead-letter a request that cannot be decoded or committed, and reply to it if its id can be read."""
    ctx = DecisionContext(draft, policy, Decision("malformed"), "operator", error.message_id)
    add_dead_letter(ctx, error.code, error.reason, raw, "request_queue", error.agent_id)
    if error.message_id is not None and error.code != "wrong_type":  # the key of the reply may have the wrong type
        reply = ErrorReply("request_refused", error.code, error.reason)
        ctx.reply(None, error.message_id, {"ok": False, "error": reply})
    return ctx.decision


def dead_letter_oversized(
    draft: Draft, policy: Policy, head: bytes, digest: str, size: int, source: fx.DeadLetterSource
) -> Decision:
    """Dead-letter the head of a message that is too large. The store moves the whole message to the oversized list."""
    ctx = DecisionContext(draft, policy, Decision("oversized"), _SENDERS[source])
    reason = f"{size} bytes exceed protocol.max_message_bytes; the whole message was moved to the oversized list"
    add_dead_letter(ctx, "oversized", reason, head, source, oversized=(digest, size))
    return ctx.decision


def purge(ctx: DecisionContext, request: m.Purge, _raw: bytes) -> dict[str, Any]:
    ids = request.payload.dead_letter_ids
    ctx.add(fx.RemoveDeadLetters(ids))
    reason = truncate_reason(request.payload.reason)
    ctx.record("dead_letters_purged", reason=reason, details={"count": len(ids), "first": ids[0], "last": ids[-1]})
    return {"ok": True, "purged": len(ids)}
