"""Replay of a dead letter: decide on it again as if it had just arrived. `dead_letters.py` adds dead letters."""

from typing import Any, Final

import msgspec

from aism_engine.domain import effects as fx
from aism_engine.domain.commands.accept import accept, find_agent
from aism_engine.domain.commands.command import Command
from aism_engine.domain.decision import DecisionContext, ErrorReply
from aism_engine.domain.plain_words import explain
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_as, decode_response
from aism_engine.domain.responses import decide_response

_REPLAY_REFUSED: Final = "replay_refused"


def replay(ctx: DecisionContext, request: m.Replay, _raw: bytes) -> dict[str, Any] | ErrorReply:
    """Decide on a dead letter again as if it had just arrived, and remove it in the same commit.

    A response that is dead-lettered again becomes a new dead letter with a link to the old one.
    """
    dead_letter_id = request.payload.dead_letter_id
    dead_letter = ctx.draft.lookups.dead_letters.get(dead_letter_id)
    if dead_letter is None:
        return ErrorReply(_REPLAY_REFUSED, "unknown_dead_letter", f"there is no dead letter {dead_letter_id}")
    if dead_letter.size != len(dead_letter.raw):
        message = f"the dead letter holds only the first {len(dead_letter.raw)} of {dead_letter.size} bytes"
        return ErrorReply(_REPLAY_REFUSED, "truncated", message)
    if dead_letter.source == "commands":
        reply = _send_again(ctx, request, dead_letter)
    elif dead_letter.source == "response_queue":
        reply = _decide_again(ctx, dead_letter_id, dead_letter)
    else:
        message = f"dead letters from {dead_letter.source} cannot be replayed; send the request again"
        return ErrorReply(_REPLAY_REFUSED, "not_replayable", message)
    if not isinstance(reply, ErrorReply):
        ctx.add(fx.RemoveDeadLetters((dead_letter_id,)))
        details = {"dead_letter_id": dead_letter_id, "outcome": reply["outcome"], "source": dead_letter.source}
        ctx.record("dead_letter_replayed", agent_id=dead_letter.agent_id, code=dead_letter.code, details=details)
    return reply


def _send_again(ctx: DecisionContext, request: m.Replay, dead_letter: fx.DeadLetter) -> dict[str, Any] | ErrorReply:
    """Send a dead-lettered command under a new id, linked to the old one. Its options are kept if its record exists."""
    try:
        body = decode_as(m.CommandMessage, dead_letter.raw)
    except (ValueError, RecursionError) as error:
        return ErrorReply(_REPLAY_REFUSED, "invalid_message", explain(error))
    agent = find_agent(ctx, dead_letter.agent_id or "", _REPLAY_REFUSED)
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
        ttl=command.ttl_s,
        ack_timeout=command.ack_timeout_s,
        timeout=command.timeout_s,
        max_attempts=command.max_attempts,
        priority=command.priority,
        on_lost=command.on_lost,
    )


def _decide_again(ctx: DecisionContext, dead_letter_id: str, dead_letter: fx.DeadLetter) -> dict[str, Any] | ErrorReply:
    try:
        response = decode_response(dead_letter.raw, ctx.policy.handlers)
    except MalformedError as error:
        return ErrorReply(_REPLAY_REFUSED, error.code, error.reason)
    decision = decide_response(ctx.draft, ctx.policy, response, dead_letter.raw, replayed=True)
    for effect in decision.effects:
        added = isinstance(effect, fx.DeadLetter)
        ctx.add(msgspec.structs.replace(effect, replay_of=dead_letter_id) if added else effect)
    return {"ok": True, "dead_letter_id": dead_letter_id, "outcome": decision.outcome, "code": decision.code or None}
