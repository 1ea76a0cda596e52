"""Holds: pause, drain and resume, of one agent, of selected agents, or of the whole fleet."""

from typing import Any, Final

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import Hold
from aism_engine.domain.commands.accept import accept_group, find_agent, select
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.text import truncate

HoldRequest = m.Pause | m.Drain | m.Resume
_HOLDS: Final = {m.Pause: Hold.PAUSE, m.Drain: Hold.DRAIN, m.Resume: Hold.NONE}


def hold(ctx: DecisionContext, request: HoldRequest, raw: bytes) -> dict[str, Any] | ErrorReply:
    payload, mode = request.payload, _HOLDS[type(request)]
    if payload.agent_id is not None:
        return hold_agent(ctx, request, payload.agent_id)
    if payload.select is not None:
        found = select(ctx, payload.select, f"{request.kind}_refused")
        if isinstance(found, ErrorReply):
            return found
        return accept_group(ctx, request, raw, [{"agent_id": agent.agent_id} for agent in found], payload.select)
    ctx.decision.outcome = "unchanged" if ctx.draft.hold == mode else "applied"
    ctx.draft.hold = mode
    ctx.add(fx.SaveHold(mode.value))
    event, reason = "fleet_held" if mode else "fleet_resumed", truncate(payload.reason or "") or None
    ctx.record(event, code=mode.value or None, reason=reason)
    held_agents = sum(agent.hold != Hold.NONE for agent in ctx.draft.agents())
    return {"ok": True, "hold": mode.value, "held_agents": held_agents}


def hold_agent(ctx: DecisionContext, request: HoldRequest, agent_id: str) -> dict[str, Any] | ErrorReply:
    agent = find_agent(ctx, agent_id, f"{request.kind}_refused")
    if isinstance(agent, ErrorReply):
        return agent
    mode = _HOLDS[type(request)]
    ctx.decision.outcome = "unchanged" if agent.hold == mode else "applied"
    agent.hold = mode
    ctx.add(fx.SaveAgent(agent_id, {"hold": mode.value}))
    event, reason = "agent_held" if mode else "agent_resumed", truncate(request.payload.reason or "") or None
    ctx.record(event, agent_id=agent_id, code=mode.value or None, reason=reason)
    return {
        "ok": True,
        "agent_id": agent_id,
        "hold": mode.value,
        "fleet_hold": ctx.draft.hold.value,
        "open": agent.load,
    }
