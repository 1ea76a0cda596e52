"""State changes of agents: declared by the agent, forced by the engine, or refused by the state machine."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from aism_engine.clock import ROUNDING_S
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import NO_CONTEXT, AgentRecord
from aism_engine.domain.commands.command import Status
from aism_engine.domain.commands.command_index import NO_COMMANDS
from aism_engine.domain.commands.lifecycle import end_command, find_command
from aism_engine.domain.decision import DecisionContext, ErrorReply, agent_decision, transition_error
from aism_engine.domain.machines import state_rules
from aism_engine.domain.machines.machine import Refusal
from aism_engine.domain.mail import release_mail
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest, truncate_reason
from aism_engine.durations import format_duration

_CONTEXT_BYTES: Final = 4096
"""Largest context of a transition that is kept: an arbitrary number. A larger one is kept as digest and size."""
_CONTEXT_CONTAINERS: Final = 500
"""Largest number of lists and objects in a context that is kept. It limits the nesting, so that readers can decode it.

Python allows a nesting of 1,000, less the depth of the call stack. The stack is deeper when a new leader loads the
record than when a decision writes it.
"""
_JITTER_S: Final = 0.5
"""Two readings of the server's time may be out of order by this much."""


class StateChange(Struct, frozen=True, omit_defaults=True, gc=False):
    """The event on `aism:events:state_changes`. The first four fields are fixed by the protocol."""

    agent_id: str
    old_state: str
    new_state: str
    timestamp: str
    source: str
    cause: str | None = None


def change_state(
    ctx: DecisionContext,
    agent: AgentRecord,
    state: str,
    source: str,
    *,
    reason: str | None = None,
    context: dict[str, Any] | None = None,
) -> None:
    """Move the agent to a state, without a check."""
    draft, policy, add, cause = ctx.draft, ctx.policy, ctx.add, ctx.cause
    agent_id, old_state, at = agent.agent_id, agent.state, draft.at
    agent.state, agent.since, agent.reason, agent.context, details = state, draft.now, reason or "", NO_CONTEXT, None
    if context:
        agent.context, details = _kept_context(context)
    if old_state in policy.divergence.distill_states:
        draft.activity(agent_id).clear_context()
    state_rules.apply_state_rules(ctx, agent, old_state)
    add(fx.SaveAgent(agent))
    add(fx.SetState(agent_id, state))
    fact = fx.Fact(
        event="state_changed",
        at=at,
        by=ctx.by,
        agent_id=agent_id,
        cause=cause,
        old_state=old_state,
        new_state=state,
        source=source,
        reason=reason,
        details=details,
    )
    add(fact)
    if policy.protocol.publish_events:
        add(fx.Publish("state_changes", StateChange(agent_id, old_state, state, at, "engine", cause)))
    if agent.mail_waiting:
        release_mail(ctx, agent)
    if source != "lost" and (command_ids := draft.commands_of(agent_id)) is not NO_COMMANDS:
        _complete_transitions(ctx, agent, command_ids)


def enter(ctx: DecisionContext, agent: AgentRecord, state: str | None, source: str) -> None:
    """Move the agent to the state that its machine names for an event, if any. Its record is written in any case."""
    if state is None or state == agent.state:
        ctx.add(fx.SaveAgent(agent))
    else:
        change_state(ctx, agent, state, source)


def _complete_transitions(ctx: DecisionContext, agent: AgentRecord, command_ids: Iterable[str]) -> None:
    """End the sent commands that asked the agent to enter its current state."""
    for command_id in command_ids:
        command = ctx.draft.command(command_id)
        if command is not None and command.target == agent.state and command.was_sent:
            end_command(ctx, command, Status.SUCCEEDED)


