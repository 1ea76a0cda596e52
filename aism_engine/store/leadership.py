"""Whether this engine leads. The elector sets it, the writer ends it when a commit is fenced; all others only read it.

A holder trusts its lease until `trusted_until`. The elector reads the monotonic clock before it sends a renewal, and
adds the time to live. After `trusted_until` the holder stops acting. This only saves work: a stale leader is harmless
because every commit compares its fencing token.
"""

import asyncio

from aism_engine.clock import Clock


class Leadership:
    """The fencing token of this engine, and until when it may be trusted (seconds of the monotonic clock)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._token: str | None = None
        self._trusted_until = 0.0
        self._changed = asyncio.Event()

    @property
    def token(self) -> str | None:
        """The fencing token while this engine leads, else None."""
        return self._token if self._clock.monotonic() < self._trusted_until else None

    @property
    def role(self) -> str:
        return "standby" if self.token is None else "leader"

    def hold(self, token: str, trusted_until: float) -> None:
        self._token = token
        self._trusted_until = trusted_until
        self._changed.set()

    def lose(self) -> None:
        """Stop leading at once: another engine holds the lease, or it was released."""
        self._token = None
        self._changed.clear()

    async def wait_leading(self) -> str:
        """Wait until this engine leads, and return its token."""
        while (token := self.token) is None:
            self._changed.clear()
            await self._changed.wait()
        return token
