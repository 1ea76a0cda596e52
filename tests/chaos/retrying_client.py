"""How the load talks to the server: it repeats each call until it has succeeded, and cannot be undone by a failover.

Replication is asynchronous: what the old primary has accepted may be lost. So a write counts when WAIT confirms that
the replica has it, and is repeated until then, as the protocol advises agents to do: the engine recognizes a message by
its id. A read counts when something written after it has reached the replica, and with it everything that was read.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.chaos.agent_model import Sent
from tests.support.sentinels import MASTER, SentinelSetup

BROKEN: Final = (RedisError, OSError, AttributeError, TypeError)
"""What redis-py raises when a connection breaks; the last two come from CPython, see redis-py #4287."""
MARK: Final = "chaos-mark"
"""A key that is only written to wait for its replication."""
_RETRY_AFTER_S: Final = 0.02
_CONFIRMED_WITHIN_MS: Final = 200
_OPTIONS: Final[dict[str, Any]] = {"protocol": 2, "socket_timeout": 0.7, "socket_connect_timeout": 0.5}


def load_client(url: str) -> Any:  # noqa: ANN401 - redis-py's annotations describe the synchronous client, too
    """Return a client as an agent has one, with short timeouts and no retries."""
    return Redis.from_url(url, **_OPTIONS, retry=Retry(NoBackoff(), 0))


@asynccontextmanager
async def following_client(sentinels: SentinelSetup) -> AsyncIterator[Any]:
    """Yield a client that follows the primary."""
    addresses = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in sentinels.addresses)]
    once: dict[str, Any] = {**_OPTIONS, "retry": Retry(NoBackoff(), 0)}
    manager = Sentinel(addresses, sentinel_kwargs=once)  # type: ignore[no-untyped-call]
    try:
        async with manager.master_for(MASTER, **once) as client:
            yield client
    finally:
        for asking in manager.sentinels:
            await asking.aclose()


class RetryingClient:
    """A client, and the number of replicas that must confirm what it does."""

    def __init__(self, client: Any, replicas: int = 0) -> None:  # noqa: ANN401
        self.client = client
        self._replicas = replicas

    async def write(self, *words: str | bytes | int) -> int:
        """Repeat the command until it is confirmed. Returns the number of attempts, each of which may have worked."""
        _, attempts = await self._persist(words)
        return attempts

    async def push(self, queue: str, sent: Sent) -> None:
        """Push a message or a request, and count that."""
        sent.attempts += await self.write("LPUSH", queue, sent.raw)
        sent.pushes += 1

    async def read(self, *words: str | bytes | int) -> Any:  # noqa: ANN401
        """Repeat the command until its answer is confirmed, and return that."""
        answer, _ = await self._persist(words, *[("INCR", MARK)] * bool(self._replicas))
        return answer

    async def _persist(self, *calls: Sequence[str | bytes | int]) -> tuple[Any, int]:
        attempts = 0
        while True:
            attempts += 1
            with suppress(*BROKEN):
                async with self.client.pipeline(transaction=False) as pipeline:
                    for call in (*calls, ("WAIT", self._replicas, _CONFIRMED_WITHIN_MS)):
                        pipeline.execute_command(*call)  # WAIT counts the writes of its own connection
                    answer, *_, confirmed = await pipeline.execute()
                if confirmed >= self._replicas:
                    return answer, attempts
            await asyncio.sleep(_RETRY_AFTER_S)
