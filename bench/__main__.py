"""Runs the benchmarks, and prints one table of all figures. Progress goes to standard error.

docs/performance.md explains the table and its rows.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from bench import bullmq, machine
from bench.harness import Options, progress
from bench.table import Row, as_json, as_markdown, as_text

GROUPS: Final = (
    "responses",
    "latency",
    "load",
    "liveness",
    "scale",
    "takeover",
    "kinds",
    "costs",
    "commands",
    "archive",
    "start",
    "scrape",
)
"""Modules with a function `rows`, in the order of the table."""
ON_DEMAND: Final = ("codecs",)
"""Modules that run only if `--only` names them: they have many rows, and measure only a part of the engine."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    names = ", ".join((*GROUPS, *ON_DEMAND))
    parser.add_argument("--only", metavar="GROUP[,GROUP]", help=f"groups of rows: {names}; default: all but codecs")
    parser.add_argument("--runs", metavar="N", type=int, default=3, help="measurements of each program; default: 3")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that all rows work, not how fast")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results to a file, too")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, as in docs/performance.md")
    given = parser.parse_args(arguments)
    given.only = tuple(given.only.split(",")) if given.only else GROUPS
    if unknown := set(given.only).difference(GROUPS, ON_DEMAND):
        parser.error(f"--only: there is no group {', '.join(sorted(unknown))}. Choose from: {names}")
    if given.runs < 1:
        parser.error("--runs: expected at least 1")
    return given


def measure(group: str, options: Options) -> Iterator[Row]:
    """Run the benchmark of one module."""
    rows: Callable[[Options], Iterator[Row]] = import_module(f"bench.{group}").rows
    for row in rows(options):
        progress(f"{row.name}: {row.lines()[0][1]}")
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends engines and servers, too
    header = {**machine.describe(), **({"BullMQ": bullmq.describe()} if "responses" in given.only else {})}
    options = Options(given.runs, given.quick)
    rows = [row for group in given.only for row in measure(group, options)]
    print((as_markdown if given.markdown else as_text)(header, rows))
    if given.json:
        given.json.write_text(json.dumps(as_json(header, rows), indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
