"""Agents whose context grows, who do not watch it, and who distill it when the engine tells them to.

Each works, and measures how large its context has become. The engine compares that with a limit, and doubts whoever is
above it and goes on; the agents heed its advice. There is a second limit, at which a context would overflow: nobody
shall ever measure so much.
"""

import asyncio
from contextlib import suppress
from random import Random
from typing import Any, Final

import msgspec

from aism_engine.scenarios.environment import Outcome, Stage, staged

LIMIT: Final = 8_000
OVERFLOW: Final = 12_000
_AFTER_DISTILLING: Final = 6_500
_STEP: Final = (40, 80)
_EVERY_S: Final = 0.05
_AGENTS: Final = 6
_ROUNDS: Final = 3
_MOST: Final = 1000
_SETTINGS: Final = {
    "divergence.poll_interval": 0.2,
    "divergence.context_evidence_after": 0.1,
    "divergence.context_limit": float(LIMIT),
    "divergence.idle_evidence_after": 3600.0,
}


class Figures(Outcome, frozen=True):
    """`overflows`: contexts that were measured at the second limit, or above it; `peak`: the largest of all."""

    agents: int
    distillations: int
    overflows: int
    peak: int
    advice: int
    seconds: float

    @property
    def holds(self) -> bool:
        return self.distillations >= self.agents * _ROUNDS and not self.overflows


async def play(*, heeding: bool = True) -> Figures:
    """Let all of them distill a few times. Who is not `heeding` goes on to the second limit."""
    async with staged("workers", _SETTINGS) as stage:
        async with asyncio.TaskGroup() as fleet:
            agents = [fleet.create_task(_live(stage, number, heeding=heeding)) for number in range(_AGENTS)]
        measured = [size for agent in agents for size in agent.result()]
        changes = await stage.facts("state_changed")
        return Figures(
            agents=_AGENTS,
            distillations=sum(fact["new_state"] == "distill" for fact in changes),
            overflows=sum(size >= OVERFLOW for size in measured),
            peak=max(measured),
            advice=len(await stage.facts("divergence_opened")),
            seconds=stage.seconds,
        )


async def _live(stage: Stage, number: int, *, heeding: bool) -> list[int]:
    """Work, measure, and distill on advice; gives all that was measured, as the engine has taken it in."""
    name, random, measured = f"thinker-{number}", Random(number), list[int]()  # noqa: S311  the same again is wanted
    context, distilled = _AFTER_DISTILLING, 0
    ear = stage.listen(stage.keys.errors)
    async with stage.agent(name) as agent:
        await agent.register("thinker")
        await agent.transition("deep_work")
        while distilled < _ROUNDS and (heeding or context < OVERFLOW):
            context += random.randint(*_STEP)
            await agent.measure({"context_tokens": float(context)}, reply=True)
            measured.append(context)
            heard = await ear.read(_MOST, timeout_s=_EVERY_S)
            if heeding and any(_advises(data, name) for _, data in heard):
                await agent.transition("distill")
                context, distilled = _AFTER_DISTILLING, distilled + 1
                await agent.transition("deep_work")
            elif heard:
                await asyncio.sleep(_EVERY_S)
    return measured


def _advises(data: bytes, agent_id: str) -> bool:
    """Tell whether an event says that this agent ought to distill."""
    with suppress(msgspec.DecodeError):
        event: dict[str, Any] = msgspec.json.decode(data)
        details = event.get("details") or {}
        told = (event.get("code"), event.get("agent_id"), details.get("rule"), details.get("status"))
        return told == ("divergence", agent_id, "context_too_large", "opened")
    return False
