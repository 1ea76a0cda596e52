"""Responses of agents: the handler of each type, and the steps that all types share."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aism_engine.domain import mail
from aism_engine.domain.agents import liveness, measurements, membership, state_changes
from aism_engine.domain.agents.agent import ABSENT, AgentRecord
from aism_engine.domain.commands import outcome
from aism_engine.domain.dead_letters import add_dead_letter
from aism_engine.domain.decision import Decision, DecisionContext, ErrorReply
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import AdmissionWay, Policy
from aism_engine.domain.protocol import messages as m

ResponseHandler: TypeAlias = Callable[[DecisionContext, AgentRecord, Any, bytes], ErrorReply | None]
"""Decides on a response of one type: changes the draft and adds effects, or returns why the response is refused."""

_HANDLERS: Final[dict[type, ResponseHandler]] = {
    m.Register: membership.register,
    m.Heartbeat: lambda *_: None,  # `decide_response` has recorded the sign of life
    m.Goodbye: liveness.goodbye,
    m.Ack: outcome.ack,
    m.Progress: outcome.progress,
    m.Result: outcome.result,
    m.Error: outcome.error,
    m.StateTransition: state_changes.state_transition,
    m.Message: mail.send,
    m.Measurement: measurements.keep,
}

_LATE_IF_RESTARTED: Final = frozenset({m.Heartbeat, m.Goodbye})
"""Responses about one process of an agent. They are late if another process has registered since."""
_OWN_PRESENCE: Final = frozenset({m.Register, m.Goodbye})
"""Responses whose handlers set the liveness of the agent themselves."""


def decide_response(
    draft: Draft, policy: Policy, response: m.Response | m.Custom, raw: bytes, *, replayed: bool = False
) -> Decision:
    """Decide on a response. `raw` is kept if it has to be dead-lettered.

    A response whose id was seen before is only a sign of life, unless it is `replayed` from the dead letters.
    """
    kind, agent_id, message_id = type(response), response.agent_id, response.id
    decision = Decision(response.kind)
    ctx = DecisionContext(draft, policy, decision, "agent", message_id)
    agent = draft.agent(agent_id)
    if agent is None:
        admitted = _admit(ctx, response)
        if isinstance(admitted, ErrorReply):
            _reject(ctx, response, admitted, raw)
            return decision
        agent = admitted
    elif message_id is not None and not replayed and draft.has_seen(agent_id, message_id):
        draft.note_message(agent_id, None)
        decision.outcome = "duplicate"
        return decision
    if response.instance is not None:
        draft.activity(agent_id).set_instance(response.instance, draft.now)
        if kind in _LATE_IF_RESTARTED and agent.instance not in {"", response.instance}:
            decision.outcome = "late"  # another process has registered since: this one is not the agent any more
            _reply(ctx, response, agent)
            return decision
    draft.note_message(agent_id, message_id)
    if kind is not m.Heartbeat:
        draft.note_activity(agent_id)
    if response.via == "channel":
        ctx.via = "channel"
    if agent.liveness in ABSENT and kind not in _OWN_PRESENCE:
        liveness.mark_returned(ctx, agent)
    handler = policy.handlers[response.type] if isinstance(response, m.Custom) else _HANDLERS[kind]
    error = handler(ctx, agent, response, raw)
    if response.reply:
        _reply(ctx, response, agent, error)
    return decision


def _admit(ctx: DecisionContext, response: m.Response | m.Custom) -> AgentRecord | ErrorReply:
    registering_as = response.payload.type if isinstance(response, m.Register) else None
    way: AdmissionWay = "channel" if response.via == "channel" else "response"
    return membership.admit(ctx, response.agent_id, way, error_type="message_refused", registering_as=registering_as)


def _reply(
    ctx: DecisionContext, response: m.Response | m.Custom, agent: AgentRecord, error: ErrorReply | None = None
) -> None:
    if response.reply and response.id is not None:
        body = {"ok": error is None, "state": agent.state}
        ctx.reply(agent.agent_id, response.id, body if error is None else {**body, "error": error})


def _reject(ctx: DecisionContext, response: m.Response | m.Custom, error: ErrorReply, raw: bytes) -> None:
    """Dead-letter a response of an agent that is not admitted.

    A published measurement is only counted as refused: one every second would displace all other dead letters.
    """
    if response.via == "channel" and isinstance(response, m.Measurement):
        ctx.decision.outcome, ctx.decision.code = "refused", error.code
        return
    add_dead_letter(ctx, error.code, error.message, raw, agent_id=response.agent_id)
    if response.reply and response.id is not None:
        ctx.reply(response.agent_id, response.id, {"ok": False, "error": error})
