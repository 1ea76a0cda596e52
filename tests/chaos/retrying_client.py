"""How the load talks to the server: it repeats each call until it has succeeded, and cannot be undone by a failover.

Replication is asynchronous: what the old primary has accepted may be lost. So a write counts when WAIT confirms that
the replica has it, and is repeated until then, as the protocol advises agents to do: the engine recognizes a message by
its id. A read counts when something written after it has reached the replica, and with it everything that was read.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

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


def following_client(sentinels: SentinelSetup) -> tuple[Any, list[Any]]:
    """Return a client that follows the primary, and the clients with which it asks the sentinels."""
    addresses = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in sentinels.addresses)]
    once: dict[str, Any] = {**_OPTIONS, "retry": Retry(NoBackoff(), 0)}
    manager = Sentinel(addresses, sentinel_kwargs=once)  # type: ignore[no-untyped-call]
    return manager.master_for(MASTER, **once), manager.sentinels


class UnconfirmedError(RedisError):
    """The primary has done it, and no replica has confirmed it."""


class RetryingClient:
    """A client, and the number of replicas that must confirm what it does."""

    def __init__(self, client: Any, replicas: int = 0) -> None:  # noqa: ANN401
        self.client = client
        self._replicas = replicas

    async def write(self, *words: str | bytes | int) -> int:
        """Repeat the command until it is confirmed. Returns the number of attempts, each of which may have worked."""
        _, attempts = await self._persist(lambda: self._confirmed(words))
        return attempts

    async def read(self, *words: str | bytes | int) -> Any:  # noqa: ANN401
        """Repeat the command until its answer is confirmed, and return that."""
        answer, _ = await self._persist(lambda: self._confirmed(words, ("INCR", MARK)))
        return answer

    async def _confirmed(self, words: tuple[str | bytes | int, ...], *mark: tuple[str, ...]) -> Any:  # noqa: ANN401
        if not self._replicas:
            return await self.client.execute_command(*words)
        async with self.client.pipeline(transaction=False) as calls:  # WAIT counts the writes of its own connection
            for call in (words, *mark, ("WAIT", self._replicas, _CONFIRMED_WITHIN_MS)):
                calls.execute_command(*call)
            answer, *_, confirmed = await calls.execute()
        if confirmed < self._replicas:
            raise UnconfirmedError
        return answer

    async def _persist(self, call: Callable[[], Awaitable[Any]]) -> tuple[Any, int]:
        attempts = 0
        while True:
            attempts += 1
            try:
                return await call(), attempts
            except BROKEN:
                await asyncio.sleep(_RETRY_AFTER_S)
