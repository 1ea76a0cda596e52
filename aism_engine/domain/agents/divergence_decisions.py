"""What a divergence comes to: it is opened once, told of, and closed once. Nothing else changes by it."""

from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from aism_engine.clock import from_iso
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.activity import Activity, Divergence
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.agents.divergence import AgentObservation, Consistent, Diverged, changes
from aism_engine.domain.agents.heartbeats import AbsentHeartbeat
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy


class ObservationWindow(Struct, frozen=True):
    """How much of the fleet we have seen when agents are judged: see `View`."""

    heard_until: float
    watched_from: float


def view_of(
    agent: AgentRecord, activity: Activity, sight: ObservationWindow, beats: AbsentHeartbeat | None
) -> AgentObservation:
    """Put together what is known of an agent."""
    return AgentObservation(
        agent=agent, activity=activity, heard_until=sight.heard_until, watched_from=sight.watched_from, beats=beats
    )


def decide_divergences(
    draft: Draft, policy: Policy, agent_id: str, sight: ObservationWindow, beats: AbsentHeartbeat | None
) -> Decision:
    """Open and close what has to be, of one agent."""
    decision = Decision("divergence", "unchanged")
    agent = draft.agent(agent_id)
    if agent is None:
        return decision
    ctx = DecisionContext(draft, policy, decision, "engine")
    found = dict(changes(view_of(agent, draft.activity(agent_id), sight, beats), policy.divergence))
    for rule, judgement in sorted(found.items()):
        if isinstance(judgement, Diverged):
            _open(ctx, agent, rule, judgement)
        else:
            _close(ctx, agent, rule, judgement)
    if found:
        decision.outcome = "applied"
        ctx.add(fx.SaveAgent(agent_id, agent.fields("divergences")))
    return decision


def _open(ctx: DecisionContext, agent: AgentRecord, rule: str, finding: Diverged) -> None:
    divergence = Divergence(since=ctx.draft.at, **asdict(finding))
    agent.divergences = agent.divergences | {rule: divergence}
    details = asdict(divergence)
    del details["reason"]
    ctx.record(
        "divergence_opened",
        agent_id=agent.agent_id,
        type=agent.type,
        code=rule,
        reason=finding.reason,
        details=details,
    )
    _tell(ctx, agent, finding.reason, {"rule": rule, "status": "opened", "type": agent.type, **details})


def _close(ctx: DecisionContext, agent: AgentRecord, rule: str, refuted: Consistent) -> None:
    since = agent.divergences[rule].since
    agent.divergences = {name: each for name, each in agent.divergences.items() if name != rule}
    details = {"since": since, "lasted_s": round(ctx.draft.now - from_iso(since), 1)}
    ctx.record(
        "divergence_closed",
        agent_id=agent.agent_id,
        type=agent.type,
        code=rule,
        reason=refuted.reason,
        details=details,
    )
    _tell(ctx, agent, refuted.reason, {"rule": rule, "status": "closed", "type": agent.type, **details})


def _tell(ctx: DecisionContext, agent: AgentRecord, message: str, details: dict[str, Any]) -> None:
    ctx.publish_error("divergence", message, agent_id=agent.agent_id, details=details)
