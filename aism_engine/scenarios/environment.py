"""Environment of a scenario: a Redis server, an engine, and clients of both."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import as_file, files
from typing import Any, Final

import msgspec
from msgspec import Struct

from aism_engine.agent.client import AgentClient
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect_url
from aism_engine.store.client_type import Client
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.subscription import Subscription

MACHINES: Final = files(__package__) / "machines"
_TIMEOUT_S: Final = 60.0
"""Timeout to connect and to get a reply: the server and all agents share one machine, which may be slow."""


class ScenarioResult(Struct, frozen=True):
    """Base of the results. Their field names are a published interface."""

    @property
    def passed(self) -> bool:
        raise NotImplementedError


class ScenarioEnvironment:
    """Clients of a scenario's server, and the audit of its engine."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.keys = Keys(prefix)
        self.client: Client = connect_url(url, "scenario", timeout_s=_TIMEOUT_S)
        """To read what the engine writes, and to read and write data that the agents share outside the protocol."""
        self._started_at = time.monotonic()

    @property
    def server(self) -> RedisSettings:
        """The server, for clients of the operator."""
        return RedisSettings(url=self.url, prefix=self.prefix, connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._started_at, 2)

    def agent_client(self, agent_id: str) -> AgentClient:
        return AgentClient(agent_id, url=self.url, prefix=self.prefix, timeout_s=_TIMEOUT_S)

    def subscribe(self, channel: str) -> Subscription:
        """Subscribe to a channel. Events can be lost: use them as wake-ups, and read the keys as well."""
        return Subscription(self.client, [channel])

    async def states(self, *agent_ids: str) -> list[str]:
        """Read the states of agents: an empty string for an agent without one."""
        values = await self.client.mget([self.keys.state(agent_id) for agent_id in agent_ids])
        return [value.decode() if value else "" for value in values]

    async def facts(self, event: str, **fields: str) -> list[dict[str, Any]]:
        """Read all facts of one event with these fields from the audit, oldest first."""
        entries = await self.client.xrange(self.keys.audit)
        facts = (fact for _, entry in entries for fact in msgspec.json.decode(entry[b"facts"]))
        return [fact for fact in facts if fact.items() >= {"event": event, **fields}.items()]


@asynccontextmanager
async def scenario_environment(machine: str, overrides: Mapping[str, object]) -> AsyncIterator[ScenarioEnvironment]:
    """Start a server and an engine whose agents all use `machine`, and stop both at the end."""
    stopping = asyncio.Event()
    with EmbeddedServer() as server, as_file(MACHINES) as folder:
        flags = {
            "redis.url": server.url,
            "http.enabled": False,
            "machines.directory": str(folder),
            "machines.default": machine,
            "machines.unregistered": machine,
            "retention.audit_entries": 1_000_000,  # results are read from the audit, so nothing may be trimmed
            "retention.audit_entries_max": 2_000_000,
            **overrides,
        }
        engine = Engine(load_settings(environ={}, overrides=flags).settings, environ={})
        engine_task = asyncio.create_task(engine.run(stopping))
        environment = ScenarioEnvironment(server.url, engine.settings.redis.prefix)
        try:
            yield environment
        finally:
            await environment.client.aclose()
            stopping.set()
            await engine_task


async def send_heartbeats(agent: AgentClient, interval_s: float = 0.2) -> None:
    """Send heartbeats until cancelled."""
    while True:
        await agent.heartbeat()
        await asyncio.sleep(interval_s)
