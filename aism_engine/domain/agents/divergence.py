"""Where what an agent says and what is seen of it disagree: one function for each rule.

Each looks at one agent and says that the divergence is there (a `Finding`), that it is not (`Refuted`), or, with None,
that nothing is known either way: then one that is open stays open, and none is opened.

What is guaranteed. Nobody is accused because of our own blindness. Evidence counts from `watched_from` on, the moment
at which we last began to see everything (a start, a takeover, an outage that is over), and up to `heard_until`: what
was pushed later may lie in the queue unread. What is not: that an agent which stands still itself, in the middle of its
work and for longer than a threshold, is told from one that does not work. That is why nothing is punished by it.

The page docs/divergences.md says of each rule how sure it is; a test compares the two.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct, field

from aism_engine.clock import iso
from aism_engine.domain.agents.activity import Activity, Confidence
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.heartbeats import AbsentHeartbeat
from aism_engine.domain.policy import DivergenceSettings

Rule: TypeAlias = Literal[
    "idle_at_work",
    "heartbeat_while_absent",
    "forbidden_state",
    "never_acks",
    "never_finishes",
    "duplicate_instance",
    "context_too_large",
]


class AgentObservation(Struct, frozen=True, kw_only=True):
    """One agent, and all that is known of it. Instants are unix seconds by Redis `TIME`."""

    agent: AgentRecord
    activity: Activity
    heard_until: float
    """What was pushed up to here has been taken in."""
    watched_from: float
    """From here on we have seen everything, without a gap."""
    beats: AbsentHeartbeat | None = None

    def lasted(self, *instants: float) -> float:
        """Give for how long nothing has changed since the last of these, as far as we could have seen it."""
        return self.heard_until - max((self.watched_from, *instants))

    @property
    def says(self) -> str | None:
        """The state that it declared, where it is what holds: who was moved there by others has claimed nothing."""
        return self.agent.state if self.agent.declared == self.agent.state else None

    @property
    def declared(self) -> dict[str, Any]:
        agent = self.agent
        return {"state": agent.declared, "at": iso(agent.declared_at), "via": agent.declared_via}


class Diverged(Struct, frozen=True, kw_only=True):
    """That a divergence is there, and why we think so."""

    reason: str
    confidence: Confidence
    declared: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


class Consistent(Struct, frozen=True):
    """That it is not there, or is over."""

    reason: str


Judgement: TypeAlias = Diverged | Consistent | None


def idle_at_work(view: AgentObservation, limits: DivergenceSettings) -> Judgement:
    """It says that it works, and takes no command and reports nothing. Who has a command in hand may be silent over it:
    that one has clocks of its own.
    """
    agent, acted = view.agent, view.activity.acted
    if view.says not in limits.working_states:
        return Consistent("it does not say that it works")
    if agent.delivered:
        return Consistent("it has a command in hand")
    idle_s = view.lasted(agent.since, agent.declared_at, acted)
    if idle_s >= limits.idle_evidence_after:
        return Diverged(
            reason=f"says {agent.state}, but has taken no command and reported nothing for {idle_s:.0f} s",
            confidence="possible",
            declared=view.declared,
            measured={"idle_s": round(idle_s, 1), "acted_at": iso(acted) if acted else None},
        )
    if 0 <= view.heard_until - max(agent.since, agent.declared_at, acted) < limits.idle_evidence_after:
        return Consistent("it has shown that it works")
    return None


def heartbeat_while_absent(view: AgentObservation, limits: DivergenceSettings) -> Judgement:
    """It says that it is not there, and goes on beating: longer than a process takes that has started and has not
    registered yet.
    """
    agent, beats = view.agent, view.beats
    if view.says not in limits.absent_states:
        return Consistent("it does not say that it is away")
    if beats is None or beats.beating is None or beats.absent_since != agent.since:
        return None
    began_at, before_last = beats.beating
    if before_last - began_at < limits.heartbeat_evidence_after or beats.beat_at > view.heard_until:
        return None
    return Diverged(
        reason=f"says {agent.state}, but has gone on beating for {before_last - began_at:.0f} s",
        confidence="certain",
        declared=view.declared,
        measured={"beating_since": iso(began_at), "beat_at": iso(beats.beat_at)},
    )


def forbidden_state(view: AgentObservation, limits: DivergenceSettings) -> Judgement:
    """It has published a state that its machine did not allow, and has not moved on since. What it has pushed was a
    question, and was answered.
    """
    agent = view.agent
    if agent.declared is None or agent.declared_via in {None, "queue"}:
        return Consistent("it has published nothing since")
    if agent.declared == agent.state or agent.since > agent.declared_at:
        return Consistent("it has moved on")
    if view.lasted(agent.declared_at) < limits.forbidden_evidence_after:
        return None
    return Diverged(
        reason=f"says {agent.declared}, but is {agent.state}: that was refused",
        confidence="certain",
        declared=view.declared,
        measured={"state": agent.state, "since": iso(agent.since)},
    )


def never_acks(view: AgentObservation, limits: DivergenceSettings) -> Judgement:
    """Commands leave its list, one after the other, and none is ever confirmed, though it said that it confirms."""
    agent, activity = view.agent, view.activity
    if not agent.acks:
        return Consistent("it does not say that it confirms commands")
    missed = [each for each in activity.unacked if each.since >= view.watched_from]
    if len(missed) >= limits.unacked_commands:
        return Diverged(
            reason=f"says that it confirms commands, but has taken {len(missed)} in a row and confirmed none",
            confidence="likely",
            declared={"capability": "ack"},
            measured={"taken": len(missed), "since": iso(missed[0].since)},
        )
    return Consistent("it has confirmed a command") if activity.confirmed and not activity.unacked else None


def never_finishes(view: AgentObservation, limits: DivergenceSettings) -> Judgement:
    """It confirms commands, one after the other, and none ever comes to an end but by its clocks."""
    activity = view.activity
    missed = [each for each in activity.unfinished if each.since >= view.watched_from]
    if len(missed) >= limits.unfinished_commands:
        return Diverged(
            reason=f"has confirmed {len(missed)} commands in a row, and finished none in its time",
            confidence="likely",
            declared={"acked": len(missed)},
            measured={"finished": 0, "since": iso(missed[0].since)},
        )
    return Consistent("it has finished a command") if activity.finished and not activity.unfinished else None


def duplicate_instance(view: AgentObservation, limits: DivergenceSettings) -> Judgement:
    """Two instances speak in turns under one agent id. A restart changes to a new instance and never back."""
    returned = view.activity.returns
    returns = [at for at in returned if at >= max(view.watched_from, view.heard_until - limits.switch_window)]
    if len(returns) >= limits.instance_switches:
        instances = [view.activity.instance, view.activity.former[-1]]
        return Diverged(
            reason=f"its instances {' and '.join(instances)} speak in turns",
            confidence="certain",
            declared={"instances": instances},
            measured={"switches": len(returns), "last_at": iso(returns[-1])},
        )
    is_quiet = view.lasted(*returned[-1:]) >= limits.switch_window
    return Consistent("only one instance speaks") if is_quiet else None


def context_too_large(view: AgentObservation, limits: DivergenceSettings) -> Judgement:
    """Its context was measured above the limit, and it goes on without condensing it."""
    agent, activity = view.agent, view.activity
    if agent.state in limits.distill_states:
        return Consistent(f"it is in {agent.state}")
    if activity.over_since and view.lasted(activity.over_since) >= limits.context_evidence_after:
        return Diverged(
            reason=f"measures {limits.context_measurement} = {activity.context:g}, above {limits.context_limit:g},"
            f" and is in {agent.state}",
            confidence="likely",
            declared=view.declared if agent.declared else {"state": agent.state, "at": iso(agent.since)},
            measured={limits.context_measurement: activity.context, "over_since": iso(activity.over_since)},
        )
    return (
        Consistent("its context is below the limit")
        if activity.context is not None and not activity.over_since
        else None
    )


RULES: Final[Mapping[str, Callable[[AgentObservation, DivergenceSettings], Judgement]]] = {
    "idle_at_work": idle_at_work,
    "heartbeat_while_absent": heartbeat_while_absent,
    "forbidden_state": forbidden_state,
    "never_acks": never_acks,
    "never_finishes": never_finishes,
    "duplicate_instance": duplicate_instance,
    "context_too_large": context_too_large,
}
_AWAY: Final = frozenset({Liveness.LOST, Liveness.LEFT})


def may_have_changes(agent: AgentRecord, activity: Activity | None, limits: DivergenceSettings) -> bool:
    """Tell at a glance whether any rule may have something to open or to close: of most agents, at any time, none has.
    Who is told so is judged by the rules; a test looks for one that is not told so and ought to be.
    """
    if agent.divergences:
        return True
    if activity is not None and (activity.unacked or activity.unfinished or activity.returns or activity.over_since):
        return True
    says = agent.declared
    if says is None:
        return False
    if says != agent.state:
        return agent.declared_via not in {None, "queue"}
    return says in limits.working_states or says in limits.absent_states


def changes(view: AgentObservation, limits: DivergenceSettings) -> Iterator[tuple[str, Diverged | Consistent]]:
    """Give what is to be opened, and what is to be closed. Who is away claims nothing."""
    agent = view.agent
    if agent.liveness in _AWAY:
        yield from ((rule, Consistent("it is away")) for rule in agent.divergences)
        return
    enabled = [rule for rule in RULES if getattr(limits, rule)]
    for rule in agent.divergences.keys() - enabled:
        yield rule, Consistent("the rule is off")
    for rule in enabled:
        judgement = RULES[rule](view, limits)
        if judgement is not None and isinstance(judgement, Diverged) != (rule in agent.divergences):
            yield rule, judgement
