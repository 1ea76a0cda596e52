"""What a request to many means for one of them."""

from typing import Any

from msgspec import Struct

from aism_engine.domain.commands.accept import accept, child_id, find_agent
from aism_engine.domain.commands.holds import cancel_command, hold_agent
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m


class FanoutTarget(Struct, frozen=True, kw_only=True):
    """One target of a request to many, as it waits in the errands."""

    group_id: m.Identifier
    agent_id: m.Identifier | None = None
    command_id: m.Identifier | None = None


def decide_fanout_target(draft: Draft, policy: Policy, target: FanoutTarget, request: m.Request | None) -> Decision:
    """Decide on one target, as on a request that means it alone. `request` is none where its record has gone."""
    decision = Decision("fanout_target")
    ctx = DecisionContext(draft, policy, decision, "operator", target.group_id)
    group = draft.group(target.group_id)
    if group is None or request is None:
        decision.outcome = "late"
        return decision
    if group.stopped:
        decision.outcome, decision.code = "refused", "cancelled"
        ctx.count(target.group_id, "cancelled")
        return decision
    reply = _do(ctx, target, request)
    if isinstance(reply, ErrorReply):
        refuse_target(ctx, target, reply.code, reply.message)
    elif not isinstance(request, m.Send):  # a command is counted at its end
        ctx.count(target.group_id, "succeeded")
    return decision


def refuse_target(ctx: DecisionContext, target: FanoutTarget, code: str, reason: str) -> None:
    """Count a target that it can't be done for; the others go on."""
    ctx.decision.outcome, ctx.decision.code = "refused", code
    ctx.record("target_refused", agent_id=target.agent_id, command_id=target.command_id, code=code, reason=reason)
    ctx.count(target.group_id, "refused")


def _do(ctx: DecisionContext, target: FanoutTarget, request: m.Request) -> dict[str, Any] | ErrorReply:
    match request:
        case m.Send() if target.agent_id is not None:
            agent = find_agent(ctx, target.agent_id)
            if isinstance(agent, ErrorReply):
                return agent
            return accept(ctx, child_id(request.id, agent.agent_id), agent, request, target.group_id)
        case m.Pause() | m.Drain() | m.Resume() if target.agent_id is not None:
            return hold_agent(ctx, request, target.agent_id)
        case m.Cancel() if target.command_id is not None:
            return cancel_command(ctx, request, target.command_id)
    return ErrorReply("request_refused", "internal_error", f"a {request.kind} has no targets")
