"""Two agents alternate a thousand increments, by nothing but their declared states.

Each sees the state of the other and declares its own; the change of a state is the move. The first moves while both are
in the same state, the second while they are not: the alternating bit of communication protocols (Bartlett, Scantlebury
and Wilkinson, 1969). Between its look and its declaration each reads and writes a counter that nothing protects: a
wrong turn would lose an increment.
"""

import asyncio
from typing import Final

from aism_engine.scenarios.environment import Outcome, Stage, staged

INCREMENTS: Final = 1000
_PLAYERS: Final = ("ping", "pong")
_COUNTER: Final = "ping-pong:counter"
_MOST: Final = 100
_LOOK_EVERY_S: Final = 0.05
"""Where no event is heard: they are hints."""


class Figures(Outcome, frozen=True):
    """`violations`: moves out of turn, and increments that were lost."""

    increments: int
    violations: int
    seconds: float

    @property
    def holds(self) -> bool:
        return self.increments == INCREMENTS and not self.violations


async def play() -> Figures:
    async with staged("ping-pong", {}) as stage:
        async with asyncio.TaskGroup() as players:
            for number, name in enumerate(_PLAYERS):
                players.create_task(_alternate(stage, name, _PLAYERS[1 - number], first=number == 0))
        moves = [fact["agent_id"] for fact in await stage.facts("state_changed") if fact["source"] == "agent"]
        out_of_turn = sum(name != _PLAYERS[number % 2] for number, name in enumerate(moves))
        counted = int(await stage.client.get(_COUNTER))
        return Figures(counted, out_of_turn + abs(len(moves) - counted), stage.seconds)


async def _alternate(stage: Stage, me: str, other: str, *, first: bool) -> None:
    changes = stage.changes()
    async with stage.agent(me) as agent:
        await agent.register("player")
        while True:
            mine, its = await stage.states(me, other)
            counted = int(await stage.client.get(_COUNTER) or 0)
            if counted == INCREMENTS:
                return
            if its and (mine == its) == first:
                await stage.client.set(_COUNTER, counted + 1)
                await agent.transition("odd" if mine == "even" else "even")
            else:
                await changes.read(_MOST, timeout_s=_LOOK_EVERY_S)
