"""Workers that take commands as the protocol has it, and forget some; and the foreman who orders them about.

What a worker takes may never come back to it: it drops commands, its pop loses its reply, a failover takes an answer
away. So nobody can tell beforehand how a command ends. That each ends once, and with a reason, is `fates.py`'s to say.
"""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from aism_engine.store.keys import Keys
from tests.chaos.journal import Order
from tests.chaos.line import Line

WORKERS: Final = tuple(f"worker-{number}" for number in range(4))
MOST_ATTEMPTS: Final = 3
_OPTIONS: Final[dict[str, Any]] = {"ttl": 8, "ack_timeout": 0.4, "timeout": 0.8, "max_attempts": MOST_ATTEMPTS}


@dataclass
class Notes:
    """What the workers know themselves."""

    taken: Counter[str] = field(default_factory=Counter)
    """The commands that came into their hands, and how often."""
    done: set[str] = field(default_factory=set)
    """Those they have reported a success of."""


class Worker:
    """Pops a command, and then does it, fails, or forgets it. Once all is calm it does whatever comes."""

    def __init__(self, agent_id: str, line: Line, keys: Keys, notes: Notes, seed: int) -> None:
        self._agent_id = agent_id
        self._line = line
        self._keys = keys
        self._notes = notes
        self._rng = random.Random(f"{seed} {agent_id}")
        self._said = 0

    async def register(self) -> None:
        await self._say("register", payload={"type": "worker", "capabilities": ["ack"]})

    async def run(self, stopping: asyncio.Event, drained: asyncio.Event) -> None:
        rng, commands = self._rng, self._keys.commands(self._agent_id)
        while not drained.is_set():
            body = await self._line.read("RPOP", commands)
            if body is not None:
                command = json.loads(body)
                if command["type"] != "cancel":
                    self._notes.taken[command["id"]] += 1
                    await self._do(command["id"], calm=stopping.is_set())
            await asyncio.sleep(rng.uniform(0, 0.03))

    async def _do(self, command_id: str, *, calm: bool) -> None:
        rng, luck = self._rng, 1.0 if calm else self._rng.random()
        if luck < 0.1:
            return  # it never knew
        if luck < 0.9 or calm:
            await self._say("ack", command_id=command_id)
        if luck < 0.2:
            return  # it died over it
        if luck < 0.4:
            await self._say("error", command_id=command_id, payload={"code": "oops", "retryable": rng.random() < 0.7})
        else:
            self._notes.done.add(command_id)
            await self._say("result", command_id=command_id, payload={"answer": 42})

    async def _say(self, kind: str, **fields: Any) -> None:  # noqa: ANN401
        self._said += 1
        message = {"id": f"{self._agent_id}-{self._said}", "type": kind, "agent_id": self._agent_id, **fields}
        await self._line.write("LPUSH", self._keys.response_queue, json.dumps(message))


class Foreman:
    """Gives the workers orders of every kind, and each order again where it does not know whether it was heard."""

    def __init__(self, line: Line, keys: Keys, seed: int) -> None:
        self.orders: list[Order] = []
        self._line = line
        self._keys = keys
        self._rng = random.Random(f"foreman {seed}")

    async def run(self, stopping: asyncio.Event) -> None:
        rng = self._rng
        while not stopping.is_set():
            await rng.choices((self._send, self._cancel, self._hold), (8, 1, 2))[0]()
            if self.orders and rng.random() < 0.1:
                await self._push(rng.choice(self.orders[-5:]))
            await asyncio.sleep(rng.uniform(0, 0.2))
        for worker in WORKERS:
            await self._order("resume", {"agent_id": worker})

    async def _send(self) -> None:
        rng = self._rng
        options = {**_OPTIONS, "priority": rng.choice(("high", "normal", "low"))}
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
        await self._order("send", {**target, "command": {"type": "work"}, "options": options})

    async def _cancel(self) -> None:
        sent = [order for order in self.orders if order.kind == "send"][-5:]
        if sent:
            order = self._rng.choice(sent)
            name = "group_id" if order.to_many else "command_id"
            await self._order("cancel", {name: order.request_id})

    async def _hold(self) -> None:
        target = self._rng.choice(({"agent_id": self._rng.choice(WORKERS)}, {"select": "type=worker"}))
        await self._order(self._rng.choice(("pause", "resume")), target)

    async def _order(self, kind: str, payload: dict[str, Any]) -> None:
        request_id = f"order-{len(self.orders)}"
        raw = json.dumps({"id": request_id, "type": kind, "payload": payload}).encode()
        order = Order(request_id, kind, raw, to_many="select" in payload and "any" not in payload)
        self.orders.append(order)
        await self._push(order)

    async def _push(self, order: Order) -> None:
        order.attempts += await self._line.write("LPUSH", self._keys.request_queue, order.raw)
        order.pushes += 1
