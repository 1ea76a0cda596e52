"""What a request to many means for one of them."""

from typing import Any

from msgspec import Struct

from aism_engine.model import messages as m
from aism_engine.model.decisions.common import Decision, Scope
from aism_engine.model.decisions.controls import cancel_command, hold_agent
from aism_engine.model.decisions.faults import Fault
from aism_engine.model.decisions.sending import accept, child_id, find_agent
from aism_engine.model.draft import Draft
from aism_engine.model.rules import Rules


class Errand(Struct, frozen=True, kw_only=True):
    """One target of a request to many, as it waits in the errands."""

    group_id: m.Identifier
    agent_id: m.Identifier | None = None
    command_id: m.Identifier | None = None


def decide_errand(draft: Draft, rules: Rules, errand: Errand, request: m.Request | None) -> Decision:
    """Decide on one target, as on a request that means it alone. `request` is none where its record has gone."""
    decision = Decision("errand")
    scope = Scope(draft, rules, decision, "operator", errand.group_id)
    group = draft.group(errand.group_id)
    if group is None or request is None:
        decision.outcome = "late"
        return decision
    if group.stopped:
        decision.outcome, decision.code = "refused", "cancelled"
        scope.count(errand.group_id, "cancelled")
        return decision
    reply = _do(scope, errand, request)
    if isinstance(reply, Fault):
        refuse_errand(scope, errand, reply.code, reply.message)
    elif not isinstance(request, m.Send):  # a command is counted at its end
        scope.count(errand.group_id, "succeeded")
    return decision


def refuse_errand(scope: Scope, errand: Errand, code: str, reason: str) -> None:
    """Count a target that it can't be done for; the others go on."""
    scope.decision.outcome, scope.decision.code = "refused", code
    scope.record("target_refused", agent_id=errand.agent_id, command_id=errand.command_id, code=code, reason=reason)
    scope.count(errand.group_id, "refused")


def _do(scope: Scope, errand: Errand, request: m.Request) -> dict[str, Any] | Fault:
    match request:
        case m.Send() if errand.agent_id is not None:
            agent = find_agent(scope, errand.agent_id)
            if isinstance(agent, Fault):
                return agent
            return accept(scope, child_id(request.id, agent.agent_id), agent, request, errand.group_id)
        case m.Pause() | m.Drain() | m.Resume() if errand.agent_id is not None:
            return hold_agent(scope, request, errand.agent_id)
        case m.Cancel() if errand.command_id is not None:
            return cancel_command(scope, request, errand.command_id)
    return Fault("request_refused", "internal_error", f"a {request.kind} has no targets")
