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
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct, field

from aism_engine.clock import iso
from aism_engine.model.agent import Agent, Liveness
from aism_engine.model.clocks import Beats
from aism_engine.model.evidence import Confidence, Deeds

Rule: TypeAlias = Literal[
    "idle_at_work", "beats_offline", "forbidden_state", "never_acks", "never_finishes", "two_voices", "undistilled"
]


class Thresholds(Struct, frozen=True, kw_only=True):
    """Which rules are on, and from where on they speak. Durations in seconds."""

    rules: frozenset[str] = frozenset(get_args(Rule))
    working_states: frozenset[str] = frozenset(("deep_work",))
    idle_evidence_after_s: float = 600.0
    absent_states: frozenset[str] = frozenset(("offline",))
    beating_after_s: float = 120.0
    contradiction_after_s: float = 30.0
    unacked_commands: int = 3
    unfinished_commands: int = 3
    clock_turns: int = 6
    instance_turns: int = 3
    quiet_after_s: float = 300.0
    context_measurement: str = "context_tokens"
    context_limit: float = 150_000.0
    distill_states: frozenset[str] = frozenset(("distill",))
    distill_after_s: float = 120.0


class View(Struct, frozen=True, kw_only=True):
    """One agent, and all that is known of it. Instants are unix seconds by Redis `TIME`."""

    agent: Agent
    deeds: Deeds
    heard_until: float
    """What was pushed up to here has been taken in."""
    watched_from: float
    """From here on we have seen everything, without a gap."""
    beats: Beats | None = None

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


class Finding(Struct, frozen=True, kw_only=True):
    """That a divergence is there, and why we think so."""

    reason: str
    confidence: Confidence
    declared: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


class Refuted(Struct, frozen=True):
    """That it is not there, or is over."""

    reason: str


Judgement: TypeAlias = Finding | Refuted | None


def idle_at_work(view: View, limits: Thresholds) -> Judgement:
    """It says that it works, and takes no command and reports nothing. Who has a command in hand may be silent over it:
    that one has clocks of its own.
    """
    agent, acted = view.agent, view.deeds.acted
    if view.says not in limits.working_states:
        return Refuted("it does not say that it works")
    if agent.taken:
        return Refuted("it has a command in hand")
    idle_s = view.lasted(agent.since, agent.declared_at, acted)
    if idle_s >= limits.idle_evidence_after_s:
        return Finding(
            reason=f"says {agent.state}, but has taken no command and reported nothing for {idle_s:.0f} s",
            confidence="possible",
            declared=view.declared,
            measured={"idle_s": round(idle_s, 1), "acted_at": iso(acted) if acted else None},
        )
    if 0 <= view.heard_until - max(agent.since, agent.declared_at, acted) < limits.idle_evidence_after_s:
        return Refuted("it has shown that it works")
    return None


def beats_offline(view: View, limits: Thresholds) -> Judgement:
    """It says that it is not there, and goes on beating: longer than a process takes that has started and has not
    registered yet.
    """
    agent, beats = view.agent, view.beats
    if view.says not in limits.absent_states:
        return Refuted("it does not say that it is away")
    if beats is None or beats.beating is None or beats.absent_since != agent.since:
        return None
    began_at, before_last = beats.beating
    if before_last - began_at < limits.beating_after_s or beats.beat_at > view.heard_until:
        return None
    return Finding(
        reason=f"says {agent.state}, but has gone on beating for {before_last - began_at:.0f} s",
        confidence="certain",
        declared=view.declared,
        measured={"beating_since": iso(began_at), "beat_at": iso(beats.beat_at)},
    )


def forbidden_state(view: View, limits: Thresholds) -> Judgement:
    """It has published a state that its machine did not allow, and has not moved on since. What it has pushed was a
    question, and was answered.
    """
    agent = view.agent
    if agent.declared is None or agent.declared_via in {None, "queue"}:
        return Refuted("it has published nothing since")
    if agent.declared == agent.state or agent.since > agent.declared_at:
        return Refuted("it has moved on")
    if view.lasted(agent.declared_at) < limits.contradiction_after_s:
        return None
    return Finding(
        reason=f"says {agent.declared}, but is {agent.state}: that was refused",
        confidence="certain",
        declared=view.declared,
        measured={"state": agent.state, "since": iso(agent.since)},
    )


def never_acks(view: View, limits: Thresholds) -> Judgement:
    """Commands leave its list, one after the other, and none is ever confirmed, though it said that it confirms."""
    agent, deeds = view.agent, view.deeds
    if not agent.acks:
        return Refuted("it does not say that it confirms commands")
    missed = [each for each in deeds.unacked if each.since >= view.watched_from]
    if len(missed) >= limits.unacked_commands:
        return Finding(
            reason=f"says that it confirms commands, but has taken {len(missed)} in a row and confirmed none",
            confidence="likely",
            declared={"capability": "ack"},
            measured={"taken": len(missed), "since": iso(missed[0].since)},
        )
    return Refuted("it has confirmed a command") if deeds.confirmed and not deeds.unacked else None


