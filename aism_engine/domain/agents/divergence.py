"""Divergences between what an agent declares and what the engine observes.

Each rule is a function. `decide_divergences` opens and closes the divergences. A rule returns a `Diverged`, or the
reason why there is no divergence. It returns None if the evidence is not sufficient: an open divergence then stays
open, and no new one is opened.

Guarantee: the engine's own blindness opens no divergence. Evidence counts only within the `ObservationWindow`.
Not guaranteed: that a divergence is a fault. An agent that hangs in the middle of its work, for longer than a
threshold, looks like one that does not work. That is why a divergence has no consequences.

docs/divergences.md gives the confidence of each rule; a test compares the two.
"""

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import asdict

from aism_engine.clock import from_iso, iso
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.activity import AbsentHeartbeat, Activity
from aism_engine.domain.agents.agent import ABSENT, AgentRecord, Diverged, Divergence
from aism_engine.domain.decision import DecisionContext, agent_decision
from aism_engine.domain.policy import DivergenceSettings


class ObservationWindow(Struct, frozen=True):
    """The time in which the engine observed everything. Instants are unix seconds by Redis `TIME`."""

    start_at: float
    """When the uninterrupted observation began: at a start, a takeover, or the end of an outage."""
    end_at: float
    """Everything that was pushed before this instant has been processed."""


class AgentObservation(Struct, frozen=True, kw_only=True):
    """One agent, and all that the engine observed of it."""

    agent: AgentRecord
    activity: Activity
    acted_at: float = 0.0
    """When it last took a command or sent any response other than a heartbeat; 0: not since the fleet was loaded."""
    window: ObservationWindow
    heartbeat: AbsentHeartbeat | None = None
    has_taken_command: bool = False
    """Whether it has taken a command that has not ended."""

    def seconds_since(self, *instants: float) -> float:
        """Return the observed seconds since the latest of these instants."""
        return self.window.end_at - max((self.window.start_at, *instants))

    @property
    def declared_state(self) -> str | None:
        """The current state if the agent declared it itself; None if an operator or the engine chose it."""
        return self.agent.state if self.agent.declared == self.agent.state else None

    @property
    def declaration(self) -> dict[str, Any]:
        agent = self.agent
        return {"state": agent.declared, "at": iso(agent.declared_at), "via": agent.declared_via}


Verdict: TypeAlias = Diverged | str | None


def idle_at_work(seen: AgentObservation, limits: DivergenceSettings) -> Verdict:
    """The agent declares that it works, but takes no command and sends no response.

    An agent that executes a command need not send anything: the command has timeouts of its own.
    """
    agent, acted_at = seen.agent, seen.acted_at
    if seen.declared_state not in limits.working_states:
        return "does not declare a working state"
    if seen.has_taken_command:
        return "has taken a command that has not ended"
    idle_s = seen.seconds_since(agent.since, agent.declared_at, acted_at)
    if idle_s >= limits.idle_evidence_after:
        return Diverged(
            reason=f"declares {agent.state}, but has taken no command and reported nothing for {idle_s:.0f} s",
            confidence="possible",
            declared=seen.declaration,
            measured={"idle_s": round(idle_s, 1), "acted_at": iso(acted_at) if acted_at else None},
        )
    if 0 <= seen.window.end_at - max(agent.since, agent.declared_at, acted_at) < limits.idle_evidence_after:
        return "has been active"
    return None


def heartbeat_while_absent(seen: AgentObservation, limits: DivergenceSettings) -> Verdict:
    """The agent declares an absent state, but its heartbeat continues for longer than a restart takes."""
    agent, heartbeat = seen.agent, seen.heartbeat
    if seen.declared_state not in limits.absent_states:
        return "does not declare an absent state"
    if heartbeat is None or heartbeat.span is None or heartbeat.absent_since != agent.since:
        return None
    began_at, continued_until = heartbeat.span
    if continued_until - began_at < limits.heartbeat_evidence_after or heartbeat.changed_at > seen.window.end_at:
        return None
    return Diverged(
        reason=f"declares {agent.state}, but its heartbeat has continued for {continued_until - began_at:.0f} s",
        confidence="certain",
        declared=seen.declaration,
        measured={"heartbeat_since": iso(began_at), "heartbeat_at": iso(heartbeat.changed_at)},
    )


def forbidden_state(seen: AgentObservation, limits: DivergenceSettings) -> Verdict:
    """The agent published, or wrote to its key, a state that its machine refuses, and has not changed its state since.

    A state that it pushed to the queue is no divergence: it was a request, and was refused.
    """
    agent = seen.agent
    if agent.declared is None:
        return "has declared no state since it registered"
    if agent.declared_via in {None, "queue"}:
        return "has declared its latest state in a response"
    if agent.declared == agent.state or agent.since > agent.declared_at:
        return "has changed its state"
    if seen.seconds_since(agent.declared_at) < limits.forbidden_evidence_after:
        return None
    return Diverged(
        reason=f"declares {agent.declared}, which was refused: its state is {agent.state}",
        confidence="certain",
        declared=seen.declaration,
        measured={"state": agent.state, "since": iso(agent.since)},
    )


def never_acks(seen: AgentObservation, limits: DivergenceSettings) -> Verdict:
    """The agent has the capability `ack` and takes commands, but acknowledges none of them."""
    agent, activity = seen.agent, seen.activity
    if not agent.acks:
        return "does not have the capability ack"
    missed = [each for each in activity.unacked if each.since >= seen.window.start_at]
    if len(missed) >= limits.unacked_commands:
        return Diverged(
            reason=f"has the capability ack, but acknowledged none of the last {len(missed)} commands that it took",
            confidence="likely",
            declared={"capability": "ack"},
            measured={"unacked": len(missed), "since": iso(missed[0].since)},
        )
    has_acked = activity.command_response_at and not activity.unacked
    return "has acknowledged a command" if has_acked else None


