"""Rules of an agent's state: the limit of its stay, the cooldown of the states that it has left, and who must act.

When a stay reaches `max_stay`, a deadline is due: `stay:{agent_id}`, like those of commands. The agent's `since` and
its machine are authoritative: a lost deadline is set again.
"""

from collections.abc import Mapping
from typing import Any

from aism_engine.clock import ROUNDING_S
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.machines.machine import PREVIOUS, State, TransitionCase
from aism_engine.domain.policy import Policy


def transition_case(
    ctx: DecisionContext, agent: AgentRecord, by: fx.Actor, context: Mapping[str, Any] | None
) -> TransitionCase:
    """Collect what a transition of this agent depends on now."""
    now = ctx.draft.now
    return TransitionCase(
        by,
        stayed_s=now - agent.since,
        context=context,
        cooldown_left_s=lambda state: agent.cooldowns.get(state, 0.0) - now,
        occupants=lambda state: _occupants(ctx, agent, state),
    )


def _occupants(ctx: DecisionContext, agent: AgentRecord, state: str) -> int:
    """Count the agents in a state that have the same machine as this agent."""
    machines, machine = ctx.policy.machines, ctx.machine(agent)
    return ctx.draft.occupants(state, lambda kind: machines.for_type(kind) is machine)


def state_on_return(ctx: DecisionContext, agent: AgentRecord) -> str:
    """Return the state that `on_return` gives a lost agent.

    If that state is full or unknown, return the current state of the agent.
    """
    machine = ctx.machine(agent)
    state = (agent.lost_from or agent.state) if machine.on_return == PREVIOUS else machine.on_return
    max_agents = machine.state(state).max_agents
    is_full = max_agents and state != agent.state and _occupants(ctx, agent, state) >= max_agents
    return agent.state if is_full or not machine.knows(state) else state


def stay_end(state: State, agent: AgentRecord) -> float:
    """Return when an agent's stay reaches `max_stay`; 0: never."""
    return agent.since + state.max_stay if state.max_stay else 0.0


def apply_state_rules(ctx: DecisionContext, agent: AgentRecord, left_state: str | None = None) -> None:
    """Set the deadline of the stay and `waits_for` for the current state. Start the cooldown of `left_state`."""
    machine = ctx.machine(agent)
    state = machine.state(agent.state)
    agent.waits_for = state.waits_for
    if state.max_stay or agent.stay_until:
        set_stay_deadline(ctx, agent, stay_end(state, agent))
    if left_state is not None and ((cooldown_s := machine.state(left_state).cooldown) or agent.cooldowns):
        _start_cooldown(agent, left_state, cooldown_s, ctx.draft.now)


def needs_repair(policy: Policy, agent: AgentRecord, now: float) -> bool:
    """Return whether an agent contradicts its machine: by an unknown state, `waits_for`, or the deadline of its stay.

    Without `after_max_stay`, the engine only reports that a stay has reached `max_stay`, and reports it once. After
    that, the stay needs no deadline.
    """
    machine = policy.machines.for_type(agent.registered_type)
    state = machine.state(agent.state)
    until = stay_end(state, agent)
    if not machine.knows(agent.state) or state.waits_for != agent.waits_for:
        return True
    if until > agent.stay_until:
        return until > now or bool(state.after_max_stay)
    # The deadline may be later than the end of the stay for two reasons. If the engine could not move the agent, it
    # tries again after `max_stay`, and the deadline is correct. If a reload of the machines has shortened the stay, the
    # deadline must be written again.
    is_late = 0 < until < agent.stay_until - ROUNDING_S
    is_retry = bool(state.after_max_stay) and until <= now and agent.stay_until - now <= state.max_stay
    return is_late and not is_retry


def set_stay_deadline(ctx: DecisionContext, agent: AgentRecord, until: float) -> None:
    """Write the deadline of an agent's stay to the index of deadlines and to the agent's record; 0: no deadline."""
    if until == agent.stay_until:
        return
    agent.stay_until = until
    member = f"stay:{agent.agent_id}"
    ctx.add(fx.SetDeadline(member, until) if until else fx.ClearDeadline(member))
    ctx.add(fx.SaveAgent(agent))


def _start_cooldown(agent: AgentRecord, left_state: str, cooldown_s: float, now: float) -> None:
    """Start the cooldown of the state that an agent has left, and drop the cooldowns that are over."""
    agent.cooldowns = {state: until for state, until in agent.cooldowns.items() if until > now}
    if cooldown_s:
        agent.cooldowns[left_state] = now + cooldown_s
