"""Ten agents say that they work; one of them does not.

The nine are honest in ways that are easy to suspect: most take commands and finish them, one works on a single command
for longer than the engine's patience, one has no command at all and only measures, and one is silent between its
commands for as long as it may be. The tenth declares the same state, beats as they do, and does nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from aism_engine.agent.client import AgentClient
from aism_engine.clock import from_iso
from aism_engine.ops.admin_client import AdminClient
from aism_engine.scenarios.environment import Outcome, Stage, staged

_PATIENCE_S: Final = 2.0
_SETTINGS: Final = {
    "divergence.poll_interval": 0.2,
    "divergence.idle_evidence_after": _PATIENCE_S,
    "dispatcher.poll_interval": 0.1,
}
_LASTS_S: Final = 3 * _PATIENCE_S
"""Long enough for an honest agent to be accused, if any was."""
_BUSY: Final = tuple(f"busy-{number}" for number in range(6))
_SLOW, _MEASURING, _SELDOM, _LIAR = "slow", "measuring", "seldom", "liar"
HONEST: Final = (*_BUSY, _SLOW, _MEASURING, _SELDOM)

Life: TypeAlias = Callable[[AgentClient], Awaitable[Any]]


class Figures(Outcome, frozen=True):
    """`detected`: liars that the engine has doubted; `detection_s`: after which time, from its declaration on;
    `false_accusations`: divergences of honest agents.
    """

    agents: int
    liars: int
    detected: int
    detection_s: float | None
    false_accusations: int
    seconds: float

    @property
    def holds(self) -> bool:
        return self.detected == self.liars and not self.false_accusations


async def play() -> Figures:
    async with staged("workers", _SETTINGS) as stage, AdminClient.connect(stage.url, stage.prefix) as operator:
        lives: dict[str, Life] = {
            **dict.fromkeys(_BUSY, _work),
            _SLOW: lambda agent: _work(agent, takes_s=2 * _PATIENCE_S),
            _MEASURING: _measure,
            _SELDOM: lambda agent: _work(agent, rests_s=0.6 * _PATIENCE_S),
            _LIAR: lambda _: asyncio.Event().wait(),
        }
        async with asyncio.TaskGroup() as fleet:
            living = [fleet.create_task(_live(stage, name, life)) for name, life in lives.items()]
            living += [fleet.create_task(_command(operator, name)) for name in lives if name != _MEASURING]
            await asyncio.sleep(_LASTS_S)
            for task in living:
                task.cancel()
        opened = await stage.facts("divergence_opened")
        (said,) = [fact for fact in await stage.facts("state_changed") if _is_at_work(fact, _LIAR)][:1]
        doubted = [fact for fact in opened if fact["agent_id"] == _LIAR]
        return Figures(
            agents=len(lives),
            liars=1,
            detected=len({fact["agent_id"] for fact in doubted}),
            detection_s=round(from_iso(doubted[0]["at"]) - from_iso(said["at"]), 2) if doubted else None,
            false_accusations=len(opened) - len(doubted),
            seconds=stage.seconds,
        )


def _is_at_work(fact: dict[str, Any], agent_id: str) -> bool:
    return (fact["agent_id"], fact["new_state"]) == (agent_id, "deep_work")


async def _live(stage: Stage, name: str, life: Life) -> None:
    """Register, say that it works, beat, and do whatever its life is."""
    async with stage.agent(name) as agent, asyncio.TaskGroup() as tasks:
        await agent.register("worker", capabilities=["ack"])
        await agent.transition("deep_work")
        tasks.create_task(_beat(agent))
        tasks.create_task(_lead(life, agent))


async def _lead(life: Life, agent: AgentClient) -> None:
    await life(agent)


async def _beat(agent: AgentClient) -> None:
    while True:
        await agent.heartbeat()
        await asyncio.sleep(0.2)


async def _work(agent: AgentClient, takes_s: float = 0.05, rests_s: float = 0.0) -> None:
    while True:
        command = await agent.next_command(wait_s=1.0)
        if command is not None:
            await agent.ack(command.id)
            await asyncio.sleep(takes_s)
            await agent.result(command.id)
            await asyncio.sleep(rests_s)


async def _measure(agent: AgentClient) -> None:
    while True:
        await agent.measure({"pages": 1.0})
        await asyncio.sleep(0.3 * _PATIENCE_S)


async def _command(operator: AdminClient, agent_id: str) -> None:
    """Give an agent something to do, again and again; whoever is full, or unknown yet, is asked again later."""
    while True:
        payload = {"agent_id": agent_id, "command": {"type": "work"}}
        with suppress(TimeoutError):
            await operator.request("send", payload, timeout_s=1.0)
        await asyncio.sleep(0.2)
