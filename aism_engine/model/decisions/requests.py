"""What it means when an operator asks for something: whom it means, and whether it is allowed now."""

from collections.abc import Callable
from typing import Any, Final

from aism_engine.clock import iso
from aism_engine.model import effects as fx
from aism_engine.model import messages as m
from aism_engine.model.codec import MalformedError, encode
from aism_engine.model.commands import Command
from aism_engine.model.decisions.common import Decision, Fault, Rules, Scope, clip, transition_fault
from aism_engine.model.fleet import Agent, Draft
from aism_engine.model.machine import Refusal

SOURCE: Final = "request_queue"
_UNANSWERABLE: Final = frozenset({"wrong_type"})
"""Codes of requests whose very reply may be what cannot be written."""


def decide_request(draft: Draft, rules: Rules, request: m.Request, raw: bytes) -> Decision:
    """Decide on a request. Accepted means: what it asks for is committed with the reply that says so."""
    decision = Decision(request.kind)
    scope = Scope(draft, rules, decision, "operator", request.id)
    reply = _HANDLERS[type(request)](scope, request, raw)
    if isinstance(reply, Fault):
        decision.outcome, decision.code = "refused", reply.code
        scope.record("request_refused", type=request.kind, code=reply.code, reason=reply.message)
        reply = {"ok": False, "error": reply}
    if request.reply:
        scope.answer(None, request.id, reply)
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


def _send(scope: Scope, request: m.Send, _raw: bytes) -> dict[str, Any] | Fault:
    draft, rules, payload = scope.draft, scope.rules, request.payload
    accepted = {"ok": True, "command_id": request.id, "agent_id": payload.agent_id}
    if (known := draft.command(request.id)) is not None:  # asked before: the record is the proof
        scope.decision.outcome = "duplicate"
        return {**accepted, "agent_id": known.agent_id, "status": known.status}
    agent = _agent(scope, payload.agent_id)
    if isinstance(agent, Fault):
        return agent
    if len(agent.open_commands) >= rules.max_queued:
        message = f"{agent.agent_id} has {len(agent.open_commands)} open commands: commands.max_queued is reached"
        return Fault("send_refused", "queue_full", message, {"max_queued": rules.max_queued})
    target = None
    if payload.command.type == "state_transition":
        target = payload.command.payload.get("target")
        if not isinstance(target, str):
            return Fault(
                "send_refused", "invalid_message", "a state_transition needs the field `target` in its payload"
            )
        if (refusal := _check(scope, agent, target)) is not None:
            return transition_fault(refusal)
    expires_at = draft.now + (payload.options.ttl or rules.command_ttl_s)
    body = encode(
        m.Command(
            id=request.id,
            type=payload.command.type,
            payload=payload.command.payload,
            timestamp=draft.at,
            deadline=iso(expires_at) if payload.options.ttl is not None else None,
            traceparent=request.traceparent,
        ),
        agent.codec,
    )
    command = Command(
        command_id=request.id,
        agent_id=agent.agent_id,
        type=payload.command.type,
        target=target,
        accepted_at=draft.now,
        expires_at=expires_at,
    )
    draft.add_command(command)
    contents = {"payload": encode(payload.command.payload), "body": body}
    scope.add(fx.SaveCommand(request.id, {**command.record(), **contents}))
    scope.add(fx.PushCommand(agent.agent_id, body))
    scope.add(fx.SetDeadline(command.deadline, expires_at))
    scope.record("command_queued", agent_id=agent.agent_id, command_id=request.id, type=command.type)
    return {**accepted, "status": command.status}


def _check(scope: Scope, agent: Agent, target: str) -> Refusal | None:
    """Check a transition from where the agent is, or will be when the commands before this one are done."""
    machine = scope.machine(agent)
    refusal = machine.check(agent.state, target)
    pending = (scope.draft.command(command_id) for command_id in agent.open_commands)
    if refusal is None or any(c and c.target and machine.check(c.target, target) is None for c in pending):
        return None
    return refusal


def _agent(scope: Scope, agent_id: str) -> Agent | Fault:
    """Find the agent a request means; one that has left any trace in Redis is taken in."""
    agent = scope.draft.agent(agent_id)
    if agent is not None:
        return agent
    seen = scope.draft.lookups.sightings.get(agent_id)
    if seen is None or not seen.exists or not scope.rules.auto_register:
        message = f"there is no agent {agent_id}: it has never beaten, spoken or registered"
        return Fault("send_refused", "unknown_agent", message, suggestions=("aism-engine agents list",))
    if scope.draft.size >= scope.rules.max_agents:
        return Fault("send_refused", "fleet_full", f"the fleet is full: agents.max_agents = {scope.rules.max_agents}")
    return scope.take_in(agent_id)


def _forget(scope: Scope, request: m.Forget, _raw: bytes) -> dict[str, Any] | Fault:
    agent_id = request.payload.agent_id
    agent = scope.draft.agent(agent_id)
    if agent is None:
        return Fault("forget_refused", "unknown_agent", f"there is no agent {agent_id}")
    scope.forget(agent, clip(request.payload.reason or "") or None)
    return {"ok": True, "agent_id": agent_id}


_HANDLERS: Final[dict[type, Callable[..., dict[str, Any] | Fault]]] = {m.Send: _send, m.Forget: _forget}
