"""How long it takes until an engine consumes again, counted from the moment when nothing stands in its way any more."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from redis.exceptions import RedisError

from tests.chaos.engines import EngineProcess

_LOOK_EVERY_S = 0.01


class Recovery:
    """Watches the ledger, which every commit changes, while the load goes on."""

    def __init__(self, client: Any, ledger: str) -> None:  # noqa: ANN401
        self.longest_s = 0.0
        self.over = False
        self._client = client
        self._ledger = ledger
        self._seen: bytes | None = None
        self._looked = False
        self._disturbances = 0
        self._calm_since: float | None = None

    @property
    def recovering(self) -> bool:
        """Whether all is calm, and no commit has been seen since."""
        return self._calm_since is not None

    @asynccontextmanager
    async def disturbed(self) -> AsyncIterator[None]:
        """While a fault lasts nothing is counted."""
        self._disturb()
        try:
            yield
        finally:
            self._calm()

    @contextmanager
    def left_to(self, others: Sequence[EngineProcess]) -> Iterator[None]:
        """While some engine is left that could take over, its time runs."""
        if not any(engine.alive for engine in others):
            yield
            return
        self._calm()
        try:
            yield
        finally:
            self._disturb()

    def watch(self, client: Any) -> None:  # noqa: ANN401
        """Watch the ledger of another server. What stands in it at the first look is no sign of life."""
        self._client = client
        self._looked = False

    async def run(self) -> None:
        while not self.over:  # a cancellation may be swallowed on its way: cpython#86296
            client = self._client
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(0.5):
                    ledger = await client.get(self._ledger)
                if client is self._client:
                    self._see(ledger)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _see(self, ledger: bytes | None) -> None:
        if self._looked and ledger != self._seen and self._calm_since is not None:
            self.longest_s = max(self.longest_s, time.monotonic() - self._calm_since)
            self._calm_since = None
        self._seen, self._looked = ledger, True

    def _disturb(self) -> None:
        self._disturbances += 1
        self._calm_since = None

    def _calm(self) -> None:
        self._disturbances -= 1
        if self._disturbances == 0:
            self._calm_since = time.monotonic()
