"""Ten agents declare that they work; one of them does not.

Nine agents are honest. Six of them finish one command after another. The other three could be mistaken for idle: one
works on a single command for longer than `divergence.idle_evidence_after`, one has no command and only measures, and
one rests between its commands for more than half of that time. The tenth agent declares the same state, sends
heartbeats, and does nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeAlias

from aism_engine.agent.client import AgentClient
from aism_engine.clock import from_iso
from aism_engine.ops.admin_client import AdminClient
from aism_engine.scenarios.environment import ScenarioEnvironment, ScenarioResult, scenario_environment, send_heartbeats

_IDLE_AFTER_S: Final = 2.0
_SETTINGS: Final = {
    "divergence.poll_interval": 0.2,
    "divergence.idle_evidence_after": _IDLE_AFTER_S,
    "dispatcher.poll_interval": 0.1,
}
_MIN_DURATION_S: Final = 3 * _IDLE_AFTER_S
"""Long enough for a false accusation to show."""
_MAX_DURATION_S: Final = 120.0
"""Longest further wait on a slow machine. If it ends without a detection, the liar counts as undetected."""
_MEASURING, _LIAR = "measuring", "liar"

Behaviour: TypeAlias = Callable[[AgentClient], Coroutine[Any, Any, Any]]


class ByzantineResult(ScenarioResult, frozen=True):
    agents: int
    liars: int
    detected: int
    detection_s: float | None
    false_accusations: int
    seconds: float

    @property
    def passed(self) -> bool:
        not_too_early = self.detection_s is not None and self.detection_s >= _IDLE_AFTER_S
        return self.detected == self.liars and not_too_early and not self.false_accusations


async def run() -> ByzantineResult:
    async with (
        scenario_environment("workers", _SETTINGS) as environment,
        AdminClient.connect(environment.server) as admin,
    ):
        behaviours: dict[str, Behaviour] = {
            **{f"busy-{number}": _work for number in range(6)},
            "slow": lambda agent: _work(agent, work_s=2 * _IDLE_AFTER_S),
            "resting": lambda agent: _work(agent, rest_s=0.6 * _IDLE_AFTER_S),
            _MEASURING: _measure,
            _LIAR: lambda _: asyncio.Event().wait(),
        }
        running = [_run_agent(environment, name, behaviour) for name, behaviour in behaviours.items()]
        running += [_send_work(admin, name) for name in behaviours if name != _MEASURING]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in running]
            await _wait_detected(environment)
            for task in tasks:
                task.cancel()
        (declared,) = await environment.facts("state_changed", agent_id=_LIAR, new_state="deep_work")
        opened = await environment.facts("divergence_opened")
        of_liar = [fact for fact in opened if fact["agent_id"] == _LIAR]
        return ByzantineResult(
            agents=len(behaviours),
            liars=1,
            detected=1 if of_liar else 0,
            detection_s=round(from_iso(of_liar[0]["at"]) - from_iso(declared["at"]), 2) if of_liar else None,
            false_accusations=len(opened) - len(of_liar),
            seconds=environment.seconds,
        )


async def _wait_detected(environment: ScenarioEnvironment) -> None:
    """Wait for `_MIN_DURATION_S`, and then for at most `_MAX_DURATION_S` until the liar is detected."""
    errors = environment.subscribe(environment.keys.errors)
    await asyncio.sleep(_MIN_DURATION_S)
    with suppress(TimeoutError):
        async with asyncio.timeout(_MAX_DURATION_S):
            while not await environment.facts("divergence_opened", agent_id=_LIAR):
                await errors.read(1, timeout_s=_IDLE_AFTER_S)
    await errors.close()


async def _run_agent(environment: ScenarioEnvironment, name: str, behaviour: Behaviour) -> None:
    """Register, declare work, send heartbeats, and behave as given."""
    async with environment.agent_client(name) as agent, asyncio.TaskGroup() as tasks:
        await agent.register("worker", capabilities=["ack"])
        await agent.transition("deep_work")
        tasks.create_task(send_heartbeats(agent))
        tasks.create_task(behaviour(agent))


async def _work(agent: AgentClient, work_s: float = 0.05, rest_s: float = 0.0) -> None:
    while True:
        command = await agent.next_command(wait_s=1.0)
        if command is not None:
            await agent.send("ack", {}, command.id)
            await asyncio.sleep(work_s)
            await agent.send("result", {}, command.id)
            await asyncio.sleep(rest_s)


async def _measure(agent: AgentClient) -> None:
    while True:
        await agent.send("measurement", {"pages": 1.0})
        await asyncio.sleep(0.3 * _IDLE_AFTER_S)


async def _send_work(admin: AdminClient, agent_id: str) -> None:
    """Send commands to an agent again and again. Refusals (agent unknown, queue full) do not matter."""
    while True:
        payload = {"agent_id": agent_id, "command": {"type": "work"}}
        with suppress(TimeoutError):
            await admin.request("send", payload, timeout_s=1.0)
        await asyncio.sleep(0.2)
