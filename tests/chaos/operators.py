"""The operators of the load. They repeat a request of which they do not know the outcome, and some at random."""

import asyncio
import json
import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from aism_engine.store.keys import Keys
from tests.chaos.agents import RECIPIENTS
from tests.chaos.records import Request
from tests.chaos.retrying_client import RetryingClient
from tests.chaos.workers import WORKERS

MAX_ATTEMPTS: Final = 3
_WORK_OPTIONS: Final[dict[str, Any]] = {"ttl": 8, "ack_timeout": 0.4, "timeout": 0.8, "max_attempts": MAX_ATTEMPTS}


class Operator(ABC):
    """Sends requests at random."""

    name: ClassVar[str]

    def __init__(self, client: RetryingClient, keys: Keys, seed: int) -> None:
        self.requests: list[Request] = []
        self._client = client
        self._keys = keys
        self._rng = random.Random(f"{self.name} {seed}")

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await self._ask_any()
            if self.requests and self._rng.random() < 0.1:
                await self._push(self._rng.choice(self.requests[-5:]))
            await asyncio.sleep(self._rng.uniform(0, 0.15))

    @abstractmethod
    async def _ask_any(self) -> None:
        """Send one request."""

    async def _ask(self, kind: str, payload: dict[str, Any], **expected: Any) -> None:  # noqa: ANN401
        request_id = f"{self.name}-{len(self.requests)}"
        raw = json.dumps({"id": request_id, "type": kind, "payload": payload}).encode()
        request = Request(request_id, kind, raw, **expected)
        self.requests.append(request)
        await self._push(request)

    async def _push(self, request: Request) -> None:
        request.attempts += await self._client.write("LPUSH", self._keys.request_queue, request.raw)
        request.pushes += 1


class ExactOperator(Operator):
    """Sends commands whose outcome can be predicted: to journey agents, to agents that pop nothing, and to nobody."""

    name = "command"

    def __init__(self, client: RetryingClient, keys: Keys, seed: int, agent_ids: list[str]) -> None:
        super().__init__(client, keys, seed)
        self._agent_ids = agent_ids

    async def _ask_any(self) -> None:
        rng, luck = self._rng, self._rng.random()
        payload: dict[str, Any] = {"command": {"type": "work", "payload": {"n": len(self.requests)}}}
        if luck < 0.1:
            await self._ask("send", {**payload, "agent_id": "no-such-agent"}, expected="request_refused")
        elif luck < 0.2:
            target = {"agent_id": rng.choice(RECIPIENTS), "options": {"ttl": rng.uniform(0.3, 2.0)}}
            await self._ask("send", {**payload, **target}, expected="command_queued", expires=True)
        else:
            await self._ask("send", {**payload, "agent_id": rng.choice(self._agent_ids)}, expected="command_queued")


class WorkOperator(Operator):
    """Sends workers every kind of request."""

    name = "work"

    async def run(self, stopping: asyncio.Event) -> None:
        await super().run(stopping)
        for worker in WORKERS:
            await self._ask("resume", {"agent_id": worker})

    async def _ask_any(self) -> None:
        await self._rng.choices((self._send, self._cancel, self._hold), (8, 1, 2))[0]()

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
        sent = [request for request in self.requests if request.kind == "send"][-5:]
        if sent:
            request = self._rng.choice(sent)
            await self._ask("cancel", {"group_id" if request.is_group else "command_id": request.request_id})

    async def _hold(self) -> None:
        target = self._rng.choice(({"agent_id": self._rng.choice(WORKERS)}, {"select": "type=worker"}))
        await self._ask(self._rng.choice(("pause", "resume")), target, is_group="select" in target)
