"""Whatever breaks, each response is applied once and in order, or lies in the dead letters once."""

import pytest

from tests.chaos.runner import RECOVERS_WITHIN_S, figures, is_clean, reports

_SEED = 1
_TRIALS = 20


@pytest.mark.timeout(300)
def test_twenty_trials_lose_nothing_and_double_nothing() -> None:
    """Engines killed and stopped, servers killed, stopped and replaced by their replica, wires cut, muted and slow:
    see schedule.py.
    """
    found = list(reports(range(_SEED, _SEED + _TRIALS), side_by_side=3))
    wrong = [f"--seed {report.seed}: {violation}" for report in found for violation in report.violations]
    assert not wrong, "\n".join([figures(found), *wrong])
    assert sum(report.failovers for report in found) >= 2, figures(found)
    # Three trials at once, beside other tests, may be short of processors: what was slow is tried again by itself.
    slow = [report.seed for report in found if report.recovery_s > RECOVERS_WITHIN_S]
    alone = list(reports(slow, side_by_side=1))
    assert [report.seed for report in alone if not is_clean(report)] == [], figures([*found, *alone])
