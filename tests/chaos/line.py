"""How the load speaks to the server: again and again, until what it wants is done, and safe.

Where a failover may come, an answer is not enough. Replication is asynchronous: what the old primary has accepted may
be lost by nobody's fault. So a write counts when WAIT says that the replica has it, and until then it is done again, as
the protocol advises agents to do: the engine knows a message by its id. And nobody acts on what is only read: an answer
counts when something that was written after it has reached the replica, and with it everything that was read.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.sentinels import MASTER, Site

BROKEN: Final = (RedisError, OSError, AttributeError, TypeError)
"""What redis-py raises when a connection breaks; the last two are cpython's, see redis-py #4287."""
MARK: Final = "chaos-mark"
"""A key that is written to be waited for; no engine knows it."""
_AGAIN_S: Final = 0.02
_CONFIRMED_WITHIN_MS: Final = 200
_OPTIONS: Final[dict[str, Any]] = {"protocol": 2, "socket_timeout": 0.7, "socket_connect_timeout": 0.5}


def load_client(url: str) -> Any:  # noqa: ANN401 - redis-py's annotations describe the synchronous client, too
    """A client as an agent has one: it gives up soon, and never tries again by itself."""
    return Redis.from_url(url, **_OPTIONS, retry=Retry(NoBackoff(), 0))


def following_client(site: Site) -> tuple[Any, list[Any]]:
    """A client that asks the sentinels for the primary; and those that it asks with, to be closed as well."""
    addresses = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in site.addresses)]
    once: dict[str, Any] = {**_OPTIONS, "retry": Retry(NoBackoff(), 0)}
    manager = Sentinel(addresses, sentinel_kwargs=once)  # type: ignore[no-untyped-call]
    return manager.master_for(MASTER, **once), manager.sentinels


class UnconfirmedError(RedisError):
    """The server has done it, and its replica does not have it: it may be lost yet."""


class Line:
    """A client, and how many replicas must have what is said over it."""

    def __init__(self, client: Any, replicas: int = 0) -> None:  # noqa: ANN401
        self.client = client
        self._replicas = replicas

    async def write(self, *words: str | bytes | int) -> int:
        """Do it until it is done and safe; gives the number of attempts, each of which may have come to something."""
        _, attempts = await self._persist(lambda: self._confirmed(words))
        return attempts

    async def read(self, *words: str | bytes | int) -> Any:  # noqa: ANN401
        """Ask until it is answered, and the answer is safe."""
        answer, _ = await self._persist(lambda: self._confirmed(words, ("INCR", MARK)))
        return answer

    async def _confirmed(self, words: tuple[str | bytes | int, ...], *mark: tuple[str, ...]) -> Any:  # noqa: ANN401
        if not self._replicas:
            return await self.client.execute_command(*words)
        async with self.client.pipeline(transaction=False) as calls:  # one connection: WAIT is for what it has written
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
                await asyncio.sleep(_AGAIN_S)
