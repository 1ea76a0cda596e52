"""Membership of the fleet: how agents are admitted, register, and are forgotten."""

from typing import Any

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import ABSENT, AgentRecord, AgentSnapshot, Liveness
from aism_engine.domain.agents.state_changes import change_state, save_metadata
from aism_engine.domain.commands.command import Status
from aism_engine.domain.commands.lifecycle import end_command
from aism_engine.domain.commands.retry import release_taken
from aism_engine.domain.decision import DecisionContext, ErrorReply, agent_decision
from aism_engine.domain.machines.state_rules import apply_state_rules, set_stay_deadline
from aism_engine.domain.policy import AdmissionWay
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.text import truncate_reason


def admit(
    ctx: DecisionContext,
    agent_id: str,
    way: AdmissionWay,
    *,
    error_type: str = "admission_refused",
    registering_as: str | None = None,
) -> AgentRecord | ErrorReply:
    """Add an agent to the fleet, with the type, labels and state that it has written to Redis itself.

    `registering_as` is the type that a registration names, otherwise None. Without a registration, the setting
    `agents.auto_register` decides whether the agent is added. A full fleet admits nobody. `error_type` is the type of
    the error reply.
    """
    draft, limits = ctx.draft, ctx.policy.agents
    seen = draft.lookups.snapshots.get(agent_id) or AgentSnapshot()
    admitted = limits.admits_by(way) or (seen.score is not None and limits.admits_by("heartbeat"))
    if not admitted and registering_as is None:
        message = f"{agent_id} has not registered, and agents.auto_register does not allow the way `{way}`"
        return ErrorReply(error_type, "unknown_agent", message)
    if draft.size >= limits.max_agents:
        message = f"the fleet is full: agents.max_agents = {limits.max_agents}"
        return ErrorReply(error_type, "fleet_full", message)
    agent = AgentRecord(
        agent_id=agent_id,
        type=seen.type or "unknown",
        labels=seen.labels,
        state=ctx.policy.machines.for_type(registering_as).initial if seen.state is None else seen.state,
        since=draft.now,
        liveness=Liveness.UNKNOWN if seen.score is None else Liveness.FRESH,
        first_seen_at=draft.now,
    )
    draft.add_agent(agent)
    apply_state_rules(ctx, agent)
    ctx.add(fx.IndexAgent(agent_id))
    ctx.add(fx.SaveAgent(agent))
    if seen.state is None:
        ctx.add(fx.SetState(agent_id, agent.state))
    ctx.record("agent_first_seen", agent_id=agent_id, type=agent.type, new_state=agent.state)
    return agent


def register(ctx: DecisionContext, agent: AgentRecord, response: m.Register, _raw: bytes) -> None:
    """Apply a registration: a new process of the agent has started, so the earlier declaration is cleared."""
    payload, instance = response.payload, response.instance or ""
    restarted = "" not in {agent.instance, instance} and agent.instance != instance
    agent.instance = instance
    agent.type = payload.type
    agent.registered = True
    agent.labels = payload.labels
    agent.capabilities = tuple(payload.capabilities)
    agent.codec = payload.codec
    agent.declared, agent.declared_at, agent.declared_via = None, ctx.draft.now, None
    if agent.liveness in ABSENT:
        agent.reset_liveness()
    machine = ctx.machine(agent)
    ctx.add(fx.SaveAgent(agent))
    save_metadata(ctx, agent)
    details = {"machine": machine.name, "version": machine.version}
    ctx.record("agent_registered", agent_id=agent.agent_id, type=agent.type, details=details)
    target = machine.on_register
    if target is None and not machine.knows(agent.state):
        target = machine.on_unknown  # the agent was in a state of another machine
    if target is not None and target != agent.state:
        change_state(ctx, agent, target, "register")
    else:
        apply_state_rules(ctx, agent)  # the machine may be another than before
    if restarted:
        release_taken(ctx, agent)


def forget(ctx: DecisionContext, request: m.Forget, _raw: bytes) -> dict[str, Any] | ErrorReply:
    agent_id = request.payload.agent_id
    agent = ctx.draft.agent(agent_id)
    if agent is None:
        return ErrorReply("forget_refused", "unknown_agent", f"there is no agent {agent_id}")
    forget_agent(ctx, agent, truncate_reason(request.payload.reason))
    return {"ok": True, "agent_id": agent_id}


@agent_decision("expired_agent")
def decide_expired_agent(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Forget an agent that is not fresh and gave no sign of life for `retention.absent_agent_ttl`."""
    if agent.liveness is not Liveness.FRESH:
        forget_agent(ctx, agent, "no sign of life for longer than retention.absent_agent_ttl")


def forget_agent(ctx: DecisionContext, agent: AgentRecord, reason: str | None) -> None:
    """Delete everything that is kept about an agent, and cancel its open commands."""
    ended = {"code": "agent_forgotten", "reason": "its agent was forgotten"}
    for command_id in ctx.draft.commands_of(agent.agent_id):
        if command := ctx.draft.command(command_id):
            end_command(ctx, command, Status.CANCELLED, withdraw_queued=False, **ended)
    set_stay_deadline(ctx, agent, 0.0)
    ctx.draft.remove_agent(agent.agent_id)
    ctx.add(fx.ForgetAgent(agent.agent_id))
    ctx.record("agent_forgotten", agent_id=agent.agent_id, old_state=agent.state, reason=reason)
