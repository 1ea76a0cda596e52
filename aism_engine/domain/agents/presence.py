"""Decisions on an agent's presence: its first heartbeat, its loss and return, its own keys, and its expiry."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import ABSENT, AgentRecord, Liveness
from aism_engine.domain.agents.membership import admit, forget_agent
from aism_engine.domain.agents.transitions import change_state, declare, mark_returned, refuse
from aism_engine.domain.commands.command import Status
from aism_engine.domain.commands.lifecycle import end_command
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.machines.state_rules import apply_state_rules, needs_repair
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.text import truncate

_JITTER_S: Final = 0.5
"""Two readings of the server's time may be out of order by this much."""


def decide_first_heartbeat(draft: Draft, policy: Policy, agent_id: str, scores: Mapping[str, float]) -> Decision:
    """Add an agent that is known only by its heartbeat, or begin to watch a known one.

    The score of an agent that has left is recorded: a different one brings the agent back.
    """
    decision = Decision("first_heartbeat", "unchanged")
    ctx = DecisionContext(draft, policy, decision, "engine")
    agent = draft.agent(agent_id)
    if agent is None:
        if isinstance(admit(ctx, agent_id), AgentRecord):
            decision.outcome = "applied"
        return decision
    if agent.liveness is Liveness.UNKNOWN:
        agent.liveness = Liveness.FRESH
    elif agent.liveness is Liveness.LEFT and agent.lost_score is None:
        agent.lost_score = scores[agent_id]
    else:
        return decision
    ctx.add(fx.SaveAgent(agent_id, agent.absence()))
    decision.outcome = "applied"
    return decision


def decide_heartbeat_removed(draft: Draft, policy: Policy, agent_id: str) -> Decision:
    """Stop watching an agent whose heartbeat somebody has removed. Its next heartbeat counts as its first."""
    decision = Decision("heartbeat_removed", "unchanged")
    agent = draft.agent(agent_id)
    if agent is not None and agent.liveness is Liveness.FRESH:
        agent.liveness = Liveness.UNKNOWN
        DecisionContext(draft, policy, decision, "engine").add(fx.SaveAgent(agent_id, agent.absence()))
        decision.outcome = "applied"
    return decision


def decide_lost(draft: Draft, policy: Policy, agent_id: str, score: float, silent_s: float) -> Decision:
    """Mark an agent as lost, on condition that its heartbeat still has this score."""
    decision = Decision("lost")
    ctx = DecisionContext(draft, policy, decision, "engine")
    agent = draft.agent(agent_id)
    if agent is None or agent.liveness in ABSENT:
        decision.outcome = "unchanged"
        return decision
    ctx.add(fx.ExpectScore(agent_id, score))
    agent.liveness, agent.lost_from, agent.lost_score, agent.lost_at = Liveness.LOST, agent.state, score, draft.now
    fields = agent.absence()
    for command_id in agent.open_commands:
        if (command := draft.command(command_id)) is not None and command.on_lost == "fail":
            end_command(ctx, command, Status.FAILED, code="agent_lost", reason="its agent was lost")
    reason = f"silent for {silent_s:.1f} s"
    ctx.record("agent_lost", agent_id=agent_id, old_state=agent.state, reason=reason)
    ctx.publish_error("agent_lost", reason, agent_id=agent_id)
    target = ctx.machine(agent).on_lost
    if target is not None and target != agent.state:
        change_state(ctx, agent, target, "lost", fields)
    else:
        ctx.add(fx.SaveAgent(agent_id, fields))
    return decision


def decide_silent(draft: Draft, since: Mapping[str, float], no_longer: Iterable[str]) -> Decision:
    """Update the list of silent agents, which is neither part of their records nor audited."""
    removed = list(no_longer)
    for agent_id, at in since.items():
        draft.set_silent(agent_id, at)
    for agent_id in removed:
        draft.set_silent(agent_id, None)
    return Decision("silent", effects=[fx.SaveSilent(dict(since), removed)])


