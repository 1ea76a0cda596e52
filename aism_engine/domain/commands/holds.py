"""Holds: pause, drain and resume, of one agent, of selected agents, or of the whole fleet."""

from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import HELD_TABLE, Held, Hold
from aism_engine.domain.commands.accept import accept_group, find_agent, select
from aism_engine.domain.decision import DecisionContext, ErrorReply
from aism_engine.domain.draft import copy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.text import truncate_reason

HoldRequest = m.Pause | m.Drain | m.Resume
_HOLDS: Final = {m.Pause: Hold.PAUSE, m.Drain: Hold.DRAIN, m.Resume: Hold.NONE}


def hold(ctx: DecisionContext, request: HoldRequest, raw: bytes) -> dict[str, Any] | ErrorReply:
    payload = request.payload
    if payload.agent_id is not None:
        return hold_agent(ctx, request, payload.agent_id)
    if payload.select is not None:
        found = select(ctx, payload.select, f"{request.kind}_refused")
        if isinstance(found, ErrorReply):
            return found
        return accept_group(ctx, request, raw, [{"agent_id": agent.agent_id} for agent in found], payload.select)
    held = ctx.draft.held = copy(ctx.draft.held)
    _set(ctx, request, held)
    ctx.add(fx.SaveHold(HELD_TABLE.encode(held)))
    event = "fleet_held" if held.hold else "fleet_resumed"
    ctx.record(event, code=held.hold.value or None, reason=truncate_reason(request.payload.reason))
    held_agents = sum(agent.hold != Hold.NONE for agent in ctx.draft.agents())
    return {"ok": True, "hold": held.hold.value, "held_agents": held_agents}


def hold_agent(ctx: DecisionContext, request: HoldRequest, agent_id: str) -> dict[str, Any] | ErrorReply:
    agent = find_agent(ctx, agent_id, f"{request.kind}_refused")
    if isinstance(agent, ErrorReply):
        return agent
    _set(ctx, request, agent)
    ctx.add(fx.SaveAgent(agent))
    event = "agent_held" if agent.hold else "agent_resumed"
    ctx.record(event, agent_id=agent_id, code=agent.hold.value or None, reason=truncate_reason(request.payload.reason))
    return {
        "ok": True,
        "agent_id": agent_id,
        "hold": agent.hold.value,
        "fleet_hold": ctx.draft.held.hold.value,
        "open": len(ctx.draft.commands_of(agent_id)),
    }


def _set(ctx: DecisionContext, request: HoldRequest, held: Held) -> None:
    """Set or end a hold. A second request of the same kind replaces the operator, the instant and the reason."""
    mode = _HOLDS[type(request)]
    ctx.decision.outcome = "unchanged" if held.hold == mode else "applied"
    held.hold, held.held_at, held.held_by, held.hold_reason = mode, 0.0, "", ""
    if mode:
        held.held_at, held.held_by = ctx.draft.now, request.operator or ""
        held.hold_reason = truncate_reason(request.payload.reason) or ""
