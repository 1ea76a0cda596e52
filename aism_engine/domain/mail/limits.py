"""Messages between agents, and what keeps them from going round for ever.

Two limits, for two kinds of loops. A *hop* is a message that follows another one in the same thread: what an agent
sends there lies one hop further than the furthest that it was sent there. So a thread ends after so many hops, whatever
way it takes, and a thread that is told to many at once does not. Who answers outside of any thread, or in a new one
each time, meets the *rate* of the pair: a bucket of so many, refilled at so many a second.

Both are counted in memory, and begin anew with a new leader: a loop gets so many hops more, never an endless number.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias, TypeVar

from msgspec import Struct

T = TypeVar("T")
Pair: TypeAlias = tuple[str, str]
"""Sender and recipient."""
ThreadMember: TypeAlias = tuple[str, str]
"""A thread, and an agent that was sent something in it."""

MAX_COUNTED: Final = 65_536
"""Pairs, and places, that are counted at a time, the last that were used: an arbitrary number, some 20 MB of each."""

_ROUNDING: Final = 1e-6
"""Who waits for as long as it was told shall find one."""


class TokenBucket(Struct, frozen=True):
    """What is left of the rate of a pair, and when that was so."""

    left: float
    at: float

    def refilled(self, now: float, per_s: float, burst: float) -> "TokenBucket":
        return TokenBucket(min(burst, self.left + max(0.0, now - self.at) * per_s), now)

    @property
    def has_one(self) -> bool:
        return self.left >= 1 - _ROUNDING

    def taken(self) -> "TokenBucket":
        return TokenBucket(self.left - 1, self.at)


class Traffic:
    """What was sent lately, of the whole fleet."""

    def __init__(self) -> None:
        self.buckets: dict[Pair, TokenBucket] = {}
        self.hops: dict[ThreadMember, int] = {}

    def apply(self, buckets: Mapping[Pair, TokenBucket], hops: Mapping[ThreadMember, int]) -> None:
        """Take in what a commit has confirmed, and forget what was not used for longest."""
        _renew(self.buckets, buckets)
        _renew(self.hops, hops)


def _renew(known: dict[Pair, T], news: Mapping[Pair, T]) -> None:
    for key, value in news.items():
        known.pop(key, None)  # so that it comes last
        known[key] = value
        if len(known) > MAX_COUNTED:
            del known[next(iter(known))]