def _kept_context(context: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is kept of the context of a transition: in the agent's record, and in the details of the fact."""
    encoded = encode(context)
    containers = encoded.count(b"[") + encoded.count(b"{")
    if len(encoded) <= _CONTEXT_BYTES and containers <= _CONTEXT_CONTAINERS:
        return context, {"context": context}
    return {}, {"context_digest": message_digest(encoded), "context_size": len(encoded)}


def declare(
    ctx: DecisionContext,
    agent: AgentRecord,
    target: str,
    *,
    by: fx.Actor = "agent",
    context: dict[str, Any] | None = None,
    reason: str | None = None,
) -> Refusal | None:
    """Record the state that an agent declares, and move it there if its machine allows that; else return the refusal.

    `by` is the actor who asked for the transition.
    """
    agent.declared, agent.declared_at, agent.declared_via = target, ctx.draft.now, ctx.via
    machine, state = ctx.machine(agent), agent.state
    if machine.allows(state, target):
        refusal = None
    else:
        refusal = machine.check(state, target, state_rules.transition_case(ctx, agent, by, context or NO_CONTEXT))
    if refusal is None and target != state:
        change_state(ctx, agent, target, "agent", reason=reason, context=context)
    else:
        ctx.decision.outcome = "unchanged"
        ctx.add(fx.SaveAgent(agent))
    return refusal


def refuse(ctx: DecisionContext, agent: AgentRecord, refusal: Refusal) -> ErrorReply:
    """Record and publish why a transition is refused. The state does not change."""
    ctx.decision.outcome, ctx.decision.code = "refused", refusal.code
    reply = transition_error(refusal)
    ctx.record(
        "transition_refused",
        agent_id=agent.agent_id,
        old_state=refusal.current,
        new_state=refusal.requested,
        code=refusal.code,
        reason=refusal.message,
    )
    ctx.publish_error(refusal.code, refusal.message, agent_id=agent.agent_id, details=reply.details)
    return reply


def end_stay(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Report that an agent has stayed in its state for `max_stay`, and move it if its machine names a next state."""
    machine = ctx.machine(agent)
    state = machine.state(agent.state)
    until = state_rules.stay_end(state, agent)
    if not until or ctx.draft.now < until - ROUNDING_S:
        ctx.decision.outcome = "unchanged"
        agent.stay_until = -1.0  # differs from every deadline: the deadline is written even if it has not changed
        state_rules.set_stay_deadline(ctx, agent, until)
        return
    reason = f"in {agent.state} for longer than {format_duration(state.max_stay)}"
    ctx.record("stay_exceeded", agent_id=agent.agent_id, old_state=agent.state, reason=reason)
    ctx.publish_error("stay_exceeded", reason, agent_id=agent.agent_id)
    if not state.after_max_stay:
        state_rules.set_stay_deadline(ctx, agent, 0.0)
        return
    case = state_rules.transition_case(ctx, agent, "engine", None)
    refusal = machine.check(agent.state, state.after_max_stay, case)
    if refusal is None:
        change_state(ctx, agent, state.after_max_stay, "max_stay", reason=reason)
    else:
        refuse(ctx, agent, refusal)
        state_rules.set_stay_deadline(ctx, agent, ctx.draft.now + state.max_stay)  # the engine tries again then


def state_transition(
    ctx: DecisionContext, agent: AgentRecord, response: m.StateTransition, raw: bytes
) -> ErrorReply | None:
    """Change the state of an agent as it declares, and end the command that the response names, if any.

    The declaration counts even if the command has already ended.
    """
    command = None
    if response.command_id is not None:
        found = find_command(ctx, agent, response, raw)
        if isinstance(found, ErrorReply):
            return found
        command = found
    payload = response.payload
    by: fx.Actor = "operator" if command is not None and command.target == payload.target else "agent"
    reason = None if payload.reason is None else truncate_reason(payload.reason)
    refusal = declare(ctx, agent, payload.target, by=by, context=payload.context, reason=reason)
    if refusal is not None:
        reply = refuse(ctx, agent, refusal)
        if command is not None:
            end_command(ctx, command, Status.FAILED, code=refusal.code, reason=refusal.message)
        return reply
    if command is not None:
        end_command(ctx, command, Status.SUCCEEDED)
    return None


@agent_decision("snapshot")
def decide_snapshot(ctx: DecisionContext, agent: AgentRecord, read_at: float) -> None:
    """Apply what an agent wrote to its own keys, as read at `read_at`.

    The type of a registered agent is the one it registered with. A state that the agent wrote is a declaration: a state
    that the machine does not allow is overwritten. A snapshot from before the engine's latest change is ignored.
    """
    agent_id, seen = agent.agent_id, ctx.draft.lookups.snapshots.get(agent.agent_id)
    if seen is not None and not seen.is_recorded:
        _repair_record(ctx, agent)
    if seen is None or max(agent.since, agent.declared_at, agent.first_seen_at) > read_at - _JITTER_S:
        return
    agent_type = agent.type if agent.registered or seen.type is None else seen.type
    if agent.registered and not seen.has_metadata:  # somebody has deleted the metadata
        save_metadata(ctx, agent)
    elif (agent_type, seen.labels) != (agent.type, agent.labels):
        agent.type, agent.labels = agent_type, seen.labels
        ctx.add(fx.SaveAgent(agent))
        ctx.record("metadata_changed", agent_id=agent_id, type=agent_type, details={"labels": seen.labels})
    if seen.state is None:
        ctx.add(fx.SetState(agent_id, agent.state))  # somebody has deleted the key
    elif seen.state != agent.state:
        ctx.via = "key"
        refusal = declare(ctx, agent, seen.state)
        if refusal is not None:
            refuse(ctx, agent, refusal)
            ctx.add(fx.SetState(agent_id, agent.state))


def _repair_record(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Write a deleted record again, from memory. Another client or an eviction by the server has deleted it."""
    reason = "its record or its entry in the index was missing, and was written again"
    ctx.add(fx.IndexAgent(agent.agent_id))
    ctx.add(fx.SaveAgent(agent))
    ctx.record("agent_repaired", agent_id=agent.agent_id, reason=reason)
    ctx.publish_error("record_missing", reason, agent_id=agent.agent_id)


def save_metadata(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Write the metadata of a registered agent."""
    labels, capabilities = (encode(value).decode() for value in (agent.labels, agent.capabilities))
    metadata = {"type": agent.type, "labels": labels, "capabilities": capabilities, "codec": agent.codec}
    ctx.add(fx.SaveMetadata(agent.agent_id, {**metadata, "registered_at": ctx.draft.at}))


@agent_decision("state_repair")
def decide_state_repair(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Repair what contradicts the machine after a reload: an unknown state, `waits_for`, or the deadline of a stay."""
    if not state_rules.needs_repair(ctx.policy, agent, ctx.draft.now):
        return
    machine = ctx.machine(agent)
    if machine.knows(agent.state):
        state_rules.apply_state_rules(ctx, agent)
        ctx.add(fx.SaveAgent(agent))
    else:
        reason = f"machine {machine.name} has no state {agent.state}"
        ctx.publish_error("state_unknown", reason, agent_id=agent.agent_id)
        change_state(ctx, agent, machine.on_unknown, "machine", reason=reason)
