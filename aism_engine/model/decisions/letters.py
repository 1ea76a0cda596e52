"""What becomes of dead letters: replayed through the front door, or removed."""

from typing import Any

import msgspec

from aism_engine.model import effects as fx
from aism_engine.model import messages as m
from aism_engine.model.codec import MalformedError, decode_as, decode_response
from aism_engine.model.commands import Command
from aism_engine.model.decisions import due, responses
from aism_engine.model.decisions.common import Scope
from aism_engine.model.decisions.faults import Fault
from aism_engine.model.decisions.sending import accept, find_agent
from aism_engine.model.texts import clip

_KIND = "replay_refused"


def replay(scope: Scope, request: m.Replay, _raw: bytes) -> dict[str, Any] | Fault:
    """Decide on a dead letter once more, as if it had just come: by the same checks, in the commit that removes it.

    A response that is buried again is a new letter, linked to the old one.
    """
    letter_id = request.payload.letter_id
    letter = scope.draft.lookups.letters.get(letter_id)
    if letter is None:
        return Fault(_KIND, "unknown_letter", f"there is no dead letter {letter_id}")
    if letter.size != len(letter.raw):
        return Fault(_KIND, "truncated", f"only {len(letter.raw)} of its {letter.size} bytes are kept here")
    if letter.source == due.COMMANDS:
        reply = _send_anew(scope, request, letter)
    elif letter.source == responses.SOURCE:
        reply = _say_again(scope, letter_id, letter)
    else:
        return Fault(_KIND, "not_replayable", "what could not be read as a request can't be replayed: send it anew")
    if not isinstance(reply, Fault):
        scope.add(fx.RemoveLetters((letter_id,)))
        details = {"letter_id": letter_id, "outcome": reply["outcome"], "source": letter.source}
        scope.record("letter_replayed", agent_id=letter.agent_id, code=letter.code, details=details)
    return reply


def _send_anew(scope: Scope, request: m.Replay, letter: fx.Letter) -> dict[str, Any] | Fault:
    """Send a command that was given up on once more, under a new id, linked to the old one; with the options of that,
    as long as its record is kept.
    """
    try:
        body = decode_as(m.Command, letter.raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Fault(_KIND, "invalid_message", str(error))
    agent = find_agent(scope, letter.agent_id or "", _KIND)
    if isinstance(agent, Fault):
        return agent
    spec = m.CommandSpec(type=body.type, payload=body.payload)
    options = _options_of(scope.draft.command(body.id))
    send = m.Send(id=request.id, payload=m.SendPayload(command=spec, agent_id=agent.agent_id, options=options))
    reply = accept(scope, request.id, agent, send, replay_of=body.id)
    return reply if isinstance(reply, Fault) else {**reply, "outcome": "applied", "replay_of": body.id}


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


def _say_again(scope: Scope, letter_id: str, letter: fx.Letter) -> dict[str, Any] | Fault:
    try:
        response = decode_response(letter.raw, scope.rules.handlers)
    except MalformedError as error:
        return Fault(_KIND, error.code, error.reason)
    decision = responses.decide_response(scope.draft, scope.rules, response, letter.raw, again=True)
    for effect in decision.effects:
        if isinstance(effect, fx.Bury):
            effect = fx.Bury(msgspec.structs.replace(effect.letter, replay_of=letter_id))  # noqa: PLW2901
        scope.add(effect)
    return {"ok": True, "letter_id": letter_id, "outcome": decision.outcome, "code": decision.code or None}


def purge(scope: Scope, request: m.Purge, _raw: bytes) -> dict[str, Any]:
    ids = request.payload.letter_ids
    scope.add(fx.RemoveLetters(ids))
    reason = clip(request.payload.reason or "") or None
    scope.record("letters_purged", reason=reason, details={"count": len(ids), "first": ids[0], "last": ids[-1]})
    return {"ok": True, "purged": len(ids)}
