"""Agents with a growing context: they distill it when the engine advises it.

Each agent works and measures the size of its context, but does not compare it with a limit. The engine does, and
publishes a divergence for an agent above `divergence.context_limit`; the agents follow that advice. At a second, higher
limit a context would overflow: no agent may ever measure that much.
"""

import asyncio
from random import Random
from typing import Any, Final

import msgspec

from aism_engine.scenarios.environment import ScenarioEnvironment, ScenarioResult, scenario_environment

LIMIT: Final = 8_000
OVERFLOW: Final = 12_000
_AFTER_DISTILLING: Final = 6_500
_GROWTH: Final = (40, 80)
_INTERVAL_S: Final = 0.05
_AGENTS: Final = 6
_ROUNDS: Final = 3
_MAX_EVENTS: Final = 1000
_SETTINGS: Final = {
    "divergence.poll_interval": 0.2,
    "divergence.context_evidence_after": 0.1,  # time above the limit after which the divergence is published
    "divergence.context_limit": float(LIMIT),
    "divergence.idle_evidence_after": 3600.0,
}


class ContextPressureResult(ScenarioResult, frozen=True):
    agents: int
    distillations: int
    overflows: int
    peak: int
    advice: int
    seconds: float

    @property
    def passed(self) -> bool:
        is_bounded = self.peak < OVERFLOW and not self.overflows
        return self.distillations == self.advice == self.agents * _ROUNDS and is_bounded


async def run(*, follow_advice: bool = True) -> ContextPressureResult:
    """Let every agent distill three times; without `follow_advice`, let every agent overflow."""
    async with scenario_environment("workers", _SETTINGS) as environment:
        agents = (_run_agent(environment, number, follow_advice=follow_advice) for number in range(_AGENTS))
        measured = [size for sizes in await asyncio.gather(*agents) for size in sizes]
        return ContextPressureResult(
            agents=_AGENTS,
            distillations=len(await environment.facts("state_changed", new_state="distill")),
            overflows=sum(size >= OVERFLOW for size in measured),
            peak=max(measured),
            advice=len(await environment.facts("divergence_opened")),
            seconds=environment.seconds,
        )


async def _run_agent(environment: ScenarioEnvironment, number: int, *, follow_advice: bool) -> list[int]:
    """Work, measure, and distill when advised; return all measurements, each confirmed by the engine."""
    name, measured = f"thinker-{number}", list[int]()
    random = Random(number)  # noqa: S311  reproducible choices
    context, distilled = _AFTER_DISTILLING, 0
    errors = environment.subscribe(environment.keys.errors)
    async with environment.agent_client(name) as agent:
        await agent.register("thinker")
        await agent.transition("deep_work")
        while distilled < _ROUNDS and (follow_advice or context < OVERFLOW):
            context += random.randint(*_GROWTH)
            await agent.call("measurement", {"context_tokens": float(context)})
            measured.append(context)
            events = await errors.read(_MAX_EVENTS, timeout_s=_INTERVAL_S)
            if follow_advice and any(channel and _advises(data, name) for channel, data in events):
                await agent.transition("distill")
                context, distilled = _AFTER_DISTILLING, distilled + 1
                await agent.transition("deep_work")
            elif events:
                await asyncio.sleep(_INTERVAL_S)
    return measured


def _advises(data: bytes, agent_id: str) -> bool:
    """Whether an event advises this agent to distill."""
    event: dict[str, Any] = msgspec.json.decode(data)
    details = event.get("details") or {}
    found = (event.get("code"), event.get("agent_id"), details.get("rule"), details.get("status"))
    return found == ("divergence", agent_id, "context_too_large", "opened")
