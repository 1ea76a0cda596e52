"""What becomes of dead letters: replayed through the front door, or removed."""

from typing import Any

import msgspec

from aism_engine.domain import effects as fx
from aism_engine.domain import responses
from aism_engine.domain.commands import deadlines
from aism_engine.domain.commands.accept import accept, find_agent
from aism_engine.domain.commands.command import Command
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_as, decode_response
from aism_engine.domain.text import truncate

_KIND = "replay_refused"


def replay(ctx: DecisionContext, request: m.Replay, _raw: bytes) -> dict[str, Any] | ErrorReply:
    """Decide on a dead letter once more, as if it had just come: by the same checks, in the commit that removes it.

    A response that is buried again is a new letter, linked to the old one.
    """
    dead_letter_id = request.payload.dead_letter_id
    letter = ctx.draft.lookups.dead_letters.get(dead_letter_id)
    if letter is None:
        return ErrorReply(_KIND, "unknown_dead_letter", f"there is no dead letter {dead_letter_id}")
    if letter.size != len(letter.raw):
        return ErrorReply(_KIND, "truncated", f"only {len(letter.raw)} of its {letter.size} bytes are kept here")
    if letter.source == deadlines.COMMANDS:
        reply = _send_anew(ctx, request, letter)
    elif letter.source == responses.SOURCE:
        reply = _say_again(ctx, dead_letter_id, letter)
    else:
        return ErrorReply(
            _KIND, "not_replayable", "what could not be read as a request can't be replayed: send it anew"
        )
    if not isinstance(reply, ErrorReply):
        ctx.add(fx.RemoveDeadLetters((dead_letter_id,)))
        details = {"dead_letter_id": dead_letter_id, "outcome": reply["outcome"], "source": letter.source}
        ctx.record("dead_letter_replayed", agent_id=letter.agent_id, code=letter.code, details=details)
    return reply


def _send_anew(ctx: DecisionContext, request: m.Replay, letter: fx.DeadLetter) -> dict[str, Any] | ErrorReply:
    """Send a command that was given up on once more, under a new id, linked to the old one; with the options of that,
    as long as its record is kept.
    """
    try:
        body = decode_as(m.CommandMessage, letter.raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return ErrorReply(_KIND, "invalid_message", str(error))
    agent = find_agent(ctx, letter.agent_id or "", _KIND)
    if isinstance(agent, ErrorReply):
        return agent
    spec = m.CommandSpec(type=body.type, payload=body.payload)
    options = _options_of(ctx.draft.command(body.id))
    send = m.Send(id=request.id, payload=m.SendPayload(command=spec, agent_id=agent.agent_id, options=options))
    reply = accept(ctx, request.id, agent, send, replay_of=body.id)
    return reply if isinstance(reply, ErrorReply) else {**reply, "outcome": "applied", "replay_of": body.id}


def _options_of(command: Command | None) -> m.SendOptions:
    if command is None:
        return m.SendOptions()
    return m.SendOptions(
        ttl=command.expires_at - command.accepted_at,
        ack_timeout=command.ack_timeout_s,
        timeout=command.timeout_s,
        max_attempts=command.max_attempts,
        priority=command.priority,
        on_lost=command.on_lost,
    )


def _say_again(ctx: DecisionContext, dead_letter_id: str, letter: fx.DeadLetter) -> dict[str, Any] | ErrorReply:
    try:
        response = decode_response(letter.raw, ctx.policy.handlers)
    except MalformedError as error:
        return ErrorReply(_KIND, error.code, error.reason)
    decision = responses.decide_response(ctx.draft, ctx.policy, response, letter.raw, again=True)
    for effect in decision.effects:
        if isinstance(effect, fx.AddDeadLetter):
            effect = fx.AddDeadLetter(msgspec.structs.replace(effect.dead_letter, replay_of=dead_letter_id))  # noqa: PLW2901
        ctx.add(effect)
    return {"ok": True, "dead_letter_id": dead_letter_id, "outcome": decision.outcome, "code": decision.code or None}


def purge(ctx: DecisionContext, request: m.Purge, _raw: bytes) -> dict[str, Any]:
    ids = request.payload.dead_letter_ids
    ctx.add(fx.RemoveDeadLetters(ids))
    reason = truncate(request.payload.reason or "") or None
    ctx.record("dead_letters_purged", reason=reason, details={"count": len(ids), "first": ids[0], "last": ids[-1]})
    return {"ok": True, "purged": len(ids)}
