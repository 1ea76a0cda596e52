"""What the limits of mail are based on: the token bucket of each pair of agents, and the hops of each thread."""

from collections.abc import Mapping
from typing import Final, TypeAlias, TypeVar

from msgspec import Struct

T = TypeVar("T")
Pair: TypeAlias = tuple[str, str]
"""Sender and recipient."""
ThreadMember: TypeAlias = tuple[str, str]
"""A thread, and an agent that received a message in it."""

MAX_COUNTED: Final = 65_536
"""Maximum number of pairs, and of thread members, to remember: those used most recently. Arbitrary: 20 MB for each."""


class TokenBucket(Struct, frozen=True):
    """The tokens that a pair had left at an instant."""

    tokens: float
    at: float

    def refilled(self, now: float, per_s: float, burst: float) -> "TokenBucket":
        return TokenBucket(min(burst, self.tokens + max(0.0, now - self.at) * per_s), now)

    def without_one(self) -> "TokenBucket":
        return TokenBucket(self.tokens - 1, self.at)


class Traffic:
    """Token buckets and hops of the whole fleet."""

    def __init__(self) -> None:
        self.buckets: dict[Pair, TokenBucket] = {}
        self.hops: dict[ThreadMember, int] = {}

    def apply(self, buckets: Mapping[Pair, TokenBucket], hops: Mapping[ThreadMember, int]) -> None:
        """Take over what a commit has confirmed, and forget what was used least recently."""
        _update(self.buckets, buckets)
        _update(self.hops, hops)


def _update(known: dict[Pair, T], changed: Mapping[Pair, T]) -> None:
    for key, value in changed.items():
        known.pop(key, None)  # so that the key moves to the end
        known[key] = value
        if len(known) > MAX_COUNTED:
            del known[next(iter(known))]
