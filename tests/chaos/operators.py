"""The operators of the load: they send commands, and the same request again where they do not know."""

import asyncio
import json
import random

from aism_engine.store.keys import Keys
from tests.chaos.agents import HUBS
from tests.chaos.journal import Asked
from tests.chaos.law import JOURNEY
from tests.chaos.line import Line


class Operator:
    """Sends commands, and the same request again where it does not know."""

    def __init__(self, line: Line, keys: Keys, seed: str) -> None:
        self.asked: list[Asked] = []
        self._line = line
        self._keys = keys
        self._rng = random.Random(seed)
        self._seed = seed

    async def run(self, agents: list[str], stopping: asyncio.Event) -> None:
        """Send work to these agents, now and then to one that pops nothing, or to one that is not there."""
        rng = self._rng
        while not stopping.is_set():
            where = rng.random()
            if where < 0.1:
                await self.ask("no-such-agent", "work", expected="request_refused")
            elif where < 0.2:
                await self.ask(rng.choice(HUBS), "work", ttl=rng.uniform(0.3, 2.0))
            else:
                await self.ask(rng.choice(agents), "work")
            if rng.random() < 0.1:
                await self._push(rng.choice(self.asked[-5:]))
            await asyncio.sleep(rng.uniform(0, 0.1))

    async def drill(self, agent_id: str, stopping: asyncio.Event, drained: asyncio.Event) -> None:
        """Lead one agent through the journey, each command after the one before it has ended.

        One that has not when all is `drained` never will: that is for the verdict to say.
        """
        state = "bootstrap"
        while not stopping.is_set():
            state = self._rng.choice(sorted(JOURNEY[state]))
            asked = await self.ask(agent_id, "state_transition", target=state)
            status = None
            while status not in {b"succeeded", b"failed", b"expired", b"cancelled"} and not drained.is_set():
                await asyncio.sleep(0.02)
                status = await self._line.read("HGET", self._keys.command(asked.request_id), "status")

    async def ask(
        self,
        agent_id: str,
        kind: str,
        *,
        expected: str = "command_queued",
        target: str | None = None,
        ttl: float | None = None,
    ) -> Asked:
        request_id = f"{self._seed}-{len(self.asked)}"
        payload = {"n": len(self.asked)} if target is None else {"target": target}
        body = {
            "id": request_id,
            "type": "send",
            "payload": {
                "agent_id": agent_id,
                "command": {"type": kind, "payload": payload},
                "options": {} if ttl is None else {"ttl": ttl},
            },
        }
        asked = Asked(request_id, agent_id, expected, json.dumps(body).encode(), target, ttl is not None)
        self.asked.append(asked)
        await self._push(asked)
        return asked

    async def _push(self, asked: Asked) -> None:
        asked.attempts += await self._line.write("LPUSH", self._keys.request_queue, asked.raw)
        asked.pushes += 1
