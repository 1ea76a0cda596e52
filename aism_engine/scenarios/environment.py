"""What every scenario stands on: a server of its own, an engine beside it, and the record of what was so."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import as_file, files
from typing import Any, Final

from msgspec import Struct

from aism_engine.agent.client import AgentClient
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.ops.audit_log import BEGINNING, AuditLog, line_from_entry
from aism_engine.store.client import Client, connect_url
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.subscription import Subscription

MACHINES: Final = files(__package__) / "machines"
_MOST: Final = 1000


class Outcome(Struct, frozen=True):
    """The figures of a scenario. Their names are published, and so for ever."""

    @property
    def holds(self) -> bool:
        """Whether they are as they should be."""
        raise NotImplementedError


class Stage:
    """Where a scenario is played: agents of its fleet, their states, and the engine's record."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.keys = Keys(prefix)
        self.client: Client = connect_url(url, "scenario")
        """For what agents share beside the protocol: their own data, of which the engine knows nothing."""
        self.began = time.monotonic()
        self._audit = AuditLog(self.client, self.keys)
        self._listening: list[Client] = []

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 2)

    def agent(self, agent_id: str) -> AgentClient:
        return AgentClient(agent_id, url=self.url, prefix=self.prefix)

    def changes(self) -> Subscription:
        """Hear of changes of state: a hint, as all that is published; whoever waits for it looks at the keys too."""
        return self.listen(self.keys.state_changes)

    def listen(self, channel: str) -> Subscription:
        self._listening.append(connect_url(self.url, "scenario-pubsub"))
        return Subscription(self._listening[-1], [channel])

    async def states(self, *agent_ids: str) -> list[str]:
        found = await self.client.mget([self.keys.state(agent_id) for agent_id in agent_ids])
        return [state.decode() if state else "" for state in found]

    async def facts(self, event: str = "") -> list[dict[str, Any]]:
        """Read the whole audit, in order: all facts, or those of one event."""
        facts: list[dict[str, Any]] = []
        last = BEGINNING
        while True:
            page = await self._audit.page(last, _MOST)
            for entry_id, fields in page.entries:
                facts += line_from_entry(entry_id, fields).decoded_facts()
                last = entry_id.decode()
            if not page.more:
                return [fact for fact in facts if event in ("", fact["event"])]

    async def aclose(self) -> None:
        for client in (self.client, *self._listening):
            await client.aclose()


@asynccontextmanager
async def staged(machine: str, overrides: Mapping[str, object]) -> AsyncIterator[Stage]:
    """Start a server and an engine whose agents all live by this machine of ours, and stop them in the end."""
    stopping = asyncio.Event()
    with EmbeddedServer() as server, as_file(MACHINES) as folder:
        flags = {
            "redis.url": server.url,
            "http.enabled": False,
            "machines.directory": str(folder),
            "machines.default": machine,
            "machines.unregistered": machine,
            "retention.audit_entries": 1_000_000,  # it is the evidence
            "retention.audit_entries_max": 2_000_000,
            **overrides,
        }
        engine = Engine(load_settings(environ={}, overrides=flags).settings, environ={})
        running = asyncio.create_task(engine.run(stopping))
        stage = Stage(server.url, engine.settings.redis.prefix)
        try:
            yield stage
        finally:
            await stage.aclose()
            stopping.set()
            await running
