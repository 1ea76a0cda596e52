"""Whatever fails, each response is applied once and in order, or is dead-lettered once.

Here are trials with one server, with every kind of fault: engines and servers that are killed and suspended, a network
that drops, delays and cuts. `make chaos` runs more of them, and trials with failovers.
"""

from typing import Final

import pytest

from tests.chaos.schedule import plan
from tests.chaos.trial import run

SEEDS: Final = (1, 2, 3, 4, 6, 7)


@pytest.mark.parametrize("seed", SEEDS)
async def test_trial_loses_nothing_and_applies_nothing_twice(seed: int) -> None:
    """The trial ends when everything is applied; how long that takes is no matter."""
    report = await run(plan(seed))
    assert [str(violation) for violation in report.violations] == []
    assert report.faults.total() == len(plan(seed).faults)
