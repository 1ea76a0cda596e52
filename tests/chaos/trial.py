"""One trial: a server, two engines, a load, a plan of faults, and the verdict."""

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from redis.exceptions import RedisError

from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.chaos import evidence as found
from tests.chaos.engines import EngineProcess
from tests.chaos.faults import World
from tests.chaos.load import HUBS, OVERSIZED, Agent, Operator, beat, litter, load_client
from tests.chaos.recovery import Recovery
from tests.chaos.schedule import LEASE_S, SPAN_S, Plan, plan
from tests.chaos.verdict import LEFT_OVER, Violation, judge
from tests.support.proxy import FaultProxy
from tests.support.server import test_server_binary

PATIENCE_S: Final = 30.0
"""For everything to be done once all is calm; what is not done by then is left over."""
LIMIT_S: Final = 60.0
"""For a whole trial."""
_KINDS: Final = ("journey", "journey", "journey", "open", "soldier", "journey", "open", "voice")


@dataclass
class Report:
    """What a trial came to."""

    seed: int
    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    responses: int = 0
    recovery_s: float = 0.0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)


def run(seed: int, keep: Path | None = None) -> Report:
    """Run the trial of this seed from beginning to end. `keep`: a folder for the server's files and the logs."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes to connections that we have cut
    with TemporaryDirectory(prefix="aism-chaos-") as folder:
        return asyncio.run(_bounded(plan(seed), keep or Path(folder)))


async def _bounded(made: Plan, folder: Path) -> Report:
    """A trial that does not end is a violation, too: it says where everybody stands."""
    trial = asyncio.create_task(_run(made, folder))
    done, _ = await asyncio.wait([trial], timeout=LIMIT_S)
    if done:
        return trial.result()
    for task in asyncio.all_tasks():
        task.print_stack()
    trial.cancel()
    await asyncio.wait([trial], timeout=5)
    return Report(seed=made.seed, violations=[Violation(LEFT_OVER, "the trial", f"it did not end in {LIMIT_S} s")])


async def _run(made: Plan, folder: Path) -> Report:
    began = time.monotonic()
    keys = Keys("chaos")
    async with AsyncExitStack() as stack:
        server = EmbeddedServer(
            test_server_binary(),
            data_dir=folder,
            append_fsync="always",
            extra=("--auto-aof-rewrite-percentage", "0"),
        )
        stack.enter_context(server)
        client = await stack.enter_async_context(load_client(server.url))
        watcher = await stack.enter_async_context(load_client(server.url))
        engines: dict[EngineProcess, FaultProxy] = {}
        for number in range(2):
            wire = await stack.enter_async_context(FaultProxy(server.port, seed=made.seed + number))
            engines[EngineProcess(f"engine-{number}", _environ(made, keys, wire))] = wire
        recovery = Recovery(watcher, keys.ledger)
        world = World(server, client, keys, engines, recovery)
        for engine in engines:
            stack.push_async_callback(engine.kill)
            await engine.start()
        load = Load(made, client, keys)
        await load.set_up()
        await _storm(made, world, load)
        evidence = load.evidence()
        evidence.left = await _wait_done(client, keys)
        for engine in engines:
            await engine.terminate()
        await found.collect(client, keys, evidence)
        server.kill()
        evidence.commits = list(found.commits(folder, keys))
        evidence.complaints = [str(complaint) for engine in engines for complaint in engine.complaints]
    return Report(
        seed=made.seed,
        kills=sum(engine.kills for engine in engines),
        faults=Counter(world.done),
        responses=sum(len(journal.said) for journal in evidence.journals) + len(evidence.garbage),
        recovery_s=recovery.longest_s,
        seconds=time.monotonic() - began,
        violations=judge(evidence),
    )


async def _storm(made: Plan, world: World, load: "Load") -> None:
    """Let the load and the faults go on side by side; afterwards everybody is there again, and all is answered."""
    async with asyncio.TaskGroup() as group:
        group.create_task(world.recovery.run())
        speaking = group.create_task(load.run())
        began = time.monotonic()

        async def befall(number: int) -> None:
            fault = made.faults[number]
            await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
            await world.befall(fault)

        await asyncio.gather(*(befall(number) for number in range(len(made.faults))))
        await asyncio.sleep(max(0.0, began + SPAN_S - time.monotonic()))
        for engine, wire in world.engines.items():
            wire.heal()
            engine.resume()
            await engine.start()
        async with asyncio.timeout(PATIENCE_S):
            while world.recovery.recovering:  # noqa: ASYNC110 - it is watched from outside
                await asyncio.sleep(0.01)
        load.stopping.set()
        world.recovery.over = True
        await load.wait_answered()
        load.drained.set()
        await speaking


async def _wait_done(client: Any, keys: Keys) -> dict[str, int]:  # noqa: ANN401
    """Wait until nothing is left to do; gives what is left when patience is."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        left = {
            "responses": await client.llen(keys.response_queue),
            "requests": await client.llen(keys.request_queue),
            "open commands": await client.zcard(keys.deadlines),
        }
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.02)


