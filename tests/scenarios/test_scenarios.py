"""The scenarios pass, and fail if the mechanism they rely on is taken away."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from aism_engine.scenarios import byzantine, context_pressure, coordination, ping_pong
from aism_engine.scenarios.environment import ScenarioResult

MACHINES = Path("aism_engine/scenarios/machines")


PING_PONG = ping_pong.PingPongResult(increments=1000, violations=0, seconds=1.0)
COORDINATION = coordination.CoordinationResult(counted=100, duplicates=0, gaps=0, collisions=0, kills=1, seconds=4.0)
BYZANTINE = byzantine.ByzantineResult(agents=10, liars=1, detected=1, detection_s=2.2, false_accusations=0, seconds=6.0)
CONTEXT_PRESSURE = context_pressure.ContextPressureResult(
    agents=6, distillations=18, overflows=0, peak=8500, advice=18, seconds=4.0
)


@pytest.mark.parametrize(
    ("good", "wrong"),
    [
        (PING_PONG, {"increments": (999, 1001), "violations": (1,)}),
        (COORDINATION, {"counted": (99,), "duplicates": (1,), "gaps": (1,), "collisions": (1,), "kills": (0, 2)}),
        (BYZANTINE, {"detected": (0,), "detection_s": (None, 1.9), "false_accusations": (1,)}),
        (CONTEXT_PRESSURE, {"distillations": (17, 19), "overflows": (1,), "peak": (12_000,), "advice": (17, 19)}),
    ],
    ids=["ping-pong", "coordination", "byzantine", "context-pressure"],
)
def test_a_result_passes_only_if_every_figure_is_as_documented(
    good: ScenarioResult, wrong: dict[str, tuple[Any, ...]]
) -> None:
    """docs/scenarios.md lists the expected values."""
    assert good.passed
    results = [
        (name, value, msgspec.structs.replace(good, **{name: value}).passed)
        for name, values in wrong.items()
        for value in values
    ]
    assert [(name, value) for name, value, passed in results if passed] == []


async def test_ping_pong_alternates_without_a_violation() -> None:
    result = await ping_pong.run()
    assert (result.increments, result.violations, result.passed) == (1000, 0, True)


async def test_coordination_counts_correctly_although_one_agent_is_killed() -> None:
    result = await coordination.run()
    assert (result.counted, result.duplicates, result.gaps, result.collisions) == (100, 0, 0, 0)
    assert (result.kills, result.passed) == (1, True)


@pytest.fixture
def _unlimited_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machines of the scenarios without their limit of agents."""
    for file in MACHINES.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("max_agents = 1", ""))
    monkeypatch.setattr("aism_engine.scenarios.environment.MACHINES", tmp_path)


@pytest.mark.usefixtures("_unlimited_machines")
async def test_coordination_reports_collisions_without_max_agents() -> None:
    result = await coordination.run()
    assert result.collisions > 0
    assert not result.passed


async def test_byzantine_detects_the_liar_and_no_honest_agent() -> None:
    result = await byzantine.run()
    assert (result.detected, result.false_accusations, result.passed) == (1, 0, True)
    assert result.detection_s is not None


async def test_agents_that_follow_the_advice_never_overflow() -> None:
    """Each agent distills exactly as often as it is advised."""
    result = await context_pressure.run()
    assert (result.overflows, result.distillations, result.passed) == (0, 18, True)
    assert context_pressure.LIMIT < result.peak < context_pressure.OVERFLOW


async def test_agents_that_ignore_the_advice_overflow() -> None:
    """The engine advises and does not act."""
    result = await context_pressure.run(follow_advice=False)
    assert (result.overflows, result.distillations, result.passed) == (6, 0, False)
