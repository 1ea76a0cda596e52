"""Fan-out: the decision on one target of a request for many agents or commands.

`accept_group` in accept.py has split the request into its targets.
"""

from typing import Any

from msgspec import Struct

from aism_engine.domain.commands.accept import accept, find_agent
from aism_engine.domain.commands.cancel import cancel_command
from aism_engine.domain.commands.command import child_id
from aism_engine.domain.commands.holds import hold_agent
from aism_engine.domain.commands.lifecycle import count_in_group
from aism_engine.domain.decision import Decision, DecisionContext, ErrorReply
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m


class FanoutTarget(Struct, frozen=True, kw_only=True):
    """One element of the fan-out queue: an agent or a command that a group's request is applied to."""

    group_id: m.Identifier
    agent_id: m.Identifier | None = None
    command_id: m.Identifier | None = None


def decide_fanout_target(draft: Draft, policy: Policy, target: FanoutTarget, _raw: bytes) -> Decision:
    """Apply the request of a group to one target. It is late if the group has ended or has no readable request."""
    ctx = DecisionContext(draft, policy, Decision("fanout_target"), "operator", target.group_id)
    group, request = draft.group(target.group_id), draft.lookups.group_requests.get(target.group_id)
    ctx.operator = None if request is None else request.operator
    if group is None or request is None:
        ctx.decision.outcome = "late"
        return ctx.decision
    if group.cancel_requested:
        ctx.decision.outcome, ctx.decision.code = "refused", "cancelled"
        count_in_group(ctx, target.group_id, "cancelled")
        return ctx.decision
    reply = _apply(ctx, target, request)
    if isinstance(reply, ErrorReply):
        refuse_target(ctx, target, reply.code, reply.message)
    elif not isinstance(request, m.Send):  # a command is counted when it ends
        count_in_group(ctx, target.group_id, "succeeded")
    return ctx.decision


def refuse_target(ctx: DecisionContext, target: FanoutTarget, code: str, reason: str) -> None:
    """Count a target as refused. The other targets of the group are not affected."""
    ctx.decision.outcome, ctx.decision.code = "refused", code
    ctx.record("target_refused", agent_id=target.agent_id, command_id=target.command_id, code=code, reason=reason)
    count_in_group(ctx, target.group_id, "refused")


def _apply(ctx: DecisionContext, target: FanoutTarget, request: m.Request) -> dict[str, Any] | ErrorReply:
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
    return ErrorReply("request_refused", "internal_error", f"a request of type {request.kind} has no targets")
