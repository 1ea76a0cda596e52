"""Workers take commands as the protocol describes, and forget some.

A pop may lose its reply, and a failover may take an outcome back. So nobody can predict how a command of a worker ends;
`command_verdict.py` checks that each ends once, and with a reason.
"""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from aism_engine.store.keys import Keys
from tests.chaos.retrying_client import RetryingClient

WORKERS: Final = tuple(f"worker-{number}" for number in range(4))


@dataclass
class WorkReport:
    """What the workers have done, by command."""

    taken: Counter[str] = field(default_factory=Counter)
    succeeded: set[str] = field(default_factory=set)


class Worker:
    """Pops commands, and does each of them, fails, or forgets it. Once the faults are over it does all of them."""

    def __init__(self, agent_id: str, client: RetryingClient, keys: Keys, report: WorkReport, seed: int) -> None:
        self._agent_id = agent_id
        self._client = client
        self._keys = keys
        self._report = report
        self._rng = random.Random(f"{seed} {agent_id}")
        self._sent = 0

    async def register(self) -> None:
        await self._send("register", payload={"type": "worker", "capabilities": ["ack"]})

    async def run(self, stopping: asyncio.Event, drained: asyncio.Event) -> None:
        while not drained.is_set():
            body = await self._client.read("RPOP", self._keys.commands(self._agent_id))
            if body is not None:
                command = json.loads(body)
                if command["type"] != "cancel":
                    self._report.taken[command["id"]] += 1
                    await self._do(command["id"], 1.0 if stopping.is_set() else self._rng.random())
            await asyncio.sleep(self._rng.uniform(0, 0.03))

    async def _do(self, command_id: str, luck: float) -> None:
        if luck < 0.1:
            return  # the worker dies before it reports anything
        if not 0.3 < luck < 0.4:
            await self._send("ack", command_id=command_id)
        if luck < 0.2:
            return  # the worker dies at work
        if luck < 0.4:
            payload = {"code": "oops", "retryable": self._rng.random() < 0.7}
            await self._send("error", command_id=command_id, payload=payload)
        else:
            self._report.succeeded.add(command_id)
            await self._send("result", command_id=command_id, payload={"answer": 42})

    async def _send(self, kind: str, **fields: Any) -> None:  # noqa: ANN401
        self._sent += 1
        message = {"id": f"{self._agent_id}-{self._sent}", "type": kind, "agent_id": self._agent_id, **fields}
        await self._client.write("LPUSH", self._keys.response_queue, json.dumps(message))
