"""Where an agent stands: by what its next transition is judged, how long it may stay, and what it may not enter again
yet.

The longest stay is a deadline, `stay:{agent_id}`, like those of commands; what counts is the record, `since` and the
machine, so that a deadline which was lost is set again.
"""

from collections.abc import Mapping
from typing import Any

from aism_engine.clock import ROUNDING_S
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.machines.machine import PREVIOUS, TransitionCase
from aism_engine.domain.policy import Policy


def transition_case(
    ctx: DecisionContext, agent: AgentRecord, by: fx.Actor, context: Mapping[str, Any] | None
) -> TransitionCase:
    """Give what a transition of this agent is judged by now."""
    now = ctx.draft.now
    return TransitionCase(
        by,
        stayed_s=now - agent.since,
        context=context,
        cooling_s=lambda state: agent.cooling.get(state, 0.0) - now,
        occupants=lambda state: _occupants(ctx, agent, state),
    )


def _occupants(ctx: DecisionContext, agent: AgentRecord, state: str) -> int:
    """Count those in a state who live by the same machine."""
    machines, machine = ctx.policy.machines, ctx.machine(agent)
    return ctx.draft.occupants(state, lambda kind: machines.for_type(kind) is machine)


def state_on_return(ctx: DecisionContext, agent: AgentRecord) -> str:
    """Give the state of one that was lost and is there again: where its machine says, unless that is full or gone."""
    machine = ctx.machine(agent)
    state = (agent.lost_from or agent.state) if machine.on_return == PREVIOUS else machine.on_return
    most = machine.state(state).max_agents
    if not machine.knows(state) or (most and state != agent.state and _occupants(ctx, agent, state) >= most):
        return agent.state
    return state


# --- stays ------------------------------------------------------------------------------------------------------------


def stay(agent_id: str) -> str:
    """Name the deadline of an agent's stay."""
    return f"stay:{agent_id}"


def stay_ends_at(ctx: DecisionContext, agent: AgentRecord) -> float:
    """Give when the longest stay of an agent is over; 0 where it may stay for as long as it likes."""
    longest_s = ctx.machine(agent).state(agent.state).max_stay
    return agent.since + longest_s if longest_s else 0.0


def apply_state_terms(ctx: DecisionContext, agent: AgentRecord) -> dict[str, str]:
    """Have everything be as the state in which the agent is now asks for: the deadline of its stay, and for whom it
    waits. Gives the fields of the record that change.
    """
    state = ctx.machine(agent).state(agent.state)
    set_stay(ctx, agent, agent.since + state.max_stay if state.max_stay else 0.0)
    waits_for = state.waits_for
    if waits_for == agent.waits_for:
        return {}
    agent.waits_for = waits_for
    return {"waits_for": waits_for}


def needs_repair(policy: Policy, agent: AgentRecord, now: float) -> bool:
    """Tell whether an agent is not as its machine has it: in a state that is none, waiting for somebody else, or
    without the deadline of its stay.

    A stay that is only told of is told of once: what is over is not set again.
    """
    machine = policy.machines.for_type(agent.kind)
    state = machine.state(agent.state)
    until = agent.since + state.max_stay if state.max_stay else 0.0
    if not machine.knows(agent.state) or state.waits_for != agent.waits_for:
        return True
    if until > agent.stay_until:
        return until > now or bool(state.after_max_stay)
    # The limit is shorter than it was; but not where the engine found no room, and tries again after another stay.
    shorter = 0 < until < agent.stay_until - ROUNDING_S
    return shorter and (until > now or agent.stay_until - now > state.max_stay or not state.after_max_stay)


def set_stay(ctx: DecisionContext, agent: AgentRecord, until: float) -> None:
    """Write the deadline of an agent's stay; 0 clears it."""
    if until == agent.stay_until:
        return
    agent.stay_until = until
    member = stay(agent.agent_id)
    ctx.add(fx.SetDeadline(member, until) if until else fx.ClearDeadline(member))


def start_cooldown(ctx: DecisionContext, agent: AgentRecord, left: str) -> dict[str, str]:
    """Note that a state was left, if it may not be entered again at once; give the fields of the record that change."""
    now = ctx.draft.now
    cooldown_s = ctx.machine(agent).state(left).cooldown
    if not cooldown_s and not agent.cooling:
        return {}
    agent.cooling = {state: until for state, until in agent.cooling.items() if until > now}
    if cooldown_s:
        agent.cooling[left] = now + cooldown_s
    return agent.fields("cooling")
