"""The part of redis-py's client that the subcommands of `aism-engine` need for reading, over a blocking connection.

Importing redis-py and asyncio takes longer than most of these subcommands. The methods are coroutines, as in redis-py,
but none of them suspends: `run` executes a coroutine that awaits only these methods, without an event loop.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from aism_engine.settings import RedisSettings
from aism_engine.store.records import pairs
from aism_engine.store.sync_redis import SyncRedis, Word

T = TypeVar("T")


def run(work: Awaitable[T]) -> T:
    """Run a coroutine that awaits nothing but methods of a `BlockingClient`, and return its result."""
    try:
        next(work.__await__())
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise RuntimeError("only methods of a BlockingClient can be awaited without an event loop")


class BlockingClient:
    """A client of one server. It raises `ServerUnavailableError` while the server cannot serve, and retries nothing."""

    is_blocking = True
    """Each call blocks until its reply has arrived. Therefore `each_record` does not prefetch with this client."""

    def __init__(self, server: RedisSettings) -> None:
        """Connect. The sentinels of the settings are not asked."""
        self._redis = SyncRedis(server.url, connect_s=server.connect_timeout, reply_s=server.socket_timeout)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Return a method that sends the command of this name, and returns the reply as the server sends it."""
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self.execute_command, name.upper())

    async def execute_command(self, *words: Any) -> Any:  # noqa: ANN401  as in redis-py
        return self._redis.call(*_flat(words))

    async def execute_commands(self, commands: Iterable[Iterable[Any]], *, raise_wrong_type: bool = True) -> list[Any]:
        """Send commands in one pipeline, as `NamingRedis.execute_commands`."""
        replies = self._redis.replies([_flat(words) for words in commands])
        for reply in replies:
            if isinstance(reply, Exception) and (raise_wrong_type or getattr(reply, "outage", "") != "wrong_type"):
                raise reply
        return replies

    def close(self) -> None:
        self._redis.close()

    # --- commands with a reply or with options that redis-py changes --------------------------------------------------

    async def hgetall(self, key: str) -> dict[bytes, bytes]:
        return pairs(await self.execute_command("HGETALL", key))

    async def scan_iter(self, *, match: str, count: int) -> AsyncIterator[bytes]:
        cursor = b"0"
        while True:
            cursor, page = await self.execute_command("SCAN", cursor, "MATCH", match, "COUNT", count)
            for key in page:
                yield key
            if cursor == b"0":
                return

    async def xrange(self, key: str, since: str = "-", until: str = "+", *, count: int) -> list[tuple[bytes, Any]]:
        found = await self.execute_command("XRANGE", key, since, until, "COUNT", count)
        return [(entry_id, pairs(values)) for entry_id, values in found]

    async def zmscore(self, key: str, members: Iterable[str]) -> list[float | None]:
        scores = await self.execute_command("ZMSCORE", key, members)
        return [None if score is None else float(score) for score in scores]

    async def zrange(self, key: str, start: int, end: int, *, withscores: bool = False) -> list[Any]:
        found = await self.execute_command("ZRANGE", key, start, end, *(["WITHSCORES"] if withscores else ()))
        return [(member, float(score)) for member, score in pairs(found).items()] if withscores else list(found)


def _flat(words: Iterable[Any]) -> list[Word]:
    flat: list[Word] = []
    for word in words:
        flat += [word] if isinstance(word, str | bytes | int | float) else word
    return flat
