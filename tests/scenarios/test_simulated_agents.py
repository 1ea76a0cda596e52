"""Laws of the simulated fleet."""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest

from aism_engine.agent.client import AgentClient
from aism_engine.policy_loader import load_machines
from aism_engine.scenarios.simulated_agents import TRANSITIONS, SimulatedAgent, Simulation, main
from aism_engine.settings import MachinesSettings
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import eventually, running_engine


def simulation(server: EmbeddedServer, prefix: str, seed: int) -> Simulation:
    return Simulation(6, url=server.url, prefix=prefix, seed=seed, silence_s=60)


def test_every_transition_is_allowed_by_the_journey() -> None:
    journey = load_machines(MachinesSettings()).machines["journey"]
    pairs = [(state, target) for state, targets in TRANSITIONS.items() for target in targets]
    assert [pair for pair in pairs if pair[1] not in journey.allowed(pair[0])] == []


def test_the_seed_determines_the_fleet(server: EmbeddedServer, prefix: str) -> None:
    first, same, other = (list(simulation(server, prefix, seed).agents) for seed in (7, 7, 8))
    assert first == same
    assert first != other
    assert {agent_id.partition("-")[0] for agent_id in first} == {"architect", "builder", "reviewer"}


async def test_the_fleet_causes_every_kind_of_fact_and_no_dead_letter(server: EmbeddedServer, prefix: str) -> None:
    expected = {"agent_registered", "state_changed", "command_acked", "command_succeeded", "command_failed"}
    async with running_engine(server, prefix) as engine, running(simulation(server, prefix, 7).run()):

        async def recorded() -> bool:
            return {fact["event"] for fact in await engine.audit()} >= expected

        await eventually(recorded)
        assert await engine.dead_letters() == []


async def test_an_agent_that_falls_silent_is_lost_and_returns(
    server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here its silence lasts until the engine has lost it."""
    silence_s, sleep, may_speak = 3600.0, asyncio.sleep, asyncio.Event()
    monkeypatch.setattr(asyncio, "sleep", lambda for_s: may_speak.wait() if for_s >= silence_s else sleep(for_s))
    async with running_engine(server, prefix, liveness__silent_after=0.6, liveness__lost_after=1) as engine:
        client = AgentClient("builder-1", url=server.url, prefix=prefix)
        async with running(SimulatedAgent(client, "builder", AlwaysSilent(7), silence_s=silence_s).run()):
            await eventually(lambda: engine.audit("agent_lost", agent_id="builder-1"))
            may_speak.set()
            await eventually(lambda: engine.audit("agent_returned", agent_id="builder-1"))


@pytest.mark.parametrize(
    "arguments",
    ["--agents 0", "--agents -1", "--agents x", "--seed x", "--silence -1s", "--silence nan", "--redis foo"],
)
def test_a_wrong_option_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulated_agents", *arguments.split()])
    monkeypatch.setattr(asyncio, "run", lambda work: work.close())  # a wrong option would start the fleet
    with pytest.raises(SystemExit):
        main()
    assert "error: " in capsys.readouterr().err


class AlwaysSilent(Random):
    """Makes an agent choose silence whenever it can."""

    def random(self) -> float:
        return 0.0


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
