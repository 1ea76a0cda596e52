"""The activity of an agent, as the engine observed it. The rules in divergence.py use it as evidence.

The evidence is kept in memory only. A new leader has none: it never concludes that an agent did nothing before the
takeover.
"""

from typing import Final

from msgspec import Struct

_MAX_EVENTS: Final = 16
"""Maximum number of events of one kind to remember per agent. No rule needs more of them: see `policy.SmallCount`."""
_EARLIER_INSTANCES: Final = 4
"""Maximum number of earlier instances to remember per agent: an arbitrary number."""


class MissedDeadline(Struct, frozen=True):
    """A command that the agent received, or acknowledged, at `since`, and whose timeout ran out at `at`."""

    since: float
    at: float


class Activity(Struct, gc=False):
    """What an agent did since the fleet was loaded. Instants are unix seconds by Redis `TIME`; 0: never."""

    command_response_at: float = 0.0
    """When it last sent a response about a command."""
    outcome_at: float = 0.0
    """When it last sent the outcome of a command."""
    unacked: tuple[MissedDeadline, ...] = ()
    """Commands that it received and did not acknowledge, since its last response about any command."""
    unfinished: tuple[MissedDeadline, ...] = ()
    """Commands that it acknowledged and did not finish, since the last outcome that it sent."""
    instance: str = ""
    earlier_instances: tuple[str, ...] = ()
    switched_back_at: tuple[float, ...] = ()
    """When an earlier instance sent a response after a later one."""
    context: float | None = None
    """The context size that it last measured."""
    context_over_since: float = 0.0
    """When the context size rose above the limit; 0: it is not above the limit."""

    def add_command_response(self, now: float, *, is_outcome: bool) -> None:
        self.command_response_at, self.unacked = now, ()
        if is_outcome:
            self.outcome_at, self.unfinished = now, ()

    def add_ack_timeout(self, delivered_at: float, now: float) -> None:
        self.unacked = _with_missed(self.unacked, delivered_at, now)

    def add_execution_timeout(self, acked_at: float, now: float) -> None:
        self.unfinished = _with_missed(self.unfinished, acked_at, now)

    def set_instance(self, instance: str, now: float) -> None:
        """Note the instance that sent a response.

        A new instance means that the agent has restarted. An earlier instance that responds again is still running.
        """
        if instance == self.instance:
            return
        if instance in self.earlier_instances:
            self.switched_back_at = (*self.switched_back_at, now)[-_MAX_EVENTS:]
        if self.instance:
            others = (each for each in self.earlier_instances if each != instance)
            self.earlier_instances = (*others, self.instance)[-_EARLIER_INSTANCES:]
        self.instance = instance

    def set_context(self, value: float, limit: float, now: float) -> None:
        self.context = value
        if value <= limit:
            self.context_over_since = 0.0
        elif not self.context_over_since:
            self.context_over_since = now

    def clear_context(self) -> None:
        """Note that the agent has condensed its context: the last measurement is out of date."""
        self.context, self.context_over_since = None, 0.0


def _with_missed(missed: tuple[MissedDeadline, ...], since: float, now: float) -> tuple[MissedDeadline, ...]:
    """Add a missed deadline, unless the agent already had this command when it missed the previous deadline.

    An agent that holds ten commands and hangs once has missed one deadline, not ten.
    """
    if missed and since <= missed[-1].at:
        return missed
    return (*missed, MissedDeadline(since, now))[-_MAX_EVENTS:]


class AbsentHeartbeat(Struct):
    """The heartbeat of one agent that has declared a state of `divergence.absent_states`.

    The agent declares that it is absent, but the engine measures that it is fresh. Instants are unix seconds by
    Redis `TIME`.
    """

    absent_since: float
    """When the agent entered that state."""
    score: float
    read_at: float
    span: tuple[float, float] | None = None
    """Period in which the heartbeat certainly continued; None until a change was seen.

    It starts when a change of the score was first seen. It ends at the last reading before the latest change: the
    change itself happened at an unknown instant after that reading.
    """
    changed_at: float = 0.0
    """When a change was last seen."""


def observe_heartbeat(
    heartbeats: dict[str, AbsentHeartbeat],
    agent_id: str,
    score: float,
    asked_at: float,
    seen_at: float,
    absent_since: float,
) -> None:
    """Note a score that was read between `asked_at` and `seen_at`.

    If the score differs from the last reading, the agent has sent a heartbeat since that reading.
    """
    known = heartbeats.get(agent_id)
    if known is None or known.absent_since != absent_since:
        heartbeats[agent_id] = AbsentHeartbeat(absent_since, score, asked_at)
        return
    if score != known.score:
        if known.read_at >= absent_since:
            known.span = (known.span[0] if known.span else seen_at, known.read_at)
        known.score, known.changed_at = score, seen_at
    known.read_at = asked_at
