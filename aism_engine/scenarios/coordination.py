"""Three agents, each a process, count to a hundred together, while one is killed and restarted half way.

The agent in state `counting` writes the next number; the machine allows one agent in that state. Nothing else protects
the list of numbers: each agent reads its length and appends one. The victim is killed at the worst moment, between
writing its number and leaving the state. The others wait until it registers again or is marked as lost.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import Final

from aism_engine.scenarios.environment import ScenarioEnvironment, ScenarioResult, scenario_environment, send_heartbeats

COUNT: Final = 100
_AGENTS: Final = ("anna", "bert", "carl")
_VICTIM: Final = _AGENTS[1]
_NUMBERS: Final = "coordination:numbers"
_POLL_INTERVAL_S: Final = 0.02
_MAX_EVENTS: Final = 100
_RESTART_AFTER_S: Final = 0.5
_SETTINGS: Final = {
    "liveness.silent_after": 0.6,
    "liveness.lost_after": 2.0,
    "liveness.scan_interval": 0.2,
}


class CoordinationResult(ScenarioResult, frozen=True):
    counted: int
    duplicates: int
    gaps: int
    collisions: int
    kills: int
    seconds: float

    @property
    def passed(self) -> bool:
        return self.counted == COUNT and self.kills == 1 and not (self.duplicates or self.gaps or self.collisions)


async def run() -> CoordinationResult:
    async with scenario_environment("counting", _SETTINGS) as environment:
        codes = await asyncio.gather(*(_run_agent(environment, name) for name in _AGENTS))
        numbers = [int(entry.split()[0]) for entry in await environment.client.lrange(_NUMBERS, 0, -1)]
        return CoordinationResult(
            counted=len(set(numbers)),
            duplicates=len(numbers) - len(set(numbers)),
            gaps=len(set(range(1, COUNT + 1)) - set(numbers)),
            collisions=await _count_collisions(environment),
            kills=codes.count(-signal.SIGKILL),
            seconds=environment.seconds,
        )


async def _run_agent(environment: ScenarioEnvironment, name: str) -> int:
    """Run the process of an agent, and a second one if the first was killed; return the exit code of the first."""
    code = await _run_process(environment, name, kill_at=COUNT // 2 if name == _VICTIM else 0)
    if code:
        await asyncio.sleep(_RESTART_AFTER_S)
        await _run_process(environment, name)
    return code


async def _run_process(environment: ScenarioEnvironment, name: str, kill_at: int = 0) -> int:
    arguments = (environment.url, environment.prefix, name, str(kill_at))
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, *arguments)
    try:
        return await process.wait()
    finally:
        with suppress(ProcessLookupError):  # still running only if the scenario was interrupted
            process.kill()


async def _count_collisions(environment: ScenarioEnvironment) -> int:
    """Count in the audit how often an agent entered `counting` while another agent was in that state."""
    counting: set[str] = set()
    collisions = 0
    for fact in await environment.facts("state_changed"):
        if fact["new_state"] == "counting":
            collisions += bool(counting)
            counting.add(fact["agent_id"])
        else:
            counting.discard(fact["agent_id"])
    return collisions


# --- one agent, in its own process ------------------------------------------------------------------------------------


async def _count(url: str, prefix: str, name: str, kill_at: str) -> None:
    environment = ScenarioEnvironment(url, prefix)
    changes = environment.subscribe(environment.keys.state_changes)
    async with environment.client, environment.agent_client(name) as agent:
        heartbeats = asyncio.create_task(send_heartbeats(agent))
        await agent.register("counter")
        while "" in await environment.states(*_AGENTS):  # wait until all three have registered
            await changes.read(_MAX_EVENTS, timeout_s=_POLL_INTERVAL_S)
        while await environment.client.llen(_NUMBERS) < COUNT:
            if (await agent.transition("counting")).ok:
                await _write_next(environment, name, int(kill_at))
                await agent.transition("idle")
            await changes.read(_MAX_EVENTS, timeout_s=_POLL_INTERVAL_S)  # let the others have a turn
        heartbeats.cancel()
        await agent.call("goodbye", {})


async def _write_next(environment: ScenarioEnvironment, name: str, kill_at: int) -> None:
    number = await environment.client.llen(_NUMBERS) + 1
    if number <= COUNT:
        await environment.client.rpush(_NUMBERS, f"{number} {name}")
    if 0 < kill_at <= number:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(_count(*sys.argv[1:]))
