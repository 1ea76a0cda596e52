"""How the load talks to the server: it repeats each call until it has succeeded, and cannot be undone by a failover.

Replication is asynchronous: what the old primary has accepted may be lost. So a write counts when WAIT confirms that
the replica has it, and is repeated until then, as the protocol advises agents to do: the engine recognizes a message by
its id. A read counts when something written after it has reached the replica, and with it everything that was read.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import RedisError

from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.client_type import Client
from tests.chaos.agent_model import Sent

BROKEN: Final = (ServerUnavailableError, RedisError, OSError)
"""What a client raises when its connection breaks."""
MARK: Final = "chaos-mark"
"""A key that is only written to wait for its replication."""
_RETRY_AFTER_S: Final = 0.02
_CONFIRMED_WITHIN_MS: Final = 200


def load_client(**where: Any) -> Client:  # noqa: ANN401 - the address, as in the settings
    """Return a client as an agent has one, with short timeouts and no retries."""
    return connect(RedisSettings(**where, protocol=2, socket_timeout=0.7, connect_timeout=0.5), "")


class RetryingClient:
    """A client, and the number of replicas that must confirm what it does."""

    def __init__(self, client: Client, replicas: int = 0) -> None:
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
