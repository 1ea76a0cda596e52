"""Reads from the lease whether an engine leads, without taking it. Quick to import, because `aism` uses it too."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from aism_engine.durations import format_age
from aism_engine.store.keys import Keys


class LeaseStatus(NamedTuple):
    """Whether an engine leads. Instants are unix seconds by Redis `TIME`."""

    token: str | None
    """The token of the leader; None if no engine leads."""
    led_at: float | None
    """When an engine last took or renewed the lease; None if that is not known."""
    now: float

    @staticmethod
    def reads(keys: Keys) -> tuple[tuple[str, ...], ...]:
        """Return the commands whose replies `parse` takes. One round trip is enough for all."""
        return ("TIME",), ("GET", keys.lease), ("GET", keys.led_at)

    @classmethod
    def parse(cls, time: Sequence[Any], token: bytes | None, led_at: bytes | None) -> Self:
        return cls(
            token=token.decode(errors="replace") if token else None,
            led_at=float(led_at) if led_at and led_at.isdigit() else None,
            now=int(time[0]) + int(time[1]) / 1_000_000,
        )

    @property
    def absence(self) -> str:
        """Say that no engine leads, and for how long; empty if one leads."""
        if self.token is not None:
            return ""
        if self.led_at is None:
            return "no engine is known to have led this fleet"
        return f"no engine has led for {format_age(max(0.0, self.now - self.led_at))}"

    def notice(self, consequence: str) -> str:
        """Say that no engine leads and what follows from that; empty if one leads."""
        advice = "check the server and the prefix" if self.led_at is None else consequence
        return self.absence and f"{self.absence}: {advice}"
