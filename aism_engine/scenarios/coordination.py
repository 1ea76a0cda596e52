"""Three agents, each a process, count to a hundred together, while one is killed and started again half way.

Who is in the state `counting` writes the next number; the machine has room for one. The list that they write to is
protected by nothing else: each reads how long it is, and appends one more. The one that is killed dies at the worst of
moments, between its number and its leave, so that the others have to wait until the engine knows better: it registers
again, or is called lost.
"""

import argparse
import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import Final

from aism_engine.agent.client import AgentClient
from aism_engine.scenarios.environment import Outcome, Stage, staged

COUNT: Final = 100
_AGENTS: Final = ("anna", "bert", "carl")
_VICTIM: Final = _AGENTS[1]
_NUMBERS: Final = "coordination:numbers"
_BEAT_EVERY_S: Final = 0.2
_LOOK_EVERY_S: Final = 0.02
_MOST: Final = 100
_AWAY_S: Final = 0.5
"""How long the killed one is away."""
_SETTINGS: Final = {
    "liveness.silent_after": 0.6,
    "liveness.lost_after": 2.0,
    "liveness.scan_interval": 0.2,
}


class Figures(Outcome, frozen=True):
    """`duplicates`: numbers written twice; `gaps`: numbers left out; `collisions`: times that two were `counting`."""

    counted: int
    duplicates: int
    gaps: int
    collisions: int
    kills: int
    seconds: float

    @property
    def holds(self) -> bool:
        return self.counted == COUNT and self.kills == 1 and not (self.duplicates or self.gaps or self.collisions)


async def play() -> Figures:
    async with staged("counting", _SETTINGS) as stage:
        codes = await asyncio.gather(*(_live(stage, name) for name in _AGENTS))
        numbers = [int(line.split()[0]) for line in await stage.client.lrange(_NUMBERS, 0, -1)]
        return Figures(
            counted=len(set(numbers)),
            duplicates=len(numbers) - len(set(numbers)),
            gaps=len(set(range(1, COUNT + 1)) - set(numbers)),
            collisions=await _collisions(stage),
            kills=codes.count(-signal.SIGKILL),
            seconds=stage.seconds,
        )


async def _live(stage: Stage, name: str) -> int:
    """Run one agent's process, and after a while another where it was killed; gives how the first ended."""
    code = await _process(stage, name, dies_at=COUNT // 2 if name == _VICTIM else 0)
    if code:
        await asyncio.sleep(_AWAY_S)
        await _process(stage, name)
    return code


async def _process(stage: Stage, name: str, dies_at: int = 0) -> int:
    arguments = ("--redis", stage.url, "--prefix", stage.prefix, "--dies-at", str(dies_at), name)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, *arguments)
    try:
        return await process.wait()
    finally:
        with suppress(ProcessLookupError):  # it lives only where the scenario was broken off
            process.kill()


async def _collisions(stage: Stage) -> int:
    """Count, by the engine's record, how often one began to count while another did."""
    changes = await stage.facts("state_changed")
    inside: set[str] = set()
    collisions = 0
    for fact in changes:
        if fact["new_state"] == "counting":
            collisions += bool(inside)
            inside.add(fact["agent_id"])
        else:
            inside.discard(fact["agent_id"])
    return collisions


# --- one agent, in a process of its own -------------------------------------------------------------------------------


async def _count(stage: Stage, name: str, dies_at: int) -> None:
    changes = stage.changes()
    async with stage.agent(name) as agent:
        beating = asyncio.create_task(_beat(agent))
        await agent.register("counter")
        while "" in await stage.states(*_AGENTS):  # they begin together
            await changes.read(_MOST, timeout_s=_LOOK_EVERY_S)
        while await stage.client.llen(_NUMBERS) < COUNT:
            answer = await agent.transition("counting")
            if answer is not None and answer.ok:
                await _write_next(stage, name, dies_at)
                await agent.transition("idle")
            await changes.read(_MOST, timeout_s=_LOOK_EVERY_S)  # the others' turn
        beating.cancel()
        await agent.goodbye(reply=True)


async def _write_next(stage: Stage, name: str, dies_at: int) -> None:
    number = await stage.client.llen(_NUMBERS) + 1
    if number <= COUNT:
        await stage.client.rpush(_NUMBERS, f"{number} {name}")
    if 0 < dies_at <= number:
        os.kill(os.getpid(), signal.SIGKILL)


async def _beat(agent: AgentClient) -> None:
    while True:
        await agent.heartbeat()
        await asyncio.sleep(_BEAT_EVERY_S)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description="One agent of the scenario.")
    parser.add_argument("name")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--dies-at", type=int, default=0)
    given = parser.parse_args()

    async def run() -> None:
        stage = Stage(given.redis, given.prefix)
        await _count(stage, given.name, given.dies_at)
        await stage.aclose()

    asyncio.run(run())


if __name__ == "__main__":
    main()
