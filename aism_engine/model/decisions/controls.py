"""What an operator takes back, holds up or confirms: cancel, pause, drain, resume, confirm_losses."""

from typing import Any, Final

from aism_engine.model import effects as fx
from aism_engine.model import messages as m
from aism_engine.model.agent import Hold
from aism_engine.model.codec import encode
from aism_engine.model.commands import Command, Status
from aism_engine.model.decisions.common import Scope
from aism_engine.model.decisions.faults import Fault
from aism_engine.model.decisions.sending import child_id, find_agent, select, to_all
from aism_engine.model.groups import Group
from aism_engine.model.texts import clip

_HOLDS: Final = {m.Pause: Hold.PAUSE, m.Drain: Hold.DRAIN, m.Resume: Hold.NONE}


def hold(scope: Scope, request: m.Pause | m.Drain | m.Resume, raw: bytes) -> dict[str, Any] | Fault:
    """Decide on a pause, a drain or a resume: of one agent, of those selected, or of the whole fleet."""
    payload, mode = request.payload, _HOLDS[type(request)]
    if payload.agent_id is not None:
        return hold_agent(scope, request, payload.agent_id)
    if payload.select is not None:
        found = select(scope, payload.select, f"{request.kind}_refused")
        if isinstance(found, Fault):
            return found
        group = Group(group_id=request.id, kind=request.kind, total=len(found), needed=len(found))
        errands = [encode({"group_id": request.id, "agent_id": agent.agent_id}) for agent in found]
        return to_all(scope, request, group, errands, raw, scope.draft.now, selector=payload.select)
    scope.decision.outcome = "unchanged" if scope.draft.hold == mode else "applied"
    scope.draft.hold = mode
    scope.add(fx.SaveHold(mode.value))
    scope.record("fleet_held" if mode else "fleet_resumed", code=mode.value or None, reason=_reason(payload))
    return {
        "ok": True,
        "hold": mode.value,
        "held_agents": sum(agent.hold != Hold.NONE for agent in scope.draft.agents()),
    }


def hold_agent(scope: Scope, request: m.Pause | m.Drain | m.Resume, agent_id: str) -> dict[str, Any] | Fault:
    agent = find_agent(scope, agent_id, f"{request.kind}_refused")
    if isinstance(agent, Fault):
        return agent
    mode = _HOLDS[type(request)]
    scope.decision.outcome = "unchanged" if agent.hold == mode else "applied"
    agent.hold = mode
    scope.add(fx.SaveAgent(agent_id, {"hold": mode.value}))
    event = "agent_held" if mode else "agent_resumed"
    scope.record(event, agent_id=agent_id, code=mode.value or None, reason=_reason(request.payload))
    return {
        "ok": True,
        "agent_id": agent_id,
        "hold": mode.value,
        "fleet_hold": scope.draft.hold.value,
        "open": agent.load,
    }


def cancel(scope: Scope, request: m.Cancel, raw: bytes) -> dict[str, Any] | Fault:
    """Decide on taking back one command, or all that are open of a group."""
    payload, draft = request.payload, scope.draft
    if payload.command_id is not None:
        return cancel_command(scope, request, payload.command_id)
    group = draft.group(payload.group_id or "")
    if group is None:
        return Fault("cancel_refused", "unknown_group", f"there is no open group {payload.group_id}")
    group.stopped = True
    scope.add(fx.SaveGroup(group.group_id, {"stopped": "1"}))
    members = draft.members(group.group_id)
    if not members:  # none of them is accepted yet, and none will be
        return {"ok": True, "group_id": group.group_id, "targets": 0, "status": "succeeded"}
    ours = Group(group_id=request.id, kind=request.kind, total=len(members), needed=len(members))
    errands = [encode({"group_id": request.id, "command_id": command_id}) for command_id in members]
    return to_all(scope, request, ours, errands, raw, draft.now, selector="")


def cancel_command(scope: Scope, request: m.Cancel, command_id: str) -> dict[str, Any] | Fault:
    """Take a command back: out of the list, or where its agent has it already by another command that says so."""
    command = scope.draft.command(command_id)
    if command is None:
        return Fault("cancel_refused", "unknown_command", f"there is no command {command_id}")
    if not command.open:
        message = f"command {command_id} has {command.status} already"
        return Fault("cancel_refused", "command_ended", message, {"status": command.status.value})
    notice = _notice(scope, request, command)
    if command.status is Status.QUEUED:
        otherwise = notice if command.attempt == 1 else None
        scope.add(fx.WithdrawCommand(command.agent_id, command_id, otherwise=otherwise))
    if command.attempt > 1 or (command.given and command.status is not Status.QUEUED):  # it has, or had, a copy
        scope.add(fx.PushCommand(command.agent_id, notice))
    reason = _reason(request.payload) or "cancelled by an operator"
    scope.end_command(command, Status.CANCELLED, withdraw=False, code="cancelled", reason=reason)
    return {"ok": True, "command_id": command_id, "agent_id": command.agent_id, "status": command.status}


def _notice(scope: Scope, request: m.Cancel, command: Command) -> bytes:
    agent = scope.draft.agent(command.agent_id)
    message = m.Command(
        id=child_id(request.id, command.command_id),
        type="cancel",
        payload={"command_id": command.command_id},
        timestamp=scope.draft.at,
    )
    return encode(message, "json" if agent is None else agent.codec)


def confirm_losses(scope: Scope, request: m.ConfirmLosses, _raw: bytes) -> dict[str, Any]:
    """Take an operator's word for it that who is silent now is truly gone: no brake holds their losses up."""
    draft = scope.draft
    draft.confirm_losses()
    scope.record("losses_confirmed", reason=_reason(request.payload), details={"silent": draft.silent})
    return {"ok": True, "silent": draft.silent}


def _reason(payload: m.HoldPayload | m.CancelPayload | m.ConfirmLossesPayload) -> str | None:
    return clip(payload.reason or "") or None
