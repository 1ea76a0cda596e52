"""Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015)."""

import os
from typing import NamedTuple


class Backoff(NamedTuple):
    """Pauses between attempts. The limit doubles with each consecutive failure, from `initial_s` up to `max_s`."""

    initial_s: float
    max_s: float

    def limit_s(self, failures: int) -> float:
        """Return the longest pause after this many consecutive failures, counted from 1."""
        return min(self.max_s, self.initial_s * 2.0 ** min(failures - 1, 60))  # the exponent must not overflow a float

    def pause_s(self, failures: int, fraction: float | None = None) -> float:
        """Draw a pause between 0 and the limit.

        `fraction`, from 0 to 1, replaces the random draw. A decision derives it from an id, so that it is repeatable.
        """
        if fraction is None:  # os.urandom, because importing random slows down the start of `aism`
            fraction = int.from_bytes(os.urandom(4), "big") / 2**32
        return self.limit_s(failures) * fraction
