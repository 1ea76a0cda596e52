"""`python -m tests.chaos --trials N --seed S`: inject faults into a running fleet, and check that nothing is lost."""

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tests.chaos.schedule import FAILOVERS, plan
from tests.chaos.trial import Report, run
from tests.chaos.verdict import KINDS_OF_VIOLATION

_SHOWN: Final = 12
"""Violations shown of one trial: the first ones tell most."""
_SIDE_BY_SIDE: Final = 2
"""Trials at a time."""
_RECOVERY_S: Final = 5.0
"""G5: the engine consumes again within 5 s, on a machine on which it starts within 1 s."""


def summary(reports: Sequence[Report]) -> str:
    """Return the totals of these trials as one line."""
    faults = sum((report.faults for report in reports), Counter[str]())
    totals = sum((report.figures for report in reports), Counter[str]())
    violations = Counter(violation.kind for report in reports for violation in report.violations)
    figures = {
        "trials": len(reports),
        "kills": totals["kills"],
        "faults": faults.total(),
        "failovers": sum(faults[kind] for kind in FAILOVERS),
        **{name: totals[name] for name in ("rollbacks", "responses", "commands")},
        **{kind: violations[kind] for kind in KINDS_OF_VIOLATION},
        "max_start_s": f"{max(report.start_s for report in reports):.2f}",
        "max_recovery_s": f"{max(report.recovery_s for report in reports):.2f}",
    }
    return " ".join(f"{name}={figure}" for name, figure in figures.items())


def is_slow(report: Report) -> bool:
    """Tell whether recovery took longer than promised, compared with what a start takes on this machine."""
    return report.recovery_s > _RECOVERY_S * max(1.0, report.start_s)


async def run_all(seeds: Sequence[int]) -> list[Report]:
    slots = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def run_one(seed: int) -> Report:
        async with slots:
            report = await run(plan(seed))
        if report.violations or is_slow(report):
            print(f"--seed {seed} --trials 1: {summary([report])}", *report.violations[:_SHOWN], sep="\n  ")
        return report

    return await asyncio.gather(*map(run_one, seeds))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="number of trials (default: 20)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="seed of the first trial (default: random)")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed={seed}", flush=True)
    reports = asyncio.run(run_all(range(seed, seed + arguments.trials)))
    faults = sum((report.faults for report in reports), Counter[str]())
    print(" ".join(f"{kind}={count}" for kind, count in sorted(faults.items())))
    print(summary(reports))
    return int(any(report.violations or is_slow(report) for report in reports))


if __name__ == "__main__":
    sys.exit(main())
