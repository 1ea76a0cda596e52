"""Laws of the simulated fleet."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

from aism_engine.agent.client import AgentClient
from aism_engine.config import load_machines
from aism_engine.scenarios.simulated_agents import _WAYS, SimulatedAgent, Simulation
from aism_engine.settings import MachinesSettings
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import eventually, running_engine


def simulation(server: EmbeddedServer, prefix: str, seed: int) -> Simulation:
    return Simulation(6, url=server.url, prefix=prefix, seed=seed, silence_s=60)


def test_its_agents_keep_to_the_journey() -> None:
    """Every way that they take by themselves is a transition of the machine."""
    journey = load_machines(MachinesSettings()).machines["journey"]
    assert [(here, to) for here, ways in _WAYS.items() for to in ways if to not in journey.allowed(here)] == []


def test_the_same_seed_gives_the_same_fleet(server: EmbeddedServer, prefix: str) -> None:
    """Another one, another."""
    first, second, other = (list(simulation(server, prefix, seed)._agents) for seed in (7, 7, 8))
    assert first == second
    assert first != other
    assert {agent_id.partition("-")[0] for agent_id in first} == {"architect", "builder", "reviewer"}


async def test_it_lives(server: EmbeddedServer, prefix: str) -> None:
    """Agents register, move, work, succeed and fail; nothing that they say is buried."""
    everything = {"agent_registered", "state_changed", "command_acked", "command_succeeded", "command_failed"}
    async with running_engine(server, prefix) as engine, living(simulation(server, prefix, 7).run()):

        async def seen() -> bool:
            return {fact["event"] for fact in await engine.audit()} >= everything

        await eventually(seen, within_s=20)
        assert await engine.dead_letters() == []


async def test_an_agent_that_falls_silent_is_lost_and_comes_back(server: EmbeddedServer, prefix: str) -> None:
    """Its silence is longer than the engine's patience, and it ends."""
    async with running_engine(server, prefix, liveness__silent_after=0.6, liveness__lost_after=1) as engine:
        client = AgentClient("builder-1", url=server.url, prefix=prefix)
        async with living(SimulatedAgent(client, "builder", Mute(7), silence_s=1.5).run()):
            await eventually(lambda: engine.audit("agent_lost", agent_id="builder-1"), within_s=10)
            await eventually(lambda: engine.audit("agent_returned", agent_id="builder-1"), within_s=10)


class Mute(Random):
    """Whatever its chance, it falls silent."""

    def random(self) -> float:
        return 0.0


@asynccontextmanager
async def living(life: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(life)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
