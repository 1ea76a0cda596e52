"""Queue of messages that an agent sends to the engine."""

import asyncio
from typing import Final

from aism_engine.agent.client import AgentClient
from aism_engine.errors import ServerUnavailableError

RETRY_AFTER_S: Final = 0.5
"""Pause between attempts while Redis is not available."""
_BATCH: Final = 100


class Outbox:
    """Sends messages in order, each until Redis has accepted it. `put` waits while `size` messages are queued."""

    def __init__(self, client: AgentClient, size: int) -> None:
        self._client = client
        self._queue = asyncio.Queue[bytes](size)

    async def put(self, body: bytes) -> None:
        await self._queue.put(body)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            bodies = [await self._queue.get()]
            while len(bodies) < _BATCH and not self._queue.empty():
                bodies.append(self._queue.get_nowait())
            while True:
                try:
                    await self._client.push(bodies)
                    break
                except ServerUnavailableError:
                    await asyncio.sleep(RETRY_AFTER_S)
            for _ in bodies:
                self._queue.task_done()

    async def wait_sent(self) -> None:
        """Wait until every message has been accepted."""
        await self._queue.join()
