"""`python -m tests.chaos --trials N --seed S`: break everything, and see what holds."""

import argparse
import random
import sys
from collections import Counter

from tests.chaos.runner import RECOVERS_WITHIN_S, figures, is_clean, reports

_SHOWN = 12  # violations of one trial; the first ones tell most


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="how many trials (20)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="seed of the first; the others follow it")
    parser.add_argument("--side-by-side", type=int, default=2, metavar="N", help="how many at a time (2)")
    parser.add_argument("--verbose", action="store_true", help="a line for each trial, too")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed={seed}", flush=True)
    found, kinds = [], Counter[str]()
    for report in reports(range(seed, seed + arguments.trials), arguments.side_by_side):
        found.append(report)
        kinds += report.faults
        if arguments.verbose or not is_clean(report):
            print(f"--seed {report.seed} --trials 1: {report.seconds:.1f} s, {figures([report])}", flush=True)
        if report.recovery_s > RECOVERS_WITHIN_S:
            print(f"  slow: consuming again only after {report.recovery_s:.1f} s")
        for violation in report.violations[:_SHOWN]:
            print(f"  {violation}", flush=True)
        if len(report.violations) > _SHOWN:
            print(f"  … and {len(report.violations) - _SHOWN} more")
    print(" ".join(f"{kind}={count}" for kind, count in sorted(kinds.items())))
    print(figures(found))
    return 0 if all(map(is_clean, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
