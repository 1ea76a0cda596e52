"""An agent without a library."""

import asyncio
import json
from typing import Any

from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.support.server import Cli

LOST_AFTER_S = 0.9
QUICK: dict[str, object] = {"liveness__silent_after": 0.3, "liveness__lost_after": LOST_AFTER_S}
"""An engine that soon declares a silent agent lost."""


class Agent:
    """An agent without a library: each call sends one Redis command, as redis-cli does."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._cli = Cli(server.port)

    async def __call__(self, *words: str | bytes | float) -> Any:  # noqa: ANN401 - a reply is what the command makes it
        return await asyncio.to_thread(self._cli, *words)

    async def next_event(self) -> dict[str, Any]:
        """Wait for the next event on the subscribed channel."""
        _, _, body = await asyncio.to_thread(self._cli.read)
        event: dict[str, Any] = json.loads(body)
        return event

    async def server_time(self) -> float:
        seconds, microseconds = await self("TIME")
        return int(seconds) + int(microseconds) / 1e6

    async def beat(self, keys: Keys, agent_id: str, *, milliseconds: bool = False) -> None:
        now = await self.server_time()
        await self("ZADD", keys.heartbeats, repr(1000 * now if milliseconds else now), agent_id)

    def close(self) -> None:
        self._cli.close()


def text(message: object) -> str:
    return json.dumps(message)


def send(command_id: str, payload: dict[str, Any] | None = None, **options: float) -> dict[str, Any]:
    """Return the request that sends a command of type `work` to the agent `a`."""
    command = {"type": "work", "payload": payload or {}}
    return {"type": "send", "id": command_id, "payload": {"agent_id": "a", "command": command, "options": options}}
