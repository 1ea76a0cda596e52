"""Due deadlines: ack timeout, execution timeout, time to live, scheduled start, next attempt, limit of a stay.

And orphans: open commands and groups whose record exists, but whose deadline is missing from the index.
"""

from collections.abc import Set as AbstractSet
from typing import Final, Literal, TypeAlias

from aism_engine.clock import ROUNDING_S
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.state_changes import end_stay
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.commands.lifecycle import advance, count_in_group, stop_with_error
from aism_engine.domain.commands.retry import next_attempt, retry
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.durations import format_duration

KeyKind: TypeAlias = Literal["record", "list", "group"]
_WRITERS: Final[dict[KeyKind, tuple[type[fx.Effect], ...]]] = {
    "record": (fx.SaveCommand, fx.WithdrawCommand),
    "list": (fx.PushCancel, fx.WithdrawCommand),
    "group": (fx.SaveGroup,),
}
"""The effects that use the record of a command, its agent's list, and the record of a group."""


def decide_deadline(
    draft: Draft, policy: Policy, member: str, at: float, *, wrong_type_keys: AbstractSet[KeyKind] = frozenset()
) -> Decision:
    """Decide on one due deadline. `member` is `{kind}:{id}`, and `at` is its instant, both as they were read.

    `wrong_type_keys` are the keys that have another Redis type than the engine expects. The effects that use them are
    left out. A command ends if its record or its agent's list is one of them.
    """
    ctx = DecisionContext(draft, policy, Decision("deadline"), "engine", member)
    ctx.add(fx.ExpectDeadline(member, at))
    kind, _, name = member.partition(":")
    if kind == "command" and (command := draft.command(name)) is not None and command.open:
        _command_due(ctx, command, at + ROUNDING_S, wrong_type_keys)
    elif kind == "group" and (group := draft.group(name)) is not None:
        count_in_group(ctx, name, "expired", group.pending)  # the outcomes of these members can no longer be known
    elif kind == "stay" and not wrong_type_keys and (agent := draft.agent(name)) is not None:
        end_stay(ctx, agent)
    else:
        ctx.decision.outcome = "late"
        ctx.add(fx.ClearDeadline(member))
    for key in wrong_type_keys:
        ctx.decision.effects[:] = [each for each in ctx.decision.effects if not isinstance(each, _WRITERS[key])]
    return ctx.decision


def _command_due(ctx: DecisionContext, command: Command, at: float, wrong_type_keys: AbstractSet[KeyKind]) -> None:
    """Act on the due deadline of a command. `at` is its instant, plus a tolerance for float rounding."""
    decision = ctx.decision
    agent = ctx.draft.agent(command.agent_id)
    if damaged := wrong_type_keys - {"group"}:
        reason = f"cannot continue: wrong Redis type of its {' and '.join(sorted(damaged))}"
        _end(ctx, command, Status.EXPIRED, "expired", reason)
    elif at >= command.expires_at or agent is None:
        reason = "cannot continue: its agent is unknown" if agent is None else "did not end within its time to live"
        _end(ctx, command, Status.EXPIRED, "expired", reason)
    elif not command.step_at or at < command.step_at:
        decision.outcome = "unchanged"
        ctx.add(fx.SetDeadline(command.deadline, command.due_at))
    elif command.status is Status.SCHEDULED:
        advance(ctx, command, command.wait)
    elif command.status is Status.WAITING:
        next_attempt(ctx, agent, command)
    elif command.status is Status.DELIVERED and agent.acks:
        ctx.draft.activity(agent.agent_id).add_ack_timeout(command.step_at - command.ack_timeout_s, ctx.draft.now)
        reason = f"not acknowledged within {format_duration(command.ack_timeout_s)}"
        retry(ctx, command, "not_acknowledged", reason)
    else:
        reason = f"did not end within {format_duration(command.timeout_s)} of execution"
        _end(ctx, command, Status.FAILED, "timeout", reason)


def _end(ctx: DecisionContext, command: Command, status: Status, code: str, reason: str) -> None:
    if command.status is Status.ACKED:
        ctx.draft.activity(command.agent_id).add_execution_timeout(command.step_at - command.timeout_s, ctx.draft.now)
    stop_with_error(ctx, command, status, code, reason)


def decide_orphan(draft: Draft, policy: Policy, member: str) -> Decision:
    """Write the deadline of a command or group again, and add it to the fleet if it is missing there."""
    ctx = DecisionContext(draft, policy, Decision("orphan", "unchanged"), "engine", member)
    kind, _, name = member.partition(":")
    if kind == "command" and (command := draft.command(name)) is not None and command.open:
        draft.add_command(command)
        ctx.add(fx.SetDeadline(member, command.due_at))
        ctx.decision.outcome = "applied"
    elif kind == "group" and (group := draft.group(name) or draft.lookups.groups.get(name)) and not group.ended:
        draft.add_group(group)
        # The record does not say when the last member will end. A member that is scheduled for later than this deadline
        # is counted as expired.
        ctx.add(fx.SetDeadline(member, draft.now + policy.commands.ttl + policy.commands.retention))
        ctx.decision.outcome = "applied"
    return ctx.decision
