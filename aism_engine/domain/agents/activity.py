"""What is kept of an agent beside its own word: what it was seen to do, and where the two disagree.

Deeds live in memory alone: who takes over has seen nothing yet, and accuses nobody before it has. A divergence that is
open stands in the agent's record, so that it is closed by whoever sees it end.
"""

from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct, field

Confidence: TypeAlias = Literal["certain", "likely", "possible"]
Via: TypeAlias = Literal["queue", "channel", "key"]
"""How a state was declared: pushed to the response queue, published on a channel, or written to `:state`."""

_KEPT: Final = 16
"""Of repeated events, the last that are remembered: an arbitrary number, and the most that a rule can count."""
_FORMER: Final = 4
"""Processes under one id that are told apart: an arbitrary number."""


class Divergence(Struct, frozen=True, kw_only=True):
    """One that is open, as it stands in the record of its agent. `since` is ISO 8601, by Redis `TIME`."""

    since: str
    confidence: Confidence
    reason: str
    declared: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


class MissedDeadline(Struct, frozen=True):
    """A command of which nothing was heard in its time, from its being taken, or confirmed, until `at`."""

    since: float
    at: float


class Activity(Struct):
    """What an agent was seen to do since the fleet was loaded. Instants are unix seconds by Redis `TIME`; 0: never."""

    acted: float = 0.0
    """When it last took a command, or said anything but that it is there."""
    confirmed: float = 0.0
    """When it last said a word on a command."""
    finished: float = 0.0
    """When it last gave the outcome of one."""
    unacked: tuple[MissedDeadline, ...] = ()
    """What it took and never confirmed, since it last confirmed anything."""
    unfinished: tuple[MissedDeadline, ...] = ()
    """What it confirmed and never finished, since it last finished anything."""
    instance: str = ""
    former: tuple[str, ...] = ()
    returns: tuple[float, ...] = ()
    """When an instance spoke again though another had spoken since."""
    context: float | None = None
    over_since: float = 0.0
    """From when on its measured context has been above the limit, without a rest."""

    def say_on_command(self, now: float, *, outcome: bool) -> None:
        self.confirmed, self.unacked = now, ()
        if outcome:
            self.finished, self.unfinished = now, ()

    def miss_ack(self, taken_at: float, now: float) -> None:
        self.unacked = _missed(self.unacked, taken_at, now)

    def miss_end(self, acked_at: float, now: float) -> None:
        self.unfinished = _missed(self.unfinished, acked_at, now)

    def speak_as(self, instance: str, now: float) -> None:
        """Note which process spoke. A new one after an old one is a restart; an old one again is none."""
        if instance == self.instance:
            return
        if instance in self.former:
            self.returns = (*self.returns, now)[-_KEPT:]
        if self.instance:
            self.former = (*(each for each in self.former if each != instance), self.instance)[-_FORMER:]
        self.instance = instance

    def measure_context(self, value: float, limit: float, now: float) -> None:
        self.context = value
        if value <= limit:
            self.over_since = 0.0
        elif not self.over_since:
            self.over_since = now

    def distil(self) -> None:
        """Note that it has condensed its context: what was measured before is out of date."""
        self.context, self.over_since = None, 0.0


def _missed(before: tuple[MissedDeadline, ...], since: float, now: float) -> tuple[MissedDeadline, ...]:
    """Count one more, unless it was in hand when the one before was missed: who takes ten and stands still has missed
    one moment, not ten.
    """
    if before and since <= before[-1].at:
        return before
    return (*before, MissedDeadline(since, now))[-_KEPT:]
