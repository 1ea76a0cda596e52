"""What it means when an agent says something: one function for each type of response."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aism_engine.domain import effects as fx
from aism_engine.domain.agents import measurements
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.decision import Decision, DecisionContext, Outcome
from aism_engine.domain.draft import Draft
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.machines.state_rules import apply_state_terms
from aism_engine.domain.mail import delivery
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, encode
from aism_engine.domain.text import message_digest, truncate

SOURCE: Final = "response_queue"
_AWAY: Final = frozenset({Liveness.LOST, Liveness.LEFT})

ResponseHandler: TypeAlias = Callable[[DecisionContext, AgentRecord, Any, bytes], ErrorReply | None]
"""Decides what a response means for its agent: changes the draft and adds effects through the ctx, or says why not.
"""


def decide_response(
    draft: Draft, policy: Policy, response: m.Response | m.Custom, raw: bytes, *, again: bool = False
) -> Decision:
    """Decide what a response means for its agent and its command. `raw` is kept should it have to be buried.

    One that was buried may be decided `again`, though its id was seen.
    """
    decision = Decision(response.kind)
    ctx = DecisionContext(draft, policy, decision, "agent", response.id)
    agent_id = response.agent_id
    agent = draft.agent(agent_id)
    if agent is None:
        registering_as = response.payload.type if isinstance(response, m.Register) else None
        if not policy.agents.auto_register and registering_as is None:
            return _refuse(ctx, "unknown_agent", f"{agent_id} has not registered", response, raw)
        if draft.size >= policy.agents.max_agents:
            reason = f"the fleet is full: agents.max_agents = {policy.agents.max_agents}"
            return _refuse(ctx, "fleet_full", reason, response, raw)
        agent = ctx.admit(agent_id, registering_as)
    elif response.id is not None and not again and draft.has_seen(agent_id, response.id):
        draft.note_message(agent_id, None)
        decision.outcome = "duplicate"
        return decision
    draft.note_message(agent_id, response.id)
    if not isinstance(response, m.Heartbeat):
        draft.note_activity(agent_id)
    if response.instance is not None:
        draft.activity(agent_id).speak_as(response.instance, draft.now)
    if response.via == "pubsub":
        ctx.via = "channel"
    if agent.liveness in _AWAY and not isinstance(response, m.Register | m.Goodbye):
        ctx.mark_returned(agent)
    handler = policy.handlers[response.type] if isinstance(response, m.Custom) else _HANDLERS[type(response)]
    error = handler(ctx, agent, response, raw)
    if response.reply and response.id is not None:
        body = {"ok": error is None, "state": agent.state}
        ctx.answer(agent_id, response.id, body if error is None else {**body, "error": error}, agent.codec)
    return decision


def dead_letter_response(draft: Draft, policy: Policy, error: MalformedError, raw: bytes) -> Decision:
    """Bury what could not be decoded, or committed; who sent it is told, if that can be read and is wanted."""
    decision = Decision("malformed")
    ctx = DecisionContext(draft, policy, decision, "agent", error.message_id)
    ctx.dead_letter(error.code, error.reason, raw, source=SOURCE, agent_id=error.agent_id)
    if error.reply and error.agent_id is not None and error.message_id is not None:
        agent = draft.agent(error.agent_id)
        reply = ErrorReply("message_refused", error.code, error.reason)
        codec = "json" if agent is None else agent.codec
        ctx.answer(error.agent_id, error.message_id, {"ok": False, "error": reply}, codec)
    return decision


def _refuse(ctx: DecisionContext, code: str, reason: str, response: m.Response | m.Custom, raw: bytes) -> Decision:
    """Bury what comes from an agent that is not taken in; but for what it only publishes of its measurements, every
    second perhaps: that would wash all other letters away.
    """
    if response.via == "pubsub" and isinstance(response, m.Measurement):
        ctx.decision.outcome, ctx.decision.code = "refused", code
        return ctx.decision
    ctx.dead_letter(code, reason, raw, source=SOURCE, agent_id=response.agent_id)
    if response.reply and response.id is not None:
        ctx.answer(response.agent_id, response.id, {"ok": False, "error": ErrorReply("message_refused", code, reason)})
    return ctx.decision


def dead_letter_oversized(draft: Draft, policy: Policy, head: bytes, name: str, size: int, source: str) -> Decision:
    """Bury what is too large to be read: the store moves it aside, whole, without showing it to the engine."""
    decision = Decision("oversized")
    letter = fx.DeadLetter(
        code="oversized",
        reason=f"{size} bytes exceed protocol.max_message_bytes; the whole is the newest of the oversized list",
        source=source,
        raw=head,
        digest=name,
        size=size,
    )
    DecisionContext(draft, policy, decision, "agent").add_dead_letter(letter)
    return decision


# --- presence ---------------------------------------------------------------------------------------------------------


def _register(ctx: DecisionContext, agent: AgentRecord, response: m.Register, _raw: bytes) -> ErrorReply | None:
    payload = response.payload
    agent.type = payload.type
    agent.registered = True
    agent.labels = payload.labels
    agent.capabilities = tuple(payload.capabilities)
    agent.codec = payload.codec
    agent.declared, agent.declared_at, agent.declared_via = None, ctx.draft.now, None  # another process did
    if agent.liveness in _AWAY:
        agent.present()
    machine = ctx.machine(agent)
    record = agent.record()
    ctx.add(fx.SaveAgent(agent.agent_id, record))
    metadata = {name: record[name] for name in ("type", "labels", "capabilities", "codec")}
    ctx.add(fx.SaveMetadata(agent.agent_id, {**metadata, "registered_at": ctx.draft.at}))
    details = {"machine": machine.name, "version": machine.version}
    ctx.record("agent_registered", agent_id=agent.agent_id, type=agent.type, details=details)
    target = machine.on_register
    if target is None and not machine.knows(agent.state):
        target = machine.on_unknown  # it came from another machine, and this one does not know where it stands
    if target is not None and target != agent.state:
        ctx.change_state(agent, target, "register")
    elif changed := apply_state_terms(ctx, agent):  # its machine may be another than before
        ctx.add(fx.SaveAgent(agent.agent_id, changed))
    return None


def _heartbeat(_scope: DecisionContext, _agent: AgentRecord, _response: m.Heartbeat, _raw: bytes) -> ErrorReply | None:
    return None  # that it spoke is all it says, and the draft has noted that


def _goodbye(ctx: DecisionContext, agent: AgentRecord, response: m.Goodbye, _raw: bytes) -> ErrorReply | None:
    agent.present(Liveness.LEFT)
    fields = agent.absence()
    ctx.record("agent_left", agent_id=agent.agent_id, reason=truncate(response.payload.reason or "") or None)
    target = ctx.machine(agent).on_goodbye
    if target is not None and target != agent.state:
        ctx.change_state(agent, target, "goodbye", fields)
    else:
        ctx.add(fx.SaveAgent(agent.agent_id, fields))
    return None


# --- states -----------------------------------------------------------------------------------------------------------


def _state_transition(
    ctx: DecisionContext, agent: AgentRecord, response: m.StateTransition, raw: bytes
) -> ErrorReply | None:
    command = None
    if response.command_id is not None:
        command = _command_of(ctx, agent, response, raw)
        if command is None:
            return _no_command(ctx, command, response.command_id)
    payload = response.payload
    by: fx.Actor = "operator" if command is not None and command.target == payload.target else "agent"
    refusal = ctx.declare(
        agent, payload.target, by=by, context=payload.context, reason=truncate(payload.reason or "") or None
    )
    if refusal is not None:
        error = ctx.refuse_transition(agent, refusal)
        if command is not None:
            ctx.end_command(command, Status.FAILED, code=refusal.code, reason=refusal.message)
        return error
    if command is not None:  # late or not: what it says of its state it says
        ctx.end_command(command, Status.SUCCEEDED)
    return None


# --- commands ---------------------------------------------------------------------------------------------------------


def _command_of(ctx: DecisionContext, agent: AgentRecord, response: m.Response, raw: bytes) -> Command | None:
    """Find the command that a response is about; bury the response where there is none, or it is not this agent's."""
    command_id = response.command_id or ""
    command = ctx.draft.command(command_id)
    if command is None:
        reason = f"there is no command {command_id}"
        ctx.dead_letter("unknown_command", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return None
    if command.agent_id != agent.agent_id:
        reason = f"command {command_id} was given to another agent"
        ctx.dead_letter("foreign_command", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return None
    outcome = isinstance(response, m.Result | m.Error | m.StateTransition)
    ctx.draft.activity(agent.agent_id).say_on_command(ctx.draft.now, outcome=outcome)
    if not command.open:
        ctx.decision.outcome = _afterwards(command, response)
    elif not command.was_sent:
        reason = f"command {command_id} has not been given to anybody yet"
        ctx.dead_letter("not_sent", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return None
    return command


def _afterwards(command: Command, response: m.Response) -> Outcome:
    """What a word on a command that has ended is: a second copy of the outcome, its contrary, or too late."""
    said = {m.Result: Status.SUCCEEDED, m.Error: Status.FAILED}.get(type(response))
    if said is None or command.status not in {Status.SUCCEEDED, Status.FAILED}:
        return "late"
    return "duplicate" if command.status is said else "contradictory"


def _no_command(ctx: DecisionContext, command: Command | None, command_id: str) -> ErrorReply:
    """Answer one whose outcome came to nothing."""
    if command is None:
        return ErrorReply("command_refused", ctx.decision.code, f"no command {command_id} of yours")
    message = f"command {command_id} has {command.status} already"
    return ErrorReply("command_refused", "command_ended", message, {"status": command.status})


def _ack(ctx: DecisionContext, agent: AgentRecord, response: m.Ack, raw: bytes) -> ErrorReply | None:
    command = _command_of(ctx, agent, response, raw)
    if command is None or not command.open:
        return _no_command(ctx, command, response.command_id)
    if command.may_become(Status.ACKED):
        _acknowledge(ctx, command)
    else:
        ctx.decision.outcome = "unchanged"
    return None


def _acknowledge(ctx: DecisionContext, command: Command) -> None:
    if command.status is Status.QUEUED:  # it has taken it, though we have not seen that yet
        if command.attempt > 1:  # or it means the copy before: this one may lie there still
            ctx.add(fx.WithdrawCommand(command.agent_id, command.command_id))
        ctx.advance(command, command.deliver, ctx.draft.now, acks=True)
        ctx.record_command(command)
    ctx.advance(command, command.acknowledge, ctx.draft.now)
    ctx.record_command(command)


def _progress(ctx: DecisionContext, agent: AgentRecord, response: m.Progress, raw: bytes) -> ErrorReply | None:
    command = _command_of(ctx, agent, response, raw)
    if command is None or not command.open:
        return _no_command(ctx, command, response.command_id)
    if command.may_become(Status.ACKED):  # any word on a command acknowledges it
        _acknowledge(ctx, command)
    elif ctx.policy.commands.extend_on_progress:
        ctx.advance(command, command.extend, ctx.draft.now)
    fields: dict[str, str | bytes] = {"progress_at": ctx.draft.at}
    if response.payload.percent is not None:
        fields["percent"] = format(response.payload.percent, "g")
    if response.payload.note is not None:
        fields["note"] = truncate(response.payload.note)
    ctx.add(fx.SaveCommand(command.command_id, fields))
    return None


# A command on which its agent reports was taken: of a first attempt there is no copy left to be withdrawn.


def _result(ctx: DecisionContext, agent: AgentRecord, response: m.Result, raw: bytes) -> ErrorReply | None:
    command = _command_of(ctx, agent, response, raw)
    if command is None or not command.open:
        return _no_command(ctx, command, response.command_id)
    result = encode(response.payload)
    kept: dict[str, str | bytes]
    if len(result) <= ctx.policy.commands.max_result_bytes:
        kept = {"result": result}
    else:
        kept = {"result_digest": message_digest(result), "result_size": str(len(result))}
    ctx.add(fx.SaveCommand(command.command_id, kept))
    refusal = None
    if command.target is not None:
        refusal = ctx.declare(agent, command.target, by="operator", context=response.payload)
    ctx.decision.outcome = "applied"
    if refusal is not None:
        ctx.end_command(command, Status.FAILED, code=refusal.code, reason=refusal.message)
        return ctx.refuse_transition(agent, refusal)
    ctx.end_command(command, Status.SUCCEEDED, withdraw=command.attempt > 1)
    return None


def _error(ctx: DecisionContext, agent: AgentRecord, response: m.Error, raw: bytes) -> ErrorReply | None:
    code, message = truncate(response.payload.code), truncate(response.payload.message or response.payload.code)
    if response.command_id is None:
        ctx.record("agent_error", agent_id=agent.agent_id, code=code, reason=message)
        ctx.publish_error(code, message, agent_id=agent.agent_id)
        return None
    command = _command_of(ctx, agent, response, raw)
    if command is None or not command.open:
        return _no_command(ctx, command, response.command_id)
    if response.payload.retryable and agent.acks:
        policy = ctx.policy
        if command.bucket == "queued":  # it has failed with a copy of it in its list still
            ctx.add(fx.WithdrawCommand(agent.agent_id, command.command_id))
        ctx.advance(
            command,
            command.retry,
            ctx.draft.now,
            policy.commands.backoff_initial,
            policy.commands.backoff_max,
            failed=True,
        )
        ctx.record_command(command, "retried", code=code, reason=message)
        return None
    ctx.end_command(command, Status.FAILED, withdraw=command.attempt > 1, code=code, reason=message)
    ctx.publish_error(code, message, agent_id=agent.agent_id, command_id=command.command_id)
    return None


# --- the rest ---------------------------------------------------------------------------------------------------------


def _message(ctx: DecisionContext, agent: AgentRecord, response: m.Message, raw: bytes) -> ErrorReply | None:
    payload = response.payload
    recipient = ctx.draft.agent(payload.to)
    if recipient is None:
        reason = f"there is no agent {payload.to} to send a message to"
        ctx.dead_letter("unknown_recipient", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return ErrorReply("message_refused", "unknown_recipient", reason)
    return delivery.send(ctx, agent, recipient, response, response.id or message_digest(raw).partition(":")[0])


_HANDLERS: Final[dict[type, ResponseHandler]] = {
    m.Register: _register,
    m.Heartbeat: _heartbeat,
    m.Goodbye: _goodbye,
    m.Ack: _ack,
    m.Progress: _progress,
    m.Result: _result,
    m.Error: _error,
    m.StateTransition: _state_transition,
    m.Message: _message,
    m.Measurement: measurements.keep,
}