def never_finishes(seen: AgentObservation, limits: DivergenceSettings) -> Verdict:
    """The agent acknowledges commands, but each of them ends by a timeout."""
    activity = seen.activity
    missed = [each for each in activity.unfinished if each.since >= seen.window.start_at]
    if len(missed) >= limits.unfinished_commands:
        return Diverged(
            reason=f"finished none of the last {len(missed)} commands that it acknowledged",
            confidence="likely",
            declared={"acked": len(missed)},
            measured={"finished": 0, "since": iso(missed[0].since)},
        )
    return "has finished a command" if activity.outcome_at and not activity.unfinished else None


def duplicate_instance(seen: AgentObservation, limits: DivergenceSettings) -> Verdict:
    """Two instances respond alternately under one agent id. A restart changes to a new instance and never back."""
    activity, window = seen.activity, seen.window
    since = max(window.start_at, window.end_at - limits.switch_window)
    switches = [at for at in activity.switched_back_at if at >= since]
    if len(switches) >= limits.instance_switches:
        instances = [activity.instance, activity.earlier_instances[-1]]
        return Diverged(
            reason=f"instances {' and '.join(instances)} respond alternately",
            confidence="certain",
            declared={"instances": instances},
            measured={"switches": len(switches), "last_at": iso(switches[-1])},
        )
    is_over = seen.seconds_since(*activity.switched_back_at[-1:]) >= limits.switch_window
    return "only one instance responds" if is_over else None


def context_too_large(seen: AgentObservation, limits: DivergenceSettings) -> Verdict:
    """The agent measured a context above the limit, and does not condense it."""
    agent, activity = seen.agent, seen.activity
    if agent.state in limits.distill_states:
        return f"is in {agent.state}"
    over_since = activity.context_over_since
    if over_since and seen.seconds_since(over_since) >= limits.context_evidence_after:
        name = limits.context_measurement
        return Diverged(
            reason=f"measures {name} = {activity.context:g}, above {limits.context_limit:g}, and is in {agent.state}",
            confidence="likely",
            declared=seen.declaration if agent.declared else {"state": agent.state, "at": iso(agent.since)},
            measured={name: activity.context, "over_since": iso(over_since)},
        )
    return "its context is below the limit" if activity.context is not None and not over_since else None


RULES: Final[Mapping[str, Callable[[AgentObservation, DivergenceSettings], Verdict]]] = {
    rule.__name__: rule
    for rule in (
        idle_at_work,
        heartbeat_while_absent,
        forbidden_state,
        never_acks,
        never_finishes,
        duplicate_instance,
        context_too_large,
    )
}


def may_have_changes(agent: AgentRecord, activity: Activity | None, limits: DivergenceSettings) -> bool:
    """Return False if no rule can open or close anything: a cheap check that is enough for most agents."""
    if agent.divergences:
        return True
    if activity is not None and (
        activity.unacked or activity.unfinished or activity.switched_back_at or activity.context_over_since
    ):
        return True
    declared = agent.declared
    if declared is None:
        return False
    if declared != agent.state:
        return agent.declared_via not in {None, "queue"}
    return declared in limits.working_states or declared in limits.absent_states


def changes(seen: AgentObservation, limits: DivergenceSettings) -> Iterator[tuple[str, Diverged | str]]:
    """Yield the rules whose divergence is to be opened or closed. All those of a lost or left agent are closed."""
    agent = seen.agent
    if agent.liveness in ABSENT:
        yield from ((rule, f"the agent is {agent.liveness}") for rule in agent.divergences)
        return
    enabled = [rule for rule in RULES if getattr(limits, rule)]
    for rule in agent.divergences.keys() - enabled:
        yield rule, "the rule is off"
    for rule in enabled:
        verdict = RULES[rule](seen, limits)
        if verdict is not None and isinstance(verdict, Diverged) != (rule in agent.divergences):
            yield rule, verdict


@agent_decision("divergence")
def decide_divergences(
    ctx: DecisionContext, agent: AgentRecord, window: ObservationWindow, heartbeat: AbsentHeartbeat | None
) -> None:
    """Open and close the divergences of one agent. Each is reported once when it opens and once when it closes."""
    draft, agent_id = ctx.draft, agent.agent_id
    seen = AgentObservation(
        agent=agent,
        activity=draft.activity(agent_id),
        acted_at=draft.acted_at(agent_id),
        window=window,
        heartbeat=heartbeat,
        has_taken_command=bool(draft.commands_of(agent_id).delivered),
    )
    for rule, verdict in sorted(changes(seen, ctx.policy.divergence), key=itemgetter(0)):
        others = {name: each for name, each in agent.divergences.items() if name != rule}
        if isinstance(verdict, Diverged):
            event, reason = "divergence_opened", verdict.reason
            agent.divergences = {**others, rule: Divergence(since=draft.at, **asdict(verdict))}
            details = asdict(agent.divergences[rule])
            del details["reason"]
        else:
            event, reason = "divergence_closed", verdict
            since = agent.divergences[rule].since
            agent.divergences = others
            details = {"since": since, "lasted_s": round(draft.now - from_iso(since), 1)}
        ctx.record(event, agent_id=agent_id, type=agent.type, code=rule, reason=reason, details=details)
        details = {"rule": rule, "status": event.removeprefix("divergence_"), "type": agent.type, **details}
        ctx.publish_error("divergence", reason, agent_id=agent_id, details=details)
    if ctx.decision.effects:
        ctx.add(fx.SaveAgent(agent))
