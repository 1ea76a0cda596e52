"""The load of a trial: its agents and its operator."""

import asyncio
import json
import random
from typing import Any, Final

from tests.chaos.agent_model import REGISTERED, Sent
from tests.chaos.agents import RECIPIENTS, WORKERS, Agent
from tests.chaos.observations import Observations, lengths
from tests.chaos.retrying_client import BROKEN, RetryingClient
from tests.chaos.schedule import Plan
from tests.chaos.system import KEYS
from tests.support.engine import eventually

MAX_ATTEMPTS: Final = 3
_GUARD_S: Final = 3600.0
"""Only guards against hanging."""
_WORK_OPTIONS: Final[dict[str, Any]] = {"ttl": 8, "ack_timeout": 0.4, "timeout": 0.8, "max_attempts": MAX_ATTEMPTS}
_KINDS: Final = ("journey", "journey", "journey", "open", "journey", "open", "publisher")


class Operator:
    """Sends requests at random. It repeats requests whose outcome it does not know, and some others.

    The outcome of commands to journey agents, to agents that pop nothing, and to nobody can be predicted. Workers get
    every kind of request.
    """

    def __init__(self, client: RetryingClient, seed: int, agent_ids: list[str]) -> None:
        self.requests: list[Sent] = []
        self._client = client
        self._rng = random.Random(f"operator {seed}")
        self._agent_ids = agent_ids

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await self._rng.choices((self._send_predictable, self._send, self._cancel), (11, 8, 1))[0]()
            if self.requests and self._rng.random() < 0.1:
                await self._client.push(KEYS.request_queue, self._rng.choice(self.requests[-5:]))
            await asyncio.sleep(self._rng.uniform(0, 0.08))

    async def _ask(self, kind: str, payload: dict[str, Any], *, outcome: str = "", is_group: bool = False) -> None:
        name = f"request-{len(self.requests)}"
        raw = json.dumps({"id": name, "type": kind, "payload": payload}).encode()
        self.requests.append(request := Sent(name, kind, raw, outcome=outcome, is_group=is_group))
        await self._client.push(KEYS.request_queue, request)

    async def _send_predictable(self) -> None:
        rng, luck = self._rng, self._rng.random()
        payload: dict[str, Any] = {"command": {"type": "work", "payload": {"n": len(self.requests)}}}
        if luck < 0.1:
            await self._ask("send", {**payload, "agent_id": "no-such-agent"}, outcome="refused")
        elif luck < 0.2:
            target = {"agent_id": rng.choice(RECIPIENTS), "options": {"ttl": rng.uniform(0.3, 2.0)}}
            await self._ask("send", payload | target, outcome="expired")
        else:
            await self._ask("send", {**payload, "agent_id": rng.choice(self._agent_ids)}, outcome="done")

    async def _send(self) -> None:
        rng = self._rng
        options = {**_WORK_OPTIONS, "priority": rng.choice(("high", "normal", "low"))}
        if rng.random() < 0.2:
            options["start_in"] = round(rng.uniform(0.05, 1.0), 3)
        match rng.randrange(3):
            case 0:
                target: dict[str, Any] = {"select": "type=worker"}
                options["quorum"] = rng.choice(("1", "50%", "100%"))
            case 1:
                target = {"select": f"type=worker,id!={rng.choice(WORKERS)}", "any": True}
            case _:
                target = {"agent_id": rng.choice(WORKERS)}
        is_group = "quorum" in options
        await self._ask("send", {**target, "command": {"type": "work"}, "options": options}, is_group=is_group)

    async def _cancel(self) -> None:
        sent = [each for each in self.requests if each.kind == "send" and not each.outcome]
        if sent:
            request = self._rng.choice(sent[-5:])
            await self._ask("cancel", {"group_id" if request.is_group else "command_id": request.id})


class Load:
    """All agents of a trial, and its operator."""

    def __init__(self, plan: Plan, client: RetryingClient) -> None:
        self.stopping = asyncio.Event()
        """Set when nothing new is to be sent."""
        self.drained = asyncio.Event()
        """Set when no command is left to be answered."""
        self._client = client
        names = [f"{_KINDS[number % len(_KINDS)]}-{number}" for number in range(plan.agents)]
        self._agents = [
            Agent(agent_id, client, plan) for agent_id in (*RECIPIENTS, *WORKERS, *names, "wrong-type-0", "invalid-0")
        ]
        self._operator = Operator(client, plan.seed, self._ids("journey"))

    async def set_up(self) -> None:
        """Register the first agents, and wait until the engine has applied that."""
        await self._client.write("LPUSH", KEYS.state("wrong-type-0"), "no state")
        first = [agent for agent in self._agents if agent.kind in REGISTERED]
        for agent in first:
            is_worker = agent.kind == "worker"
            await agent.send("register", type="worker" if is_worker else "architect", capabilities=["ack"] * is_worker)

        async def are_known() -> bool:
            return bool(await self._client.read("SCARD", KEYS.index) >= len(first))

        await eventually(are_known, _GUARD_S)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for agent in self._agents:
                group.create_task(agent.run(self.stopping, self.drained))
            group.create_task(self._operator.run(self.stopping))
            group.create_task(self._beat())

    async def wait_answered(self) -> None:
        """Wait until no message, request or command is on its way."""

        async def is_answered() -> bool:
            lists = [await self._client.read("LLEN", KEYS.commands(agent_id)) for agent_id in self._ids("journey")]
            return not any(lists) and not any((await lengths(self._client.read)).values())

        await eventually(is_answered, _GUARD_S)

    def observations(self) -> Observations:
        """Return what the load itself knows."""
        return Observations([agent.model for agent in self._agents], self._operator.requests)

    def _ids(self, kind: str) -> list[str]:
        return [agent.id for agent in self._agents if agent.kind == kind]

    async def _beat(self) -> None:
        """Send heartbeats for all agents that have any, with the server's clock."""
        beating: list[Any] = [agent.id for agent in self._agents if agent.beats]
        client = self._client.client
        while not self.drained.is_set():
            try:
                seconds, _ = await client.time()
                await client.zadd(KEYS.heartbeats, dict.fromkeys(beating, seconds))
            except BROKEN:
                pass
            await asyncio.sleep(0.2)
