"""The load of a trial: all its agents and operators, and those who only make noise."""

import asyncio
import random
import time
from typing import Any, Final

from aism_engine.store.keys import Keys
from tests.chaos.agents import HUBS, Agent
from tests.chaos.evidence import Evidence
from tests.chaos.journal import Said
from tests.chaos.law import LETTER
from tests.chaos.line import BROKEN, Line
from tests.chaos.operators import Operator
from tests.chaos.schedule import Plan
from tests.chaos.workers import WORKERS, Foreman, Notes, Worker

OVERSIZED: Final = 20_000
"""`protocol.max_message_bytes` of the engines."""
PATIENCE_S: Final = 30.0
"""For everything to be done once all is calm; what is not done by then is left over."""
_KINDS: Final = ("journey", "journey", "journey", "open", "soldier", "journey", "open", "voice")


class Load:
    """All agents and operators of a trial."""

    def __init__(self, made: Plan, line: Line, keys: Keys) -> None:
        self.stopping = asyncio.Event()
        """No more is begun."""
        self.drained = asyncio.Event()
        """No command is left to be answered."""
        self._line = line
        self._keys = keys
        self._seed = f"{made.seed}"
        self._agents = [
            Agent(f"{kind}-{number}", kind, line, keys, made, beats=number % 2 == 0)
            for number in range(made.agents)
            for kind in (_KINDS[number % len(_KINDS)],)
        ]
        self._hubs = [Agent(name, "hub", line, keys, made, beats=True) for name in HUBS]
        self._spoilt = Agent("wrong_type_keys-0", "wrong_type_keys", line, keys, made, beats=False)
        self._operators = [Operator(line, keys, f"work-{made.seed}")]
        self._notes = Notes()
        self._workers = [Worker(agent_id, line, keys, self._notes, made.seed) for agent_id in WORKERS]
        self._foreman = Foreman(line, keys, made.seed)
        self._garbage: list[Said] = []

    async def set_up(self) -> None:
        """Let the first agents register, and wait until they are known."""
        await self._line.write("LPUSH", self._keys.state(self._spoilt.journal.agent_id), "no state")
        first = [*self._hubs, *self._of("journey", "soldier")]
        for agent in first:
            await agent.say("register", payload={"type": "architect"})
        for worker in self._workers:
            await worker.register()
        known = len(first) + len(self._workers)
        async with asyncio.timeout(PATIENCE_S):
            while await self._line.read("SCARD", self._keys.index) < known:  # noqa: ASYNC110 - it is watched from outside
                await asyncio.sleep(0.01)

    async def run(self) -> None:
        line, keys, stopping = self._line, self._keys, self.stopping
        beating = [*WORKERS, *(agent.journal.agent_id for agent in (*self._hubs, *self._agents) if agent.beats)]
        workers = [agent.journal.agent_id for agent in self._of("journey")]
        async with asyncio.TaskGroup() as group:
            for agent in (*self._agents, self._spoilt):
                group.create_task(agent.run(stopping, self.drained))
            for worker in self._workers:
                group.create_task(worker.run(stopping, self.drained))
            group.create_task(self._foreman.run(stopping))
            group.create_task(self._operators[0].run(workers, stopping))
            for agent in self._of("soldier"):
                operator = Operator(line, keys, f"drill-{agent.journal.agent_id}")
                self._operators.append(operator)
                group.create_task(operator.drill(agent.journal.agent_id, stopping, self.drained))
            group.create_task(litter(line, keys, self._seed, self._garbage, stopping))
            group.create_task(beat(line.client, keys, beating, self.drained))

    async def wait_answered(self) -> None:
        """Wait until no command is on its way; in vain, that is for the verdict to say."""
        deadline = time.monotonic() + PATIENCE_S
        keys = self._keys
        queues = [
            keys.request_queue,
            keys.response_queue,
            keys.fanout,
            *(keys.commands(agent.journal.agent_id) for agent in self._agents),
        ]
        while time.monotonic() < deadline:
            left = [await self._line.read("LLEN", queue) for queue in queues]
            if not any([*left, await self._line.read("ZCARD", keys.deadlines)]):
                return
            await asyncio.sleep(0.02)

    def evidence(self) -> Evidence:
        """What the load itself knows."""
        return Evidence(
            journals=[agent.journal for agent in (*self._hubs, *self._agents, self._spoilt)],
            wrong_type_keys=frozenset((self._spoilt.journal.agent_id,)),
            voices=frozenset(agent.journal.agent_id for agent in self._of("voice")),
            garbage=self._garbage,
            orders=self._foreman.orders,
            taken=self._notes.taken,
            done=self._notes.done,
            asked=[asked for operator in self._operators for asked in operator.asked],
        )

    def _of(self, *kinds: str) -> list[Agent]:
        return [agent for agent in self._agents if agent.kind in kinds]


async def litter(line: Line, keys: Keys, seed: str, garbage: list[Said], stopping: asyncio.Event) -> None:
    """Push what is no message, each piece unlike any other."""
    rng = random.Random(seed)
    while not stopping.is_set():
        mark = f"garbage-{len(garbage)}"
        raw = rng.choice(
            (
                rng.randbytes(20) + mark.encode(),
                b'{"id":"%s","type":"state_transition","agent_id":"a"' % mark.encode(),
                b'{"id":"%s","type":"no_such_type","agent_id":"a"}' % mark.encode(),
                b'{"id":"%s","type":"heartbeat","agent_id":"../%s"}' % (mark.encode(), mark.encode()),
                b'{"id":"%s","type":"measurement","agent_id":"a","payload":{"x":"y"}}' % mark.encode(),
                b'["%s"]' % mark.encode(),
                b'["%s",' % mark.encode() + b"[" * 5000,
                b'{"id":"%s","x":"%s"}' % (mark.encode(), b"x" * OVERSIZED),
            )
        )
        said = Said(mark, "garbage", raw, (LETTER,))
        garbage.append(said)
        said.attempts = await line.write("LPUSH", keys.response_queue, raw)
        said.pushes = 1
        await asyncio.sleep(rng.uniform(0, 0.1))


async def beat(client: Any, keys: Keys, agents: list[str], stopping: asyncio.Event) -> None:  # noqa: ANN401
    """Heartbeats for these agents, in one go. Their clock is the server's."""
    while not stopping.is_set():
        try:
            seconds, _ = await client.time()
            await client.zadd(keys.heartbeats, dict.fromkeys(agents, seconds))
        except BROKEN:
            pass
        await asyncio.sleep(0.2)
