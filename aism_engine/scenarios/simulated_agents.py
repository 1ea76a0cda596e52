"""A small simulated fleet, for `aism-engine dev` and for demonstrations.

The agents follow the journey machine (config/machines/journey.toml) and the protocol. They take commands, work on them,
sometimes fail, send measurements, change their states, and now and then fall silent for so long that they are lost.
The same seed gives the same choices; their order in time depends on the clock.

`python -m aism_engine.scenarios.simulated_agents` runs a fleet beside an engine of your own: see its `--help`.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

from aism_engine.agent.agent import run_until, run_until_signal
from aism_engine.agent.arguments import add_server_options, count, duration
from aism_engine.agent.client import AgentClient, CommandMessage
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.admin_client import AdminClient
from aism_engine.settings import RedisSettings

_COMMANDS: Final[Mapping[str, Sequence[str]]] = {
    "architect": ("design", "estimate"),
    "builder": ("build", "repair"),
    "reviewer": ("review", "audit"),
}
"""Types of agents, and the types of commands that they get."""
TRANSITIONS: Final[Mapping[str, Sequence[str]]] = {
    "bootstrap": ("inbox",),
    "inbox": ("deep_work", "deep_work", "idle", "distill"),
    "deep_work": ("inbox", "distill"),
    "distill": ("inbox", "deep_work"),
    "idle": ("inbox",),
}
"""Targets that an agent chooses from in each state; a target that is listed twice is twice as likely."""
_HEARTBEAT_INTERVAL_S: Final = 0.5
_RETRY_AFTER_S: Final = 1.0
"""Longest wait for the reply to a request, and the pause before an agent registers again."""


class SimulatedAgent:
    """One agent. When it falls silent, it stays silent for at least `silence_s`."""

    def __init__(self, client: AgentClient, kind: str, random: Random, *, silence_s: float) -> None:
        self._client = client
        self._kind = kind
        self._random = random
        self._silence_s = silence_s
        self._silent = False
        self._state = ""

    async def run(self) -> None:
        """Run until cancelled."""
        async with self._client, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_heartbeats())
            tasks.create_task(self._act())

    async def _send_heartbeats(self) -> None:
        while True:
            with suppress(ServerUnavailableError):
                if not self._silent:
                    await self._client.heartbeat()
            await asyncio.sleep(_HEARTBEAT_INTERVAL_S)

    async def _act(self) -> None:
        while True:
            try:
                labels = {"team": self._random.choice(("red", "blue")), "simulated": "yes"}
                reply = await self._client.register(self._kind, labels=labels, capabilities=["ack"])
                self._state = reply.state or ""
                while True:
                    await self._step()
            except (ServerUnavailableError, TimeoutError):
                await asyncio.sleep(_RETRY_AFTER_S)

    async def _step(self) -> None:
        command = await self._client.next_command(wait_s=self._random.uniform(0.1, 0.6))
        chance = self._random.random()
        if command is not None:
            await self._execute(command)
        elif chance < 0.01:  # noqa: PLR2004  all probabilities here are arbitrary
            await self._fall_silent()
        elif chance < 0.3:  # noqa: PLR2004
            context_used = round(self._random.betavariate(2, 3), 3)
            values = {"context_used": context_used, "tokens": self._random.randrange(200, 4000)}
            await self._client.send("measurement", values)
        else:
            await self._transition(self._random.choice(TRANSITIONS.get(self._state, ("inbox",))))

    async def _execute(self, command: CommandMessage) -> None:
        if command.type == "state_transition":
            await self._transition(str(command.payload.get("target")), command.id)
            return
        await self._client.send("ack", {}, command.id)
        await asyncio.sleep(self._random.uniform(0.05, 0.4))
        await self._client.send("progress", {"percent": 50}, command.id)
        await asyncio.sleep(self._random.uniform(0.05, 0.4))
        if self._random.random() < 0.1:  # noqa: PLR2004
            error = {"code": "simulated_failure", "message": f"could not {command.type}"}
            await self._client.send("error", error, command.id)
        else:
            await self._client.send("result", {"lines": self._random.randrange(500)}, command.id)

    async def _transition(self, target: str, command_id: str | None = None) -> None:
        reply = await self._client.transition(target, command_id=command_id)
        self._state = reply.state or self._state

    async def _fall_silent(self) -> None:
        self._silent = True
        await asyncio.sleep(self._silence_s * self._random.uniform(1, 1.5))
        self._silent = False


class Simulation:
    """A fleet of simulated agents, and an operator who sends them commands.

    `silence_s` must be longer than `liveness.lost_after` for agents to be lost.
    """

    def __init__(self, agents: int, *, url: str, prefix: str, seed: int, silence_s: float) -> None:
        self._server = RedisSettings(url=url, prefix=prefix)
        self._random = Random(seed)  # noqa: S311  reproducible choices
        self.agents: dict[str, SimulatedAgent] = {}
        kinds = tuple(_COMMANDS)
        for number in range(agents):
            kind = kinds[number % len(kinds)]
            agent_id = f"{kind}-{self._random.randbytes(3).hex()}"
            client, random = AgentClient(agent_id, url=url, prefix=prefix), Random(f"{seed}:{agent_id}")  # noqa: S311
            self.agents[agent_id] = SimulatedAgent(client, kind, random, silence_s=silence_s)

    async def run(self) -> None:
        """Run until cancelled."""
        async with AdminClient.connect(self._server) as admin, asyncio.TaskGroup() as tasks:
            for agent_id, agent in self.agents.items():
                tasks.create_task(agent.run(), name=agent_id)
            tasks.create_task(self._send_commands(admin))

    async def _send_commands(self, admin: AdminClient) -> None:
        """Send each agent a command about every two seconds. Some transitions are not allowed, and refused."""
        random, ids = self._random, list(self.agents)
        while True:
            await asyncio.sleep(random.expovariate(len(ids) / 2))
            agent_id = random.choice(ids)
            command: dict[str, Any] = {"type": random.choice(_COMMANDS[agent_id.partition("-")[0]])}
            if random.random() < 0.2:  # noqa: PLR2004
                command = {"type": "state_transition", "payload": {"target": random.choice(("inbox", "deep_work"))}}
            payload = {"agent_id": agent_id, "command": command, "options": {"ttl": 30}}
            with suppress(ServerUnavailableError, TimeoutError):
                await admin.request("send", payload, timeout_s=_RETRY_AFTER_S)


def main() -> None:
    """Run a simulated fleet until SIGTERM, SIGINT or SIGHUP."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description="Run a simulated fleet beside an engine, until SIGTERM, SIGINT or SIGHUP.",
    )
    add_server_options(parser)
    parser.add_argument("--agents", metavar="N", type=count, default=12, help="number of agents; default: 12")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="seed of the random choices; default: 1")
    silence_help = "shortest silence of an agent; default: 60s"
    parser.add_argument("--silence", metavar="DURATION", type=duration, default=60.0, help=silence_help)
    given = parser.parse_args()
    try:
        simulation = Simulation(
            given.agents, url=given.redis, prefix=given.prefix, seed=given.seed, silence_s=given.silence
        )
    except ValueError as error:
        parser.error(str(error))
    asyncio.run(run_until_signal(lambda stopping: run_until(stopping, simulation.run())))


if __name__ == "__main__":
    main()
