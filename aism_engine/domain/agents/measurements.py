"""Measurements of agents: the latest value of each name is kept, for a limited number of names per agent."""

from collections.abc import Mapping

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import DecisionContext, ErrorReply
from aism_engine.domain.protocol import messages as m


def keep(ctx: DecisionContext, agent: AgentRecord, response: m.Measurement, _raw: bytes) -> ErrorReply | None:
    """Keep and publish the measured values; return an error if some of their names are beyond the limit."""
    draft, agent_id = ctx.draft, agent.agent_id
    known = draft.measurements(agent_id)
    values = _within_limit(ctx.policy.measurements.max_names, known, response.payload)
    if not values:
        ctx.decision.outcome = "unchanged"
    else:
        limits = ctx.policy.divergence
        if (context := values.get(limits.context_measurement)) is not None:
            draft.activity(agent_id).set_context(context, limits.context_limit, draft.now)
        draft.measure(agent_id, values)
        ctx.add(fx.SaveMeasurements(agent_id, values))
        # A published measurement has already reached everybody who subscribes to the channel.
        if ctx.policy.protocol.publish_events and response.via != "channel":
            event = {"agent_id": agent_id, "values": values, "timestamp": draft.at, "source": "engine"}
            ctx.add(fx.Publish("measurements", event))
    if len(values) == len(response.payload):
        return None
    code, max_names = "too_many_measurements", ctx.policy.measurements.max_names
    ctx.decision.outcome, ctx.decision.code = "refused", code
    message = f"{agent_id} has reached measurements.max_names = {max_names}; new names are refused"
    details = {"refused": sorted(response.payload.keys() - values), "max_names": max_names}
    ctx.publish_error(code, message, agent_id=agent_id, details=details)
    return ErrorReply("measurement_refused", code, message, details)


def _within_limit(max_names: int, known: Mapping[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Select the values to keep: those of known names, and of new names while there is room."""
    room = max_names - len(known)
    if len(measured) <= room:
        return measured
    new = [name for name in measured if name not in known][: max(room, 0)]
    return {name: value for name, value in measured.items() if name in known or name in new}
