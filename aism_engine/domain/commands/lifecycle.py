"""The steps of a command: each writes its record, its deadline, its fact and the counts of its group."""

from collections.abc import Callable
from typing import Any

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.commands.command import Command, Status, child_id
from aism_engine.domain.dead_letters import add_dead_letter
from aism_engine.domain.decision import DecisionContext, ErrorReply, Outcome
from aism_engine.domain.protocol import messages as m


def advance(
    ctx: DecisionContext,
    command: Command,
    step: Callable[..., dict[str, str]],
    *arguments: object,
    event: str | None = None,
    code: str | None = None,
    reason: str | None = None,
    **named: object,
) -> None:
    """Take a step of a command. Write its record and its deadline, and update its agent's index of open commands.

    Record the fact `command_{event}`. By default `event` is the new status; if the status stays the same, no fact is
    recorded. The record of an ended command also gets the code and the reason, and expires after
    `commands.retention`.
    """
    due_at, old_status = command.due_at, command.status
    fields: dict[str, Any] = step(*arguments, **named)
    if command.status is not old_status:
        ctx.decision.status_changes.append(command.status_change(old_status.value, ctx.draft.now))
        event = event or command.status.value
    if command.open:
        ctx.add(fx.SaveCommand(command.command_id, fields))
        if command.due_at != due_at:
            ctx.add(fx.SetDeadline(command.deadline, command.due_at))
    else:
        if code is not None:
            fields |= {"code": code, "reason": reason}
        ctx.add(fx.SaveCommand(command.command_id, fields, ctx.policy.commands.retention))
        ctx.add(fx.ClearDeadline(command.deadline))
    ctx.draft.index(command)
    if event is not None:
        record_command(ctx, command, event, code, reason)


def record_command(
    ctx: DecisionContext, command: Command, event: str, code: str | None = None, reason: str | None = None
) -> None:
    """Record the fact `command_{event}`."""
    ctx.record(
        f"command_{event}",
        agent_id=command.agent_id,
        command_id=command.command_id,
        type=command.type,
        code=code,
        reason=reason,
        details={"attempt": command.attempt} if command.attempt > 1 else None,
    )


def end_command(
    ctx: DecisionContext, command: Command, status: Status, *, withdraw_queued: bool = True, **why: str
) -> None:
    """End an open command, and count it in its group. `why` is the `code` and the `reason` if it did not succeed.

    A copy that is still in the agent's list is withdrawn, unless `withdraw_queued` is false. A command that has already
    ended is left alone: a state change may have ended it before its result is applied.
    """
    if not command.open:
        return
    if withdraw_queued and command.status is Status.QUEUED:
        ctx.add(fx.WithdrawCommand(command.agent_id, command.command_id))
    advance(ctx, command, command.end, status, ctx.draft.now, **why)
    if command.group_id is not None:
        count_in_group(ctx, command.group_id, status.value)


def stop_command(ctx: DecisionContext, command: Command, status: Status, code: str, reason: str) -> None:
    """End a command that its agent has not ended. Withdraw it from the list, and send a `cancel` if it may be running.

    It may be running if the agent has taken an attempt, and has neither reported an error nor restarted since.
    """
    queued = command.status is Status.QUEUED
    may_run = command.attempt - queued > command.failures + command.restarts
    notice = _cancel_notice(ctx, command, code)
    if queued:  # the agent may have popped this attempt just now
        ctx.add(fx.WithdrawCommand(command.agent_id, command.command_id, None if may_run else notice))
    if may_run:
        ctx.add(fx.PushCancel(command.agent_id, notice))
    end_command(ctx, command, status, withdraw_queued=False, code=code, reason=reason)


def _cancel_notice(ctx: DecisionContext, command: Command, code: str) -> bytes:
    message = m.CommandMessage(
        id=child_id(command.command_id, "cancel"),
        type="cancel",
        payload={"command_id": command.command_id, "code": code},
        timestamp=ctx.draft.at,
    )
    return ctx.encode_for(command.agent_id, message)


def stop_with_error(ctx: DecisionContext, command: Command, status: Status, code: str, reason: str) -> None:
    """Stop a command, and publish the reason as an error."""
    stop_command(ctx, command, status, code, reason)
    message = f"command {command.command_id} {reason}"
    ctx.publish_error(code, message, agent_id=command.agent_id, command_id=command.command_id)


def count_in_group(ctx: DecisionContext, group_id: str, outcome: str, members: int = 1) -> None:
    """Count one outcome for a number of members of a group. A group that has ended is left alone."""
    group = ctx.draft.group(group_id)
    if group is None:
        return
    was_open = group.status == "open"
    fields: dict[str, str | bytes] = {**group.count(outcome, ctx.draft.now, members)}
    ctx.add(fx.SaveGroup(group_id, fields, ctx.policy.commands.retention if group.ended else None))
    if group.ended:
        ctx.add(fx.ClearDeadline(group.deadline))
    if was_open and group.status != "open":
        event = "group_succeeded" if group.status == "succeeded" else "group_failed"
        ctx.record(event, type=group.kind, details={"group_id": group_id, **group.counts})


def find_command(ctx: DecisionContext, agent: AgentRecord, response: m.Response, raw: bytes) -> Command | ErrorReply:
    """Return the command that a response is about.

    The response is dead-lettered if there is no such command, if it belongs to another agent, or if it was never sent.
    """
    command_id = response.command_id or ""
    command = ctx.draft.command(command_id)
    if command is None:
        code, reason = "unknown_command", f"there is no command {command_id}"
    elif command.agent_id != agent.agent_id:
        code, reason = "foreign_command", f"command {command_id} was sent to another agent"
    else:
        outcome = isinstance(response, m.Result | m.Error | m.StateTransition)
        ctx.draft.activity(agent.agent_id).add_command_response(ctx.draft.now, is_outcome=outcome)
        if not command.open:
            ctx.decision.outcome = _after_end(command, response)
            return command
        if command.was_sent:
            return command
        code, reason = "not_sent", f"command {command_id} has not been sent yet"
    add_dead_letter(ctx, code, reason, raw, agent_id=agent.agent_id)
    message = f"command {command_id} does not exist, or was not sent to this agent"
    return ErrorReply("command_refused", code, message)


def _after_end(command: Command, response: m.Response) -> Outcome:
    """Classify a response to a command that has ended: the same outcome again, the opposite one, or too late."""
    reported = {m.Result: Status.SUCCEEDED, m.Error: Status.FAILED}.get(type(response))
    if reported is None or command.status not in {Status.SUCCEEDED, Status.FAILED}:
        return "late"
    return "duplicate" if command.status is reported else "contradictory"
