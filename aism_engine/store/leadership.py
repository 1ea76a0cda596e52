"""Who leads, as far as this engine may trust its own word.

The elector writes it, everybody else reads it. A holder trusts its lease until `trusted_until`, counted on the
monotonic clock from before the renewal was sent; past that it does not act, whatever else it believes. That is a
courtesy: what makes a stale leader harmless is its token, which every commit compares.
"""

import asyncio

from aism_engine.clock import Clock


class Leadership:
    """The token of the lease, and until when it may be trusted (seconds of the monotonic clock)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._token: str | None = None
        self._trusted_until = 0.0
        self._changed = asyncio.Event()

    @property
    def token(self) -> str | None:
        """The fencing token while we lead, else none."""
        return self._token if self._clock.monotonic() < self._trusted_until else None

    @property
    def role(self) -> str:
        return "standby" if self.token is None else "leader"

    def hold(self, token: str, trusted_until: float) -> None:
        self._token = token
        self._trusted_until = trusted_until
        self._changed.set()

    def lose(self) -> None:
        """Stop leading at once: the lease is another's, or given back."""
        self._token = None
        self._changed.clear()

    async def wait_leading(self) -> str:
        """Wait until this engine leads; gives the token."""
        while (token := self.token) is None:
            self._changed.clear()
            await self._changed.wait()
        return token
