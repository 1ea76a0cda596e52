"""What an agent measures: the latest value of each name is kept, of at most so many names."""

from collections.abc import Iterable, Mapping

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.error_reply import ErrorReply
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode


def keep(ctx: DecisionContext, agent: AgentRecord, response: m.Measurement, _raw: bytes) -> ErrorReply | None:
    """Keep the latest value of each name, and tell of it; of names that are too many, say so."""
    draft, agent_id = ctx.draft, agent.agent_id
    values, surplus = _within(ctx.policy.measurements.max_names, draft.measurements(agent_id), response.payload)
    if not values:
        ctx.decision.outcome = "unchanged"
    else:
        limits = ctx.policy.divergence
        if (context := values.get(limits.context_measurement)) is not None:
            draft.activity(agent_id).measure_context(context, limits.context_limit, draft.now)
        draft.measure(agent_id, values)
        ctx.add(fx.SaveMeasurements(agent_id, values))
        if ctx.policy.protocol.publish_events and response.via != "pubsub":  # else all who listen have heard it already
            event = {"agent_id": agent_id, "values": values, "timestamp": draft.at, "source": "engine"}
            ctx.add(fx.Publish("measurements", encode(event)))
    return _refuse(ctx, agent_id, surplus) if surplus else None


def _within(
    most: int, known: Mapping[str, float], measured: dict[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Part what an agent measured: what is kept, and the names that are too many. One that is known always has room."""
    if len(known) + len(measured) <= most:
        return measured, {}
    room, kept = most - len(known), {}
    for name, value in measured.items():
        if name in known or room > 0:
            kept[name] = value
            room -= name not in known
    return kept, {name: value for name, value in measured.items() if name not in kept}


def _refuse(ctx: DecisionContext, agent_id: str, surplus: Iterable[str]) -> ErrorReply:
    """Say that an agent has measured under as many names as are kept of one; what it has had until now is kept up."""
    code, most = "too_many_measures", ctx.policy.measurements.max_names
    ctx.decision.outcome, ctx.decision.code = "refused", code
    message = f"measurements.max_names = {most} names of {agent_id} are kept already: others are not"
    details = {"refused": sorted(surplus), "max_names": most}
    ctx.publish_error(code, message, agent_id=agent_id, details=details)
    return ErrorReply("measurement_refused", code, message, details)
