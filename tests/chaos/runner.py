"""Many trials, some of them side by side, and the line of figures that they come to."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.chaos import trial
from tests.chaos.charges import CHARGES
from tests.chaos.trial import Report

RECOVERS_WITHIN_S = 5.0
"""What G5 promises. The clock runs while all is calm and some engine process is there, if only just started."""


def reports(seeds: Iterable[int], side_by_side: int) -> Iterator[Report]:
    """Run the trials of these seeds, each in a process that starts it from nothing; gives each as it ends."""
    with ProcessPoolExecutor(side_by_side, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(trial.run, seed) for seed in seeds]
        for ended in as_completed(running):
            yield ended.result()


def figures(reports: Iterable[Report]) -> str:
    """Add up: the line that a run prints."""
    found = list(reports)
    charges = Counter(violation.charge for report in found for violation in report.violations)
    counts = {
        "trials": len(found),
        "kills": sum(report.kills for report in found),
        "faults": sum(report.faults.total() for report in found),
        "failovers": sum(report.failovers for report in found),
        "rollbacks": sum(report.rollbacks for report in found),
        "responses": sum(report.responses for report in found),
        "commands": sum(report.commands for report in found),
        **{charge: charges[charge] for charge in CHARGES},
    }
    longest = max((report.recovery_s for report in found), default=0.0)
    line = " ".join(f"{name}={count}" for name, count in counts.items())
    return f"{line} max_recovery_s={longest:.2f}"


def is_clean(report: Report) -> bool:
    return not report.violations and report.recovery_s <= RECOVERS_WITHIN_S