def confirm_losses(ctx: DecisionContext, request: m.ConfirmLosses, _raw: bytes) -> dict[str, Any]:
    """Accept an operator's confirmation that the agents which are silent now are gone: no brake delays their losses."""
    ctx.draft.confirm_losses()
    reason = truncate(request.payload.reason or "") or None
    ctx.record("losses_confirmed", reason=reason, details={"silent": ctx.draft.silent_count})
    return {"ok": True, "silent": ctx.draft.silent_count}


def decide_returned(draft: Draft, policy: Policy, agent_id: str) -> Decision:
    """Bring back a lost agent, or one that has left, whose heartbeat has changed since."""
    decision = Decision("returned")
    agent = draft.agent(agent_id)
    if agent is None or agent.lost_score is None:
        decision.outcome = "unchanged"
        return decision
    mark_returned(DecisionContext(draft, policy, decision, "engine"), agent)
    return decision


def decide_snapshot(draft: Draft, policy: Policy, agent_id: str, read_at: float) -> Decision:
    """Apply what an agent wrote to its own keys, as read at `read_at`.

    The type of a registered agent is the one it registered with. A state that the agent wrote is a declaration: a state
    that the machine does not allow is overwritten. A snapshot from before the engine's latest change is ignored.
    """
    decision = Decision("snapshot", "unchanged")
    agent, seen = draft.agent(agent_id), draft.lookups.snapshots.get(agent_id)
    if agent is None or seen is None:
        return decision
    if max(agent.since, agent.declared_at, agent.first_seen_at) > read_at - _JITTER_S:
        return decision
    ctx = DecisionContext(draft, policy, decision, "engine")
    agent_type = agent.type if agent.registered or seen.type is None else seen.type
    if (agent_type, seen.labels) != (agent.type, agent.labels):
        agent.type, agent.labels = agent_type, seen.labels
        ctx.add(fx.SaveAgent(agent_id, agent.fields("type", "labels")))
        ctx.record("metadata_changed", agent_id=agent_id, type=agent_type, details={"labels": seen.labels})
        decision.outcome = "applied"
    if seen.state is None:
        ctx.add(fx.SetState(agent_id, agent.state))  # somebody has deleted the key
        decision.outcome = "applied"
    elif seen.state != agent.state:
        ctx.via = "key"
        refusal = declare(ctx, agent, seen.state)
        decision.outcome = "applied"
        if refusal is not None:
            refuse(ctx, agent, refusal)
            ctx.add(fx.SetState(agent_id, agent.state))
    return decision


def decide_expired_agent(draft: Draft, policy: Policy, agent_id: str) -> Decision:
    """Forget an agent that has been absent for `retention.absent_agent_ttl`: lost, left, or never watched."""
    decision = Decision("expired_agent")
    agent = draft.agent(agent_id)
    if agent is None or agent.liveness is Liveness.FRESH:
        decision.outcome = "unchanged"
        return decision
    reason = "absent for longer than retention.absent_agent_ttl"
    forget_agent(DecisionContext(draft, policy, decision, "engine"), agent, reason)
    return decision


def decide_state_repair(draft: Draft, policy: Policy, agent_id: str) -> Decision:
    """Repair what contradicts the machine after a reload: an unknown state, `waits_for`, or the deadline of a stay."""
    decision = Decision("state_repair")
    agent = draft.agent(agent_id)
    if agent is None or not needs_repair(policy, agent, draft.now):
        decision.outcome = "unchanged"
        return decision
    ctx = DecisionContext(draft, policy, decision, "engine")
    machine = ctx.machine(agent)
    if machine.knows(agent.state):
        ctx.add(fx.SaveAgent(agent_id, apply_state_rules(ctx, agent)))
    else:
        reason = f"machine {machine.name} has no state {agent.state}"
        ctx.publish_error("state_unknown", reason, agent_id=agent_id)
        change_state(ctx, agent, machine.on_unknown, "machine", reason=reason)
    return decision
