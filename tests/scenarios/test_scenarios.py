"""The scenarios pass, and fail if the mechanism they rely on is taken away."""

from pathlib import Path

import pytest

from aism_engine.scenarios import byzantine, context_pressure, coordination, ping_pong

MACHINES = Path("aism_engine/scenarios/machines")


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