def never_finishes(view: View, limits: Thresholds) -> Judgement:
    """It confirms commands, one after the other, and none ever comes to an end but by its clocks."""
    deeds = view.deeds
    missed = [each for each in deeds.unfinished if each.since >= view.watched_from]
    if len(missed) >= limits.unfinished_commands:
        return Finding(
            reason=f"has confirmed {len(missed)} commands in a row, and finished none in its time",
            confidence="likely",
            declared={"acked": len(missed)},
            measured={"finished": 0, "since": iso(missed[0].since)},
        )
    return Refuted("it has finished a command") if deeds.finished and not deeds.unfinished else None


def two_voices(view: View, limits: Thresholds) -> Judgement:
    """Two processes speak under its id: instances that take turns, or heartbeats of two clocks that do. A restart
    changes from one to the other and never back.
    """
    returned, turned = view.deeds.returns, view.beats.turns if view.beats else ()
    if not returned and not turned:  # as of nearly everybody
        return Refuted("one voice alone is heard") if view.lasted() >= limits.quiet_after_s else None
    from_s = max(view.watched_from, view.heard_until - limits.quiet_after_s)
    returns = [at for at in returned if at >= from_s]
    if len(returns) >= limits.instance_turns:
        instances = [view.deeds.instance, view.deeds.former[-1]]
        return Finding(
            reason=f"its instances {' and '.join(instances)} speak in turns",
            confidence="certain",
            declared={"instances": instances},
            measured={"turns": len(returns), "last_at": iso(returns[-1])},
        )
    turns = [at for at in turned if at >= from_s]
    if len(turns) >= limits.clock_turns:
        return Finding(
            reason="its heartbeats come from two clocks in turns",
            confidence="likely",
            measured={"turns": len(turns), "last_at": iso(turns[-1])},
        )
    last = max(*returned[-1:], *turned[-1:], 0.0)
    return Refuted("one voice alone is heard") if view.lasted(last) >= limits.quiet_after_s else None


def undistilled(view: View, limits: Thresholds) -> Judgement:
    """Its context was measured above the limit, and it goes on without condensing it."""
    agent, deeds = view.agent, view.deeds
    if agent.state in limits.distill_states:
        return Refuted(f"it is in {agent.state}")
    if deeds.over_since and view.lasted(deeds.over_since) >= limits.distill_after_s:
        return Finding(
            reason=f"measures {limits.context_measurement} = {deeds.context:g}, above {limits.context_limit:g}, and is"
            f" in {agent.state}",
            confidence="likely",
            declared=view.declared if agent.declared else {"state": agent.state, "at": iso(agent.since)},
            measured={limits.context_measurement: deeds.context, "over_since": iso(deeds.over_since)},
        )
    return Refuted("its context is below the limit") if deeds.context is not None and not deeds.over_since else None


RULES: Final[Mapping[str, Callable[[View, Thresholds], Judgement]]] = {
    "idle_at_work": idle_at_work,
    "beats_offline": beats_offline,
    "forbidden_state": forbidden_state,
    "never_acks": never_acks,
    "never_finishes": never_finishes,
    "two_voices": two_voices,
    "undistilled": undistilled,
}
_AWAY: Final = frozenset({Liveness.LOST, Liveness.LEFT})


def may_have_news(agent: Agent, deeds: Deeds | None, beats: Beats | None, limits: Thresholds) -> bool:
    """Tell at a glance whether any rule may have something to open or to close: of most agents, at any time, none has.
    Who is told so is judged by the rules; a test looks for one that is not told so and ought to be.
    """
    if agent.divergences or (beats is not None and beats.turns):
        return True
    if deeds is not None and (deeds.unacked or deeds.unfinished or deeds.returns or deeds.over_since):
        return True
    says = agent.declared
    if says is None:
        return False
    if says != agent.state:
        return agent.declared_via not in {None, "queue"}
    return says in limits.working_states or says in limits.absent_states


def news(view: View, limits: Thresholds) -> Iterator[tuple[str, Finding | Refuted]]:
    """Give what is to be opened, and what is to be closed. Who is away claims nothing."""
    agent = view.agent
    if agent.liveness in _AWAY:
        yield from ((rule, Refuted("it is away")) for rule in agent.divergences)
        return
    for rule in agent.divergences.keys() - limits.rules:
        yield rule, Refuted("the rule is off")
    for rule in limits.rules:
        judgement = RULES[rule](view, limits)
        if judgement is not None and isinstance(judgement, Finding) != (rule in agent.divergences):
            yield rule, judgement
