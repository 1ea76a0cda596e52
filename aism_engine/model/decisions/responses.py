"""What it means when an agent says something: one function for each type of response."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aism_engine.model import effects as fx
from aism_engine.model import messages as m
from aism_engine.model.agent import Agent, Liveness
from aism_engine.model.codec import MalformedError, encode
from aism_engine.model.commands import Command, Status
from aism_engine.model.decisions import mail, measurements
from aism_engine.model.decisions.common import Decision, Outcome, Scope
from aism_engine.model.decisions.faults import Fault
from aism_engine.model.decisions.standing import settle
from aism_engine.model.draft import Draft
from aism_engine.model.rules import Rules
from aism_engine.model.texts import clip, digest

SOURCE: Final = "response_queue"
_AWAY: Final = frozenset({Liveness.LOST, Liveness.LEFT})

Handler: TypeAlias = Callable[[Scope, Agent, Any, bytes], Fault | None]
"""Decides what a response means for its agent: changes the draft and adds effects through the scope, or says why not.
"""


def decide_response(
    draft: Draft, rules: Rules, response: m.Response | m.Custom, raw: bytes, *, again: bool = False
) -> Decision:
    """Decide what a response means for its agent and its command. `raw` is kept should it have to be buried.

    One that was buried may be decided `again`, though its id was seen.
    """
    decision = Decision(response.kind)
    scope = Scope(draft, rules, decision, "agent", response.id)
    agent_id = response.agent_id
    agent = draft.agent(agent_id)
    if agent is None:
        registering_as = response.payload.type if isinstance(response, m.Register) else None
        if not rules.auto_register and registering_as is None:
            return _refuse(scope, "unknown_agent", f"{agent_id} has not registered", response, raw)
        if draft.size >= rules.max_agents:
            reason = f"the fleet is full: agents.max_agents = {rules.max_agents}"
            return _refuse(scope, "fleet_full", reason, response, raw)
        agent = scope.take_in(agent_id, registering_as)
    elif response.id is not None and not again and draft.has_seen(agent_id, response.id):
        draft.heard(agent_id, None)
        decision.outcome = "duplicate"
        return decision
    draft.heard(agent_id, response.id)
    if not isinstance(response, m.Heartbeat):
        draft.act(agent_id)
    if response.instance is not None:
        draft.deeds(agent_id).speak_as(response.instance, draft.now)
    if response.via == "pubsub":
        scope.via = "channel"
    if agent.liveness in _AWAY and not isinstance(response, m.Register | m.Goodbye):
        scope.come_back(agent)
    handler = rules.handlers[response.type] if isinstance(response, m.Custom) else _HANDLERS[type(response)]
    fault = handler(scope, agent, response, raw)
    if response.reply and response.id is not None:
        body = {"ok": fault is None, "state": agent.state}
        scope.answer(agent_id, response.id, body if fault is None else {**body, "error": fault}, agent.codec)
    return decision


def bury_response(draft: Draft, rules: Rules, error: MalformedError, raw: bytes) -> Decision:
    """Bury what could not be decoded, or committed; who sent it is told, if that can be read and is wanted."""
    decision = Decision("malformed")
    scope = Scope(draft, rules, decision, "agent", error.message_id)
    scope.bury(error.code, error.reason, raw, source=SOURCE, agent_id=error.agent_id)
    if error.reply and error.agent_id is not None and error.message_id is not None:
        agent = draft.agent(error.agent_id)
        fault = Fault("message_refused", error.code, error.reason)
        codec = "json" if agent is None else agent.codec
        scope.answer(error.agent_id, error.message_id, {"ok": False, "error": fault}, codec)
    return decision


def _refuse(scope: Scope, code: str, reason: str, response: m.Response | m.Custom, raw: bytes) -> Decision:
    """Bury what comes from an agent that is not taken in; but for what it only publishes of its measurements, every
    second perhaps: that would wash all other letters away.
    """
    if response.via == "pubsub" and isinstance(response, m.Measurement):
        scope.decision.outcome, scope.decision.code = "refused", code
        return scope.decision
    scope.bury(code, reason, raw, source=SOURCE, agent_id=response.agent_id)
    if response.reply and response.id is not None:
        scope.answer(response.agent_id, response.id, {"ok": False, "error": Fault("message_refused", code, reason)})
    return scope.decision


def bury_oversized(draft: Draft, rules: Rules, head: bytes, name: str, size: int, source: str) -> Decision:
    """Bury what is too large to be read: the store moves it aside, whole, without showing it to the engine."""
    decision = Decision("oversized")
    letter = fx.Letter(
        code="oversized",
        reason=f"{size} bytes exceed consumer.max_message_bytes; the whole is the newest of the oversized list",
        source=source,
        raw=head,
        digest=name,
        size=size,
    )
    Scope(draft, rules, decision, "agent").add_letter(letter)
    return decision


# --- presence ---------------------------------------------------------------------------------------------------------


def _register(scope: Scope, agent: Agent, response: m.Register, _raw: bytes) -> Fault | None:
    payload = response.payload
    agent.type = payload.type
    agent.registered = True
    agent.labels = payload.labels
    agent.capabilities = tuple(payload.capabilities)
    agent.codec = payload.codec
    agent.declared, agent.declared_at, agent.declared_via = None, scope.draft.now, None  # another process did
    if agent.liveness in _AWAY:
        agent.present()
    machine = scope.machine(agent)
    record = agent.record()
    scope.add(fx.SaveAgent(agent.agent_id, record))
    metadata = {name: record[name] for name in ("type", "labels", "capabilities", "codec")}
    scope.add(fx.SaveMetadata(agent.agent_id, {**metadata, "registered_at": scope.draft.at}))
    details = {"machine": machine.name, "version": machine.version}
    scope.record("agent_registered", agent_id=agent.agent_id, type=agent.type, details=details)
    target = machine.on_register
    if target is None and not machine.knows(agent.state):
        target = machine.on_unknown  # it came from another machine, and this one does not know where it stands
    if target is not None and target != agent.state:
        scope.change_state(agent, target, "register")
    elif changed := settle(scope, agent):  # its machine may be another than before
        scope.add(fx.SaveAgent(agent.agent_id, changed))
    return None


def _heartbeat(_scope: Scope, _agent: Agent, _response: m.Heartbeat, _raw: bytes) -> Fault | None:
    return None  # that it spoke is all it says, and the draft has noted that


def _goodbye(scope: Scope, agent: Agent, response: m.Goodbye, _raw: bytes) -> Fault | None:
    agent.present(Liveness.LEFT)
    fields = agent.absence()
    scope.record("agent_left", agent_id=agent.agent_id, reason=clip(response.payload.reason or "") or None)
    target = scope.machine(agent).on_goodbye
    if target is not None and target != agent.state:
        scope.change_state(agent, target, "goodbye", fields)
    else:
        scope.add(fx.SaveAgent(agent.agent_id, fields))
    return None


# --- states -----------------------------------------------------------------------------------------------------------


def _state_transition(scope: Scope, agent: Agent, response: m.StateTransition, raw: bytes) -> Fault | None:
    command = None
    if response.command_id is not None:
        command = _command_of(scope, agent, response, raw)
        if command is None:
            return _no_command(scope, command, response.command_id)
    payload = response.payload
    by: fx.Party = "operator" if command is not None and command.target == payload.target else "agent"
    refusal = scope.declare(
        agent, payload.target, by=by, context=payload.context, reason=clip(payload.reason or "") or None
    )
    if refusal is not None:
        fault = scope.refuse_transition(agent, refusal)
        if command is not None:
            scope.end_command(command, Status.FAILED, code=refusal.code, reason=refusal.message)
        return fault
    if command is not None:  # late or not: what it says of its state it says
        scope.end_command(command, Status.SUCCEEDED)
    return None


# --- commands ---------------------------------------------------------------------------------------------------------


def _command_of(scope: Scope, agent: Agent, response: m.Response, raw: bytes) -> Command | None:
    """Find the command that a response is about; bury the response where there is none, or it is not this agent's."""
    command_id = response.command_id or ""
    command = scope.draft.command(command_id)
    if command is None:
        reason = f"there is no command {command_id}"
        scope.bury("unknown_command", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return None
    if command.agent_id != agent.agent_id:
        reason = f"command {command_id} was given to another agent"
        scope.bury("foreign_command", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return None
    outcome = isinstance(response, m.Result | m.Error | m.StateTransition)
    scope.draft.deeds(agent.agent_id).say_on_command(scope.draft.now, outcome=outcome)
    if not command.open:
        scope.decision.outcome = _afterwards(command, response)
    elif not command.given:
        reason = f"command {command_id} has not been given to anybody yet"
        scope.bury("not_given", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return None
    return command


def _afterwards(command: Command, response: m.Response) -> Outcome:
    """What a word on a command that has ended is: a second copy of the outcome, its contrary, or too late."""
    said = {m.Result: Status.SUCCEEDED, m.Error: Status.FAILED}.get(type(response))
    if said is None or command.status not in {Status.SUCCEEDED, Status.FAILED}:
        return "late"
    return "duplicate" if command.status is said else "contradictory"


def _no_command(scope: Scope, command: Command | None, command_id: str) -> Fault:
    """Answer one whose outcome came to nothing."""
    if command is None:
        return Fault("command_refused", scope.decision.code, f"no command {command_id} of yours")
    message = f"command {command_id} has {command.status} already"
    return Fault("command_refused", "command_ended", message, {"status": command.status})


def _ack(scope: Scope, agent: Agent, response: m.Ack, raw: bytes) -> Fault | None:
    command = _command_of(scope, agent, response, raw)
    if command is None or not command.open:
        return _no_command(scope, command, response.command_id)
    if command.may_become(Status.ACKED):
        _acknowledge(scope, command)
    else:
        scope.decision.outcome = "unchanged"
    return None


def _acknowledge(scope: Scope, command: Command) -> None:
    if command.status is Status.QUEUED:  # it has taken it, though we have not seen that yet
        if command.attempt > 1:  # or it means the copy before: this one may lie there still
            scope.add(fx.WithdrawCommand(command.agent_id, command.command_id))
        scope.advance(command, command.deliver, scope.draft.now, acks=True)
        scope.tell_command(command)
    scope.advance(command, command.acknowledge, scope.draft.now)
    scope.tell_command(command)


def _progress(scope: Scope, agent: Agent, response: m.Progress, raw: bytes) -> Fault | None:
    command = _command_of(scope, agent, response, raw)
    if command is None or not command.open:
        return _no_command(scope, command, response.command_id)
    if command.may_become(Status.ACKED):  # any word on a command acknowledges it
        _acknowledge(scope, command)
    elif scope.rules.extend_on_progress:
        scope.advance(command, command.extend, scope.draft.now)
    fields: dict[str, str | bytes] = {"progress_at": scope.draft.at}
    if response.payload.percent is not None:
        fields["percent"] = format(response.payload.percent, "g")
    if response.payload.note is not None:
        fields["note"] = clip(response.payload.note)
    scope.add(fx.SaveCommand(command.command_id, fields))
    return None


# A command on which its agent reports was taken: of a first attempt there is no copy left to be withdrawn.


def _result(scope: Scope, agent: Agent, response: m.Result, raw: bytes) -> Fault | None:
    command = _command_of(scope, agent, response, raw)
    if command is None or not command.open:
        return _no_command(scope, command, response.command_id)
    result = encode(response.payload)
    kept: dict[str, str | bytes]
    if len(result) <= scope.rules.max_result_bytes:
        kept = {"result": result}
    else:
        kept = {"result_digest": digest(result), "result_size": str(len(result))}
    scope.add(fx.SaveCommand(command.command_id, kept))
    refusal = None
    if command.target is not None:
        refusal = scope.declare(agent, command.target, by="operator", context=response.payload)
    scope.decision.outcome = "applied"
    if refusal is not None:
        scope.end_command(command, Status.FAILED, code=refusal.code, reason=refusal.message)
        return scope.refuse_transition(agent, refusal)
    scope.end_command(command, Status.SUCCEEDED, withdraw=command.attempt > 1)
    return None


def _error(scope: Scope, agent: Agent, response: m.Error, raw: bytes) -> Fault | None:
    code, message = clip(response.payload.code), clip(response.payload.message or response.payload.code)
    if response.command_id is None:
        scope.record("agent_error", agent_id=agent.agent_id, code=code, reason=message)
        scope.trouble(code, message, agent_id=agent.agent_id)
        return None
    command = _command_of(scope, agent, response, raw)
    if command is None or not command.open:
        return _no_command(scope, command, response.command_id)
    if response.payload.retryable and agent.acks:
        rules = scope.rules
        if command.place == "queued":  # it has failed with a copy of it in its list still
            scope.add(fx.WithdrawCommand(agent.agent_id, command.command_id))
        scope.advance(
            command, command.retry, scope.draft.now, rules.backoff_initial_s, rules.backoff_max_s, failed=True
        )
        scope.tell_command(command, "retried", code=code, reason=message)
        return None
    scope.end_command(command, Status.FAILED, withdraw=command.attempt > 1, code=code, reason=message)
    scope.trouble(code, message, agent_id=agent.agent_id, command_id=command.command_id)
    return None


# --- the rest ---------------------------------------------------------------------------------------------------------


def _message(scope: Scope, agent: Agent, response: m.Message, raw: bytes) -> Fault | None:
    payload = response.payload
    recipient = scope.draft.agent(payload.to)
    if recipient is None:
        reason = f"there is no agent {payload.to} to send a message to"
        scope.bury("unknown_recipient", reason, raw, source=SOURCE, agent_id=agent.agent_id)
        return Fault("message_refused", "unknown_recipient", reason)
    return mail.send(scope, agent, recipient, response, response.id or digest(raw).partition(":")[0])


_HANDLERS: Final[dict[type, Handler]] = {
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