class Load:
    """All agents and operators of a trial."""

    def __init__(self, made: Plan, client: Any, keys: Keys) -> None:  # noqa: ANN401
        self.stopping = asyncio.Event()
        """No more is begun."""
        self.drained = asyncio.Event()
        """No command is left to be answered."""
        self._client = client
        self._keys = keys
        self._seed = f"{made.seed}"
        self._agents = [
            Agent(f"{kind}-{number}", kind, client, keys, made, beats=number % 2 == 0)
            for number in range(made.agents)
            for kind in (_KINDS[number % len(_KINDS)],)
        ]
        self._hubs = [Agent(name, "hub", client, keys, made, beats=True) for name in HUBS]
        self._spoilt = Agent("spoilt-0", "spoilt", client, keys, made, beats=False)
        self._operators = [Operator(client, keys, f"work-{made.seed}")]
        self._garbage: list[Any] = []

    async def set_up(self) -> None:
        """Let the first agents register, and wait until they are known."""
        await self._client.lpush(self._keys.state(self._spoilt.journal.agent_id), "no state")
        first = [*self._hubs, *self._of("journey", "soldier")]
        for agent in first:
            await agent.say("register", payload={"type": "architect"})
        async with asyncio.timeout(10):
            while await self._client.scard(self._keys.index) < len(first):  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)

    async def run(self) -> None:
        client, keys, stopping = self._client, self._keys, self.stopping
        beating = [agent.journal.agent_id for agent in (*self._hubs, *self._agents) if agent.beats]
        workers = [agent.journal.agent_id for agent in self._of("journey")]
        async with asyncio.TaskGroup() as group:
            for agent in (*self._agents, self._spoilt):
                group.create_task(agent.run(stopping, self.drained))
            group.create_task(self._operators[0].run(workers, stopping))
            for agent in self._of("soldier"):
                operator = Operator(client, keys, f"drill-{agent.journal.agent_id}")
                self._operators.append(operator)
                group.create_task(operator.drill(agent.journal.agent_id, stopping))
            group.create_task(litter(client, keys, self._seed, self._garbage, stopping))
            group.create_task(beat(client, keys, beating, self.drained))

    async def wait_answered(self) -> None:
        """Wait until no command is on its way; in vain, that is for the verdict to say."""
        deadline = time.monotonic() + PATIENCE_S
        keys = self._keys
        while time.monotonic() < deadline:
            try:
                left = [
                    await self._client.llen(keys.request_queue),
                    await self._client.llen(keys.response_queue),
                    *[await self._client.llen(keys.commands(agent.journal.agent_id)) for agent in self._agents],
                ]
            except (RedisError, OSError):
                left = [1]
            if not any(left):
                return
            await asyncio.sleep(0.02)

    def evidence(self) -> found.Evidence:
        """What the load itself knows."""
        return found.Evidence(
            journals=[agent.journal for agent in (*self._hubs, *self._agents, self._spoilt)],
            spoilt=frozenset((self._spoilt.journal.agent_id,)),
            voices=frozenset(agent.journal.agent_id for agent in self._of("voice")),
            garbage=self._garbage,
            asked=[asked for operator in self._operators for asked in operator.asked],
        )

    def _of(self, *kinds: str) -> list[Agent]:
        return [agent for agent in self._agents if agent.kind in kinds]


def _environ(made: Plan, keys: Keys, wire: FaultProxy) -> dict[str, str]:
    """The settings of the engines: everything happens soon."""
    return {
        "AISM_REDIS__URL": wire.url,
        "AISM_REDIS__PREFIX": keys.prefix,
        "AISM_REDIS__PROTOCOL": str(made.protocol),
        "AISM_REDIS__SOCKET_TIMEOUT": "0.5",
        "AISM_REDIS__CONNECT_TIMEOUT": "0.5",
        "AISM_REDIS__RETRY_BACKOFF_MAX": "0.2",
        "AISM_HTTP__ENABLED": "false",
        "AISM_LEASE__TTL": str(LEASE_S),
        "AISM_LEASE__RENEW_EVERY": "0.2",
        "AISM_CONSUMER__BATCH_MESSAGES": str(made.batch_messages),
        "AISM_CONSUMER__MAX_MESSAGE_BYTES": str(OVERSIZED),
        "AISM_AGENTS__INBOX_KEEP": "100000",
        "AISM_AGENTS__METADATA_EVERY": "0.5",
        "AISM_LIVENESS__SCAN_INTERVAL": "0.2",
        "AISM_LIVENESS__SILENT_AFTER": "2",
        "AISM_LIVENESS__LOST_AFTER": "4",
        "AISM_TIMEKEEPER__POLL_INTERVAL": "0.1",
        "AISM_SAMPLER__INTERVAL": "0.5",
        "AISM_SUPERVISOR__RESTARTS": "0",
        "AISM_LOGS__FORMAT": "json",
    }
