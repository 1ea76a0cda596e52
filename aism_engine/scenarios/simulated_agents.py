"""A small fleet that only pretends: for `aism-engine dev`, for demonstrations, and to have something to look at.

Its agents keep to the journey (config/machines/journey.toml) and to the protocol. They take commands, work on them for
a while, sometimes fail, report figures, wander from state to state, and now and then fall silent for so long that they
are lost, then come back. The same seed gives the same choices; what comes of them is up to the clock.

`python -m aism_engine.scenarios.simulated_agents --help` runs a fleet alone, on a server of one's own.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from aism_engine.agent.client import AgentClient, CommandMessage
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.admin_client import AdminClient

KINDS: Final = ("architect", "builder", "reviewer")
_TASKS: Final[Mapping[str, Sequence[str]]] = {
    "architect": ("design", "estimate"),
    "builder": ("build", "repair"),
    "reviewer": ("review", "audit"),
}
_WAYS: Final[Mapping[str, Sequence[str]]] = {
    "bootstrap": ("inbox",),
    "inbox": ("deep_work", "deep_work", "idle", "distill"),
    "deep_work": ("inbox", "distill"),
    "distill": ("inbox", "deep_work"),
    "idle": ("inbox",),
}
"""Where an agent may go by itself: part of the journey, the likelier the more often it stands there."""
_BEAT_EVERY_S: Final = 0.5
_PATIENCE_S: Final = 1.0
"""Between attempts while the server is away, or the engine does not answer."""


class SimulatedAgent:
    """One agent. `silence_s` is for how long it is mute at least, when it is."""

    def __init__(self, client: AgentClient, kind: str, random: Random, *, silence_s: float) -> None:
        self._client = client
        self._kind = kind
        self._random = random
        self._silence_s = silence_s
        self._silent = False
        self._state = ""

    async def run(self) -> None:
        """Live until cancelled."""
        async with self._client, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._live())

    async def _beat(self) -> None:
        while True:
            if not self._silent:
                try:
                    await self._client.heartbeat()
                except ServerUnavailableError:
                    await asyncio.sleep(_PATIENCE_S)
            await asyncio.sleep(_BEAT_EVERY_S)

    async def _live(self) -> None:
        while True:
            try:
                labels = {"team": self._random.choice(("red", "blue")), "simulated": "yes"}
                answer = await self._client.register(self._kind, labels=labels, capabilities=["ack"])
                self._state = (answer and answer.state) or ""
                while True:
                    await self._step()
            except (ServerUnavailableError, TimeoutError):
                await asyncio.sleep(_PATIENCE_S)

    async def _step(self) -> None:
        command = await self._client.next_command(wait_s=self._random.uniform(0.1, 0.6))
        chance = self._random.random()
        if command is not None:
            await self._obey(command)
        elif chance < 0.01:  # noqa: PLR2004  arbitrary, as all chances here: it shall be lively
            await self._fall_silent()
        elif chance < 0.3:  # noqa: PLR2004
            context_used = round(self._random.betavariate(2, 3), 3)
            await self._client.measure({"context_used": context_used, "tokens": self._random.randrange(200, 4000)})
        else:
            await self._go(self._random.choice(_WAYS.get(self._state, ("inbox",))))

    async def _obey(self, command: CommandMessage) -> None:
        if command.type == "state_transition":
            await self._go(str(command.payload.get("target")), command.id)
            return
        await self._client.ack(command.id)
        await asyncio.sleep(self._random.uniform(0.05, 0.4))
        await self._client.progress(command.id, percent=50)
        await asyncio.sleep(self._random.uniform(0.05, 0.4))
        if self._random.random() < 0.1:  # noqa: PLR2004
            await self._client.error("no_luck", f"could not {command.type}", command_id=command.id)
        else:
            await self._client.result(command.id, {"lines": self._random.randrange(500)})

    async def _go(self, target: str, command_id: str | None = None) -> None:
        answer = await self._client.transition(target, command_id=command_id)
        self._state = (answer and answer.state) or self._state

    async def _fall_silent(self) -> None:
        self._silent = True
        await asyncio.sleep(self._silence_s * self._random.uniform(1, 1.5))
        self._silent = False


class Simulation:
    """A fleet of simulated agents, and an operator who keeps them busy. `silence_s` is longer than `lost_after`."""

    def __init__(self, agents: int, *, url: str, prefix: str, seed: int, silence_s: float) -> None:
        self._server = (url, prefix)
        self._random = Random(seed)  # noqa: S311  the same again is what is wanted
        self._agents: dict[str, SimulatedAgent] = {}
        for number in range(agents):
            kind = KINDS[number % len(KINDS)]
            agent_id = f"{kind}-{self._random.randbytes(3).hex()}"
            client, random = AgentClient(agent_id, url=url, prefix=prefix), Random(f"{seed}:{agent_id}")  # noqa: S311
            self._agents[agent_id] = SimulatedAgent(client, kind, random, silence_s=silence_s)

    async def run(self) -> None:
        """Live until cancelled."""
        async with AdminClient.connect(*self._server) as operator, asyncio.TaskGroup() as tasks:
            for agent_id, agent in self._agents.items():
                tasks.create_task(agent.run(), name=agent_id)
            tasks.create_task(self._command(operator))

    async def _command(self, operator: AdminClient) -> None:
        """Send about one command in two seconds to each; some ask for what is not allowed, and are refused."""
        random, ids = self._random, list(self._agents)
        while True:
            await asyncio.sleep(random.expovariate(len(ids) / 2))
            agent_id = random.choice(ids)
            command: dict[str, Any] = {"type": random.choice(_TASKS[agent_id.partition("-")[0]])}
            if random.random() < 0.2:  # noqa: PLR2004
                command = {"type": "state_transition", "payload": {"target": random.choice(("inbox", "deep_work"))}}
            payload = {"agent_id": agent_id, "command": command, "options": {"ttl": 30}}
            try:
                await operator.request("send", payload, timeout_s=_PATIENCE_S)
            except (ServerUnavailableError, TimeoutError):
                await asyncio.sleep(_PATIENCE_S)


def main() -> None:
    """Run a fleet until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m aism_engine.scenarios.simulated_agents", description=__doc__)
    url = os.environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
    parser.add_argument("--redis", metavar="URL", default=url, help="the server; else AISM_REDIS_URL, else localhost")
    parser.add_argument("--prefix", metavar="NAME", default=os.environ.get("AISM_REDIS__PREFIX") or "aism")
    parser.add_argument("--agents", metavar="N", type=int, default=12, help="how many (12)")
    parser.add_argument("--seed", type=int, default=1, help="the same again for the same choices")
    parser.add_argument("--silence", metavar="S", type=float, default=60, help="of those who are to be lost (60 s)")
    o = parser.parse_args()
    simulation = Simulation(o.agents, url=o.redis, prefix=o.prefix, seed=o.seed, silence_s=o.silence)

    async def run() -> None:
        living = asyncio.ensure_future(simulation.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, living.cancel)
        await asyncio.wait([living])
        if not living.cancelled():
            living.result()

    asyncio.run(run())


if __name__ == "__main__":
    main()
