"""The scenarios come out as they should; and where what they stand on is taken away, they say so."""

from pathlib import Path

import pytest

from aism_engine.scenarios import byzantine, context_pressure, coordination, ping_pong

MACHINES = Path("aism_engine/scenarios/machines")


async def test_two_agents_alternate_by_nothing_but_their_states() -> None:
    """A thousand increments of a counter that nothing protects, none lost and none out of turn."""
    figures = await ping_pong.play()
    assert (figures.increments, figures.violations, figures.holds) == (1000, 0, True)


async def test_three_agents_count_though_one_is_killed_half_way() -> None:
    """No number twice, none left out, and never two who count at the same time."""
    figures = await coordination.play()
    assert (figures.counted, figures.duplicates, figures.gaps, figures.collisions) == (100, 0, 0, 0)
    assert (figures.kills, figures.holds) == (1, True)


@pytest.fixture
def _roomy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same machines, with room for everybody."""
    for file in MACHINES.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("max_agents = 1", ""))
    monkeypatch.setattr("aism_engine.scenarios.environment.MACHINES", tmp_path)


@pytest.mark.usefixtures("_roomy")
async def test_where_there_is_room_for_all_they_collide() -> None:
    """It is the machine that keeps them apart, and the figures would tell."""
    figures = await coordination.play()
    assert figures.collisions > 0
    assert not figures.holds


async def test_one_that_does_not_do_what_it_says_is_found_and_nobody_else() -> None:
    """Honest agents that are slow, quiet, or only measure are not doubted."""
    figures = await byzantine.play()
    assert (figures.detected, figures.false_accusations, figures.holds) == (1, 0, True)
    assert figures.detection_s is not None


async def test_who_heeds_the_engine_never_overflows() -> None:
    """Each distills as often as it is told to, which is whenever its context is too large."""
    figures = await context_pressure.play()
    assert (figures.overflows, figures.distillations, figures.holds) == (0, 18, True)
    assert context_pressure.LIMIT < figures.peak < context_pressure.OVERFLOW


async def test_who_does_not_heed_it_overflows() -> None:
    """The engine advises, and does not act; the figures tell."""
    figures = await context_pressure.play(heeding=False)
    assert (figures.overflows, figures.distillations, figures.holds) == (6, 0, False)
