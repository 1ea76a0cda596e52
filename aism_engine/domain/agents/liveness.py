"""Decisions on liveness: an agent's first heartbeat, its silence, its loss, its goodbye and its return.

silence.py finds the agents that are silent for too long; `decide_lost` declares them lost.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import ABSENT, AgentRecord, Liveness
from aism_engine.domain.agents.membership import admit
from aism_engine.domain.agents.state_changes import enter
from aism_engine.domain.commands.command import Status
from aism_engine.domain.commands.lifecycle import stop_command
from aism_engine.domain.decision import Decision, DecisionContext, agent_decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.machines.state_rules import state_on_return
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.text import truncate_reason


def decide_first_heartbeat(draft: Draft, policy: Policy, agent_id: str, scores: Mapping[str, float]) -> Decision:
    """Add an agent that is known only by its heartbeat, or begin to watch a known one: it is fresh from now on.

    The score of an agent that has left is recorded: a different one brings the agent back.
    """
    decision = Decision("first_heartbeat")
    ctx = DecisionContext(draft, policy, decision, "engine")
    agent = draft.agent(agent_id)
    if agent is None:
        admit(ctx, agent_id, "heartbeat")
        draft.note_message(agent_id, None)
    elif agent.liveness is Liveness.UNKNOWN:
        agent.liveness = Liveness.FRESH
        draft.note_message(agent_id, None)
        ctx.add(fx.SaveAgent(agent))
    elif agent.awaits_heartbeat:
        agent.lost_score = repr(scores[agent_id])
        ctx.add(fx.SaveAgent(agent))
    decision.outcome = "applied" if decision.effects else "unchanged"
    return decision


@agent_decision("heartbeat_removed")
def decide_heartbeat_removed(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Stop watching an agent whose heartbeat somebody has removed. Its next heartbeat counts as its first."""
    if agent.liveness is Liveness.FRESH:
        agent.liveness = Liveness.UNKNOWN
        ctx.add(fx.SaveAgent(agent))


def decide_silent(draft: Draft, since: Mapping[str, float], no_longer: Iterable[str]) -> Decision:
    """Update the list of silent agents, which is neither part of their records nor audited."""
    removed = list(no_longer)
    draft.silences.update(since)
    draft.silences.update(dict.fromkeys(removed))
    return Decision("silent", effects=[fx.SaveSilent(dict(since), removed)])


@agent_decision("lost")
def decide_lost(ctx: DecisionContext, agent: AgentRecord, score: float, silent_s: float) -> None:
    """Declare an agent lost, on condition that its heartbeat still has this score."""
    if agent.liveness in ABSENT:
        return
    ctx.add(fx.ExpectScore(agent.agent_id, score))
    agent.liveness, agent.lost_from, agent.lost_score, agent.lost_at = (
        Liveness.LOST,
        agent.state,
        repr(score),
        ctx.draft.now,
    )
    for command_id in ctx.draft.commands_of(agent.agent_id):
        if (command := ctx.draft.command(command_id)) is not None and command.on_lost == "fail":
            stop_command(ctx, command, Status.FAILED, code="agent_lost", reason="its agent was lost")
    reason = f"silent for {silent_s:.1f} s"
    ctx.record("agent_lost", agent_id=agent.agent_id, old_state=agent.state, reason=reason)
    ctx.publish_error("agent_lost", reason, agent_id=agent.agent_id)
    enter(ctx, agent, ctx.machine(agent).on_lost, "lost")


def confirm_losses(ctx: DecisionContext, request: m.ConfirmLosses, _raw: bytes) -> dict[str, Any]:
    """Accept an operator's confirmation that the agents which are silent now are gone: no brake delays their losses."""
    ctx.draft.losses_confirmed = True
    reason = truncate_reason(request.payload.reason)
    ctx.record("losses_confirmed", reason=reason, details={"silent": ctx.draft.silent_count})
    return {"ok": True, "silent": ctx.draft.silent_count}


def goodbye(ctx: DecisionContext, agent: AgentRecord, response: m.Goodbye, _raw: bytes) -> None:
    agent.reset_liveness(Liveness.LEFT)  # this also clears an earlier loss
    ctx.record("agent_left", agent_id=agent.agent_id, reason=truncate_reason(response.payload.reason))
    enter(ctx, agent, ctx.machine(agent).on_goodbye, "goodbye")


@agent_decision("returned")
def decide_returned(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Bring back a lost agent, or one that has left, whose heartbeat has changed since."""
    if agent.lost_score is not None:
        ctx.draft.note_message(agent.agent_id, None)
        mark_returned(ctx, agent)


def mark_returned(ctx: DecisionContext, agent: AgentRecord) -> None:
    """End the absence of an agent that gives a sign of life. A lost one also changes to its machine's return state."""
    state = state_on_return(ctx, agent) if agent.liveness is Liveness.LOST else agent.state
    agent.reset_liveness()
    ctx.record("agent_returned", agent_id=agent.agent_id)
    enter(ctx, agent, state, "return")
