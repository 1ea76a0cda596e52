"""What an operator takes back, holds up or confirms: cancel, pause, drain, resume, confirm_losses."""

from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import Hold
from aism_engine.domain.commands.accept import child_id, find_agent, select, to_all
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.commands.group import Group
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import truncate

_HOLDS: Final = {m.Pause: Hold.PAUSE, m.Drain: Hold.DRAIN, m.Resume: Hold.NONE}


def hold(ctx: DecisionContext, request: m.Pause | m.Drain | m.Resume, raw: bytes) -> dict[str, Any] | ErrorReply:
    """Decide on a pause, a drain or a resume: of one agent, of those selected, or of the whole fleet."""
    payload, mode = request.payload, _HOLDS[type(request)]
    if payload.agent_id is not None:
        return hold_agent(ctx, request, payload.agent_id)
    if payload.select is not None:
        found = select(ctx, payload.select, f"{request.kind}_refused")
        if isinstance(found, ErrorReply):
            return found
        group = Group(group_id=request.id, kind=request.kind, total=len(found), needed=len(found))
        fanout = [encode({"group_id": request.id, "agent_id": agent.agent_id}) for agent in found]
        return to_all(ctx, request, group, fanout, raw, ctx.draft.now, selector=payload.select)
    ctx.decision.outcome = "unchanged" if ctx.draft.hold == mode else "applied"
    ctx.draft.hold = mode
    ctx.add(fx.SaveHold(mode.value))
    ctx.record("fleet_held" if mode else "fleet_resumed", code=mode.value or None, reason=_reason(payload))
    return {
        "ok": True,
        "hold": mode.value,
        "held_agents": sum(agent.hold != Hold.NONE for agent in ctx.draft.agents()),
    }


def hold_agent(
    ctx: DecisionContext, request: m.Pause | m.Drain | m.Resume, agent_id: str
) -> dict[str, Any] | ErrorReply:
    agent = find_agent(ctx, agent_id, f"{request.kind}_refused")
    if isinstance(agent, ErrorReply):
        return agent
    mode = _HOLDS[type(request)]
    ctx.decision.outcome = "unchanged" if agent.hold == mode else "applied"
    agent.hold = mode
    ctx.add(fx.SaveAgent(agent_id, {"hold": mode.value}))
    event = "agent_held" if mode else "agent_resumed"
    ctx.record(event, agent_id=agent_id, code=mode.value or None, reason=_reason(request.payload))
    return {
        "ok": True,
        "agent_id": agent_id,
        "hold": mode.value,
        "fleet_hold": ctx.draft.hold.value,
        "open": agent.load,
    }


def cancel(ctx: DecisionContext, request: m.Cancel, raw: bytes) -> dict[str, Any] | ErrorReply:
    """Decide on taking back one command, or all that are open of a group."""
    payload, draft = request.payload, ctx.draft
    if payload.command_id is not None:
        return cancel_command(ctx, request, payload.command_id)
    group = draft.group(payload.group_id or "")
    if group is None:
        return ErrorReply("cancel_refused", "unknown_group", f"there is no open group {payload.group_id}")
    group.stopped = True
    ctx.add(fx.SaveGroup(group.group_id, {"stopped": "1"}))
    members = draft.members(group.group_id)
    if not members:  # none of them is accepted yet, and none will be
        return {"ok": True, "group_id": group.group_id, "targets": 0, "status": "succeeded"}
    ours = Group(group_id=request.id, kind=request.kind, total=len(members), needed=len(members))
    fanout = [encode({"group_id": request.id, "command_id": command_id}) for command_id in members]
    return to_all(ctx, request, ours, fanout, raw, draft.now, selector="")


def cancel_command(ctx: DecisionContext, request: m.Cancel, command_id: str) -> dict[str, Any] | ErrorReply:
    """Take a command back: out of the list, or where its agent has it already by another command that says so."""
    command = ctx.draft.command(command_id)
    if command is None:
        return ErrorReply("cancel_refused", "unknown_command", f"there is no command {command_id}")
    if not command.open:
        message = f"command {command_id} has {command.status} already"
        return ErrorReply("cancel_refused", "command_ended", message, {"status": command.status.value})
    notice = _notice(ctx, request, command)
    if command.status is Status.QUEUED:
        otherwise = notice if command.attempt == 1 else None
        ctx.add(fx.WithdrawCommand(command.agent_id, command_id, otherwise=otherwise))
    if command.attempt > 1 or (command.was_sent and command.status is not Status.QUEUED):  # it has, or had, a copy
        ctx.add(fx.PushCommand(command.agent_id, notice))
    reason = _reason(request.payload) or "cancelled by an operator"
    ctx.end_command(command, Status.CANCELLED, withdraw=False, code="cancelled", reason=reason)
    return {"ok": True, "command_id": command_id, "agent_id": command.agent_id, "status": command.status}


def _notice(ctx: DecisionContext, request: m.Cancel, command: Command) -> bytes:
    agent = ctx.draft.agent(command.agent_id)
    message = m.CommandMessage(
        id=child_id(request.id, command.command_id),
        type="cancel",
        payload={"command_id": command.command_id},
        timestamp=ctx.draft.at,
    )
    return encode(message, "json" if agent is None else agent.codec)


def confirm_losses(ctx: DecisionContext, request: m.ConfirmLosses, _raw: bytes) -> dict[str, Any]:
    """Take an operator's word for it that who is silent now is truly gone: no brake holds their losses up."""
    draft = ctx.draft
    draft.confirm_losses()
    ctx.record("losses_confirmed", reason=_reason(request.payload), details={"silent": draft.silent})
    return {"ok": True, "silent": draft.silent}


def _reason(payload: m.HoldPayload | m.CancelPayload | m.ConfirmLossesPayload) -> str | None:
    return truncate(payload.reason or "") or None
