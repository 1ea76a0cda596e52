"""A running engine, and its workers."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from aism_engine.clock import ROUNDING_S, from_iso
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine

WORKER: Final = "w-0"
QUICK: Final[dict[str, object]] = {
    "dispatcher__poll_interval": 0.02,
    "commands__backoff_initial": 0.02,
    "commands__backoff_max": 0.02,
}
SOON_S: Final = 0.15
"""A timeout that a test lets run out."""


class Workers(Running):
    """A running engine, and methods that act as its workers and as its operator."""

    responses = 0

    async def register(self, *agents: str, capabilities: tuple[str, ...] = ("ack",)) -> None:
        for agent_id in agents:
            await self.respond("register", agent_id, payload={"type": "worker", "capabilities": capabilities})
        await eventually(partial(self.record, agents[-1]))

    async def respond(self, kind: str, agent_id: str = WORKER, **fields: Any) -> None:  # noqa: ANN401 - fields of a message
        self.responses += 1
        await self.say({"id": f"response-{self.responses}-{id(self)}", "type": kind, "agent_id": agent_id, **fields})

    async def send(
        self, request_id: str, agent_id: str = WORKER, kind: str = "work", **options: object
    ) -> dict[str, Any]:
        payload = {"agent_id": agent_id, "command": {"type": kind}, "options": options}
        return await self.request(request_id, "send", **payload)

    async def request(self, request_id: str, kind: str, **payload: object) -> dict[str, Any]:
        await self.ask({"id": request_id, "type": kind, "payload": payload})
        return await self.replied(request_id)

    async def listed(self, agent_id: str = WORKER) -> list[str]:
        """Return the ids of the commands in an agent's list, in the order in which the agent pops them."""
        bodies = await self.call("LRANGE", self.keys.commands(agent_id), 0, -1)
        return [json.loads(body)["id"] for body in reversed(bodies)]

    async def pop(self, agent_id: str = WORKER) -> dict[str, Any]:
        """Pop the next command, as the agent does."""
        body = await self.call("BRPOP", self.keys.commands(agent_id), 300)
        assert body is not None, "no command was delivered"
        found: dict[str, Any] = json.loads(body[1])
        return found

    async def wait_status(self, command_id: str, status: str) -> dict[str, str]:
        """Wait until the command has a status that it keeps, and return its record."""

        async def record() -> dict[str, str] | None:
            found = await self.command(command_id)
            return found if found.get("status") == status else None

        found = await eventually(record)
        assert found is not None
        return found

    async def only_expiry_is_due(self, command_id: str) -> bool:
        """Return whether the expiry is the only deadline of the command."""
        record = await self.command(command_id)
        due_at = await self.call("ZSCORE", self.keys.deadlines, f"command:{command_id}")
        return not record.get("step_at") and abs(float(due_at) - from_iso(record["expires_at"])) <= ROUNDING_S

    async def wait_dispatched(self, command_id: str) -> None:
        """Send a command to another agent and wait until it is in the list: the dispatcher is past all earlier ones."""
        other = f"agent-of-{command_id}"
        await self.register(other)
        await self.send(command_id, other)
        await eventually(partial(self.listed, other))

    async def status_changes(self, command_id: str) -> list[str]:
        facts = await self.audit()
        return [
            fact["event"].removeprefix("command_")
            for fact in facts
            if fact.get("command_id") == command_id and fact["event"].startswith("command_")
        ]


@asynccontextmanager
async def open_workers(server: EmbeddedServer, prefix: str, **overrides: object) -> AsyncIterator[Workers]:
    async with running_engine(server, prefix, **(QUICK | overrides)) as running:
        yield Workers(running.engine, running.client)
