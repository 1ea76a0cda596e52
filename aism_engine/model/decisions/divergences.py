"""What a divergence comes to: it is opened once, told of, and closed once. Nothing else changes by it."""

from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from aism_engine.clock import from_iso
from aism_engine.model import effects as fx
from aism_engine.model.agent import Agent
from aism_engine.model.clocks import Beats
from aism_engine.model.decisions.common import Decision, Scope
from aism_engine.model.divergence import Finding, Refuted, View, news
from aism_engine.model.draft import Draft
from aism_engine.model.evidence import Deeds, Divergence
from aism_engine.model.rules import Rules


class Sight(Struct, frozen=True):
    """How much of the fleet we have seen when agents are judged: see `View`."""

    heard_until: float
    watched_from: float


def view_of(agent: Agent, deeds: Deeds, sight: Sight, beats: Beats | None) -> View:
    """Put together what is known of an agent."""
    return View(agent=agent, deeds=deeds, heard_until=sight.heard_until, watched_from=sight.watched_from, beats=beats)


def decide_divergences(draft: Draft, rules: Rules, agent_id: str, sight: Sight, beats: Beats | None) -> Decision:
    """Open and close what has to be, of one agent."""
    decision = Decision("divergence", "unchanged")
    agent = draft.agent(agent_id)
    if agent is None:
        return decision
    scope = Scope(draft, rules, decision, "engine")
    found = dict(news(view_of(agent, draft.deeds(agent_id), sight, beats), rules.divergence))
    for rule, judgement in sorted(found.items()):
        if isinstance(judgement, Finding):
            _open(scope, agent, rule, judgement)
        else:
            _close(scope, agent, rule, judgement)
    if found:
        decision.outcome = "applied"
        scope.add(fx.SaveAgent(agent_id, {"divergences": agent.record()["divergences"]}))
    return decision


def _open(scope: Scope, agent: Agent, rule: str, finding: Finding) -> None:
    divergence = Divergence(since=scope.draft.at, **asdict(finding))
    agent.divergences = agent.divergences | {rule: divergence}
    details = asdict(divergence)
    del details["reason"]
    scope.record(
        "divergence_opened",
        agent_id=agent.agent_id,
        type=agent.type,
        code=rule,
        reason=finding.reason,
        details=details,
    )
    _tell(scope, agent, finding.reason, {"rule": rule, "status": "opened", "type": agent.type, **details})


def _close(scope: Scope, agent: Agent, rule: str, refuted: Refuted) -> None:
    since = agent.divergences[rule].since
    agent.divergences = {name: each for name, each in agent.divergences.items() if name != rule}
    details = {"since": since, "lasted_s": round(scope.draft.now - from_iso(since), 1)}
    scope.record(
        "divergence_closed",
        agent_id=agent.agent_id,
        type=agent.type,
        code=rule,
        reason=refuted.reason,
        details=details,
    )
    _tell(scope, agent, refuted.reason, {"rule": rule, "status": "closed", "type": agent.type, **details})


def _tell(scope: Scope, agent: Agent, message: str, details: dict[str, Any]) -> None:
    scope.trouble("divergence", message, agent_id=agent.agent_id, details=details)
