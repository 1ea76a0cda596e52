"""Two agents increment a counter in turns, a thousand times, synchronized only by their declared states.

Each agent reads the state of the other and declares its own; declaring a state is the move. The first agent moves while
both are in the same state, the second while they are not: the alternating bit of communication protocols (Bartlett,
Scantlebury and Wilkinson, 1969). Between reading and declaring, each agent reads and writes an unprotected counter: a
move out of turn would lose an increment.
"""

import asyncio
from typing import Final

from aism_engine.scenarios.environment import ScenarioEnvironment, ScenarioResult, scenario_environment

INCREMENTS: Final = 1000
_PLAYERS: Final = ("ping", "pong")
_COUNTER: Final = "ping-pong:counter"
_MAX_EVENTS: Final = 100
_POLL_INTERVAL_S: Final = 0.05
"""Read the states this often even without an event: events can be lost."""


class PingPongResult(ScenarioResult, frozen=True):
    increments: int
    violations: int
    seconds: float

    @property
    def passed(self) -> bool:
        return self.increments == INCREMENTS and not self.violations


async def run() -> PingPongResult:
    async with scenario_environment("ping-pong", {}) as environment:
        ping, pong = _PLAYERS
        await asyncio.gather(
            _alternate(environment, ping, pong, first=True), _alternate(environment, pong, ping, first=False)
        )
        moves = await environment.facts("state_changed", source="agent")
        out_of_turn = sum(fact["agent_id"] != _PLAYERS[number % 2] for number, fact in enumerate(moves))
        counted = int(await environment.client.get(_COUNTER))
        return PingPongResult(counted, out_of_turn + abs(len(moves) - counted), environment.seconds)


async def _alternate(environment: ScenarioEnvironment, own_id: str, other_id: str, *, first: bool) -> None:
    changes = environment.subscribe(environment.keys.state_changes)
    async with environment.agent_client(own_id) as agent:
        await agent.register("player")
        while True:
            own, other = await environment.states(own_id, other_id)
            counted = int(await environment.client.get(_COUNTER) or 0)
            if counted == INCREMENTS:
                return
            if other and (own == other) == first:
                await environment.client.set(_COUNTER, counted + 1)
                await agent.transition("odd" if own == "even" else "even")
            else:
                await changes.read(_MAX_EVENTS, timeout_s=_POLL_INTERVAL_S)
