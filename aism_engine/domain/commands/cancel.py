"""Cancellation of one command, or of all open commands of a group."""

from typing import Any

from aism_engine.domain import effects as fx
from aism_engine.domain.commands.accept import accept_group
from aism_engine.domain.commands.command import Status
from aism_engine.domain.commands.lifecycle import stop_command
from aism_engine.domain.decision import DecisionContext, ErrorReply
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.text import truncate_reason


def cancel(ctx: DecisionContext, request: m.Cancel, raw: bytes) -> dict[str, Any] | ErrorReply:
    payload, draft = request.payload, ctx.draft
    if payload.command_id is not None:
        return cancel_command(ctx, request, payload.command_id)
    group = draft.group(payload.group_id or "")
    if group is None:
        message = f"there is no open group {payload.group_id}"
        return ErrorReply("cancel_refused", "unknown_group", message)
    group.cancel_requested = True
    ctx.add(fx.SaveGroup(group.group_id, {"cancel_requested": "1"}))
    members = draft.members(group.group_id)
    if not members:  # no command is open, and the fan-out accepts no more commands of a cancelled group
        return {"ok": True, "group_id": group.group_id, "targets": 0, "status": "succeeded"}
    return accept_group(ctx, request, raw, [{"command_id": command_id} for command_id in members])


def cancel_command(ctx: DecisionContext, request: m.Cancel, command_id: str) -> dict[str, Any] | ErrorReply:
    command = ctx.draft.command(command_id)
    if command is None:
        return ErrorReply("cancel_refused", "unknown_command", f"there is no command {command_id}")
    if not command.open:
        message = f"command {command_id} has already ended: {command.status}"
        return ErrorReply("cancel_refused", "command_ended", message, {"status": command.status.value})
    reason = truncate_reason(request.payload.reason) or "cancelled by an operator"
    stop_command(ctx, command, Status.CANCELLED, code="cancelled", reason=reason)
    return {"ok": True, "command_id": command_id, "agent_id": command.agent_id, "status": command.status}
