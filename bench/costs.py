"""Measures what publishing events costs: the same engine with and without it.

No setting switches off the audit or the check for duplicates, so their costs are not measured.
"""

from collections.abc import Callable, Iterator
from functools import partial

from bench.drain import Drained, drain_by_engine
from bench.harness import Options, interleave, make_server, medians
from bench.responses import AGENTS
from bench.table import Row
from bench.workloads import state_changes


def rows(options: Options) -> Iterator[Row]:
    backlog = state_changes(options.size(200_000, 40_000), AGENTS)
    with make_server() as server:
        contestants: dict[str, Callable[[], Drained]] = {
            "default settings": partial(drain_by_engine, server, backlog),
            "no events": partial(drain_by_engine, server, backlog, protocol__publish_events="false"),
        }
        results = medians(interleave(options, "costs", contestants))
    default, without = (each.per_second for each in results.values())
    yield Row("responses of one engine, without events", without, "/s", None, {"default settings": default})
