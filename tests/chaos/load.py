"""The load of a trial: its agents, its operators, and messages that cannot be decoded."""

import asyncio
import random
from typing import Any, Final

from aism_engine.store.keys import Keys
from tests.chaos.agent_model import DEAD_LETTER
from tests.chaos.agents import RECIPIENTS, Agent
from tests.chaos.observations import Observations, lengths
from tests.chaos.operators import ExactOperator, WorkOperator
from tests.chaos.records import Message
from tests.chaos.retrying_client import BROKEN, RetryingClient
from tests.chaos.schedule import Plan
from tests.chaos.workers import WORKERS, Worker, WorkReport

LARGEST_MESSAGE: Final = 20_000
"""`protocol.max_message_bytes` of the engines."""
_KINDS: Final = ("journey", "journey", "journey", "open", "journey", "open", "publisher")


class Load:
    """All agents and operators of a trial."""

    def __init__(self, plan: Plan, client: RetryingClient, keys: Keys) -> None:
        self.stopping = asyncio.Event()
        """Set when nothing new is to be sent."""
        self.drained = asyncio.Event()
        """Set when no command is left to be answered."""
        self._client = client
        self._keys = keys
        self._rng = random.Random(f"{plan.seed}")
        self._agents = [
            Agent(f"{kind}-{number}", kind, client, keys, plan, beats=number % 2 == 0)
            for number in range(plan.agents)
            for kind in (_KINDS[number % len(_KINDS)],)
        ]
        self._recipients = [Agent(name, "recipient", client, keys, plan, beats=True) for name in RECIPIENTS]
        self._wrong_type = Agent("wrong-type-0", "wrong-type", client, keys, plan, beats=False)
        self._report = WorkReport()
        self._workers = [Worker(agent_id, client, keys, self._report, plan.seed) for agent_id in WORKERS]
        self._operator = ExactOperator(client, keys, plan.seed, self._ids("journey"))
        self._work_operator = WorkOperator(client, keys, plan.seed)
        self._invalid: list[Message] = []

    async def set_up(self) -> None:
        """Register the first agents, and wait until the engine has applied that."""
        await self._client.write("LPUSH", self._keys.state(self._wrong_type.record.agent_id), "no state")
        first = [*self._recipients, *(agent for agent in self._agents if agent.kind == "journey")]
        for agent in first:
            await agent.send("register", payload={"type": "architect"})
        for worker in self._workers:
            await worker.register()
        known = len(first) + len(self._workers)
        while await self._client.read("SCARD", self._keys.index) < known:  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.01)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for agent in (*self._agents, self._wrong_type):
                group.create_task(agent.run(self.stopping, self.drained))
            for worker in self._workers:
                group.create_task(worker.run(self.stopping, self.drained))
            for operator in (self._operator, self._work_operator):
                group.create_task(operator.run(self.stopping))
            group.create_task(self._send_invalid())
            group.create_task(self._beat())

    async def wait_answered(self) -> None:
        """Wait until no message, request or command is on its way."""
        read, keys, is_open = self._client.read, self._keys, True
        while is_open:
            lists = [await read("LLEN", keys.commands(agent_id)) for agent_id in self._ids("journey")]
            is_open = any(lists) or any((await lengths(read, keys)).values())
            await asyncio.sleep(0.05)

    def observations(self) -> Observations:
        """Return what the load itself knows."""
        return Observations(
            agents=[agent.record for agent in (*self._recipients, *self._agents, self._wrong_type)],
            wrong_type=frozenset((self._wrong_type.record.agent_id,)),
            publishers=frozenset(self._ids("publisher")),
            invalid=self._invalid,
            requests=self._operator.requests,
            work_requests=self._work_operator.requests,
            taken=self._report.taken,
            succeeded=self._report.succeeded,
        )

    def _ids(self, kind: str) -> list[str]:
        return [agent.record.agent_id for agent in self._agents if agent.kind == kind]

    async def _send_invalid(self) -> None:
        """Push messages that cannot be decoded, no two of them alike."""
        rng = self._rng
        while not self.stopping.is_set():
            mark = f"invalid-{len(self._invalid)}"
            name = mark.encode()
            raw = rng.choice(
                (
                    rng.randbytes(20) + name,
                    b'{"id":"%s","type":"state_transition","agent_id":"a"' % name,
                    b'{"id":"%s","type":"no_such_type","agent_id":"a"}' % name,
                    b'{"id":"%s","type":"heartbeat","agent_id":"../%s"}' % (name, name),
                    b'{"id":"%s","type":"measurement","agent_id":"a","payload":{"x":"y"}}' % name,
                    b'["%s"]' % name,
                    b'["%s",' % name + b"[" * 5000,
                    b'{"id":"%s","x":"%s"}' % (name, b"x" * LARGEST_MESSAGE),
                )
            )
            message = Message(mark, "invalid", raw, (DEAD_LETTER,))
            self._invalid.append(message)
            message.attempts = await self._client.write("LPUSH", self._keys.response_queue, raw)
            message.pushes = 1
            await asyncio.sleep(rng.uniform(0, 0.1))

    async def _beat(self) -> None:
        """Send heartbeats for all agents that have any, with the server's clock."""
        agents: tuple[Agent, ...] = (*self._recipients, *self._agents)
        beating: list[Any] = [*WORKERS, *(agent.record.agent_id for agent in agents if agent.beats)]
        client = self._client.client
        while not self.drained.is_set():
            try:
                seconds, _ = await client.time()
                await client.zadd(self._keys.heartbeats, dict.fromkeys(beating, seconds))
            except BROKEN:
                pass
            await asyncio.sleep(0.2)
