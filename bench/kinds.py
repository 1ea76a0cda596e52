"""Measures the responses that one engine applies per second, for each kind of response.

The peer sets one key for each response (`peers.batches`), so it does less: it neither looks up a command nor validates.
"""

from collections.abc import Callable, Iterator
from functools import partial

from bench import peers
from bench.drain import Drained, drain_by_engine, drain_by_peer
from bench.harness import Options, interleave, make_server, medians
from bench.responses import AGENTS, BATCHES
from bench.table import Row
from bench.workloads import acks_and_results, measurements, mix, refusals


def rows(options: Options) -> Iterator[Row]:
    count = options.size(100_000, 20_000)
    kinds = {
        "acks and results of commands": acks_and_results(count),
        "measurements": measurements(count, AGENTS),
        "refusals": refusals(count, AGENTS),
        "a mix as in aism-engine dev": mix(count, AGENTS),
    }
    with make_server() as server:
        for kind, backlog in kinds.items():
            contestants: dict[str, Callable[[], Drained]] = {
                "engine": partial(drain_by_engine, server, backlog),
                BATCHES: partial(drain_by_peer, server, backlog, peers.batches),
            }
            results = medians(interleave(options, f"kinds: {kind}", contestants))
            rates = {name: each.per_second for name, each in results.items()}
            yield Row(f"responses of one engine, {kind}", rates["engine"], "/s", None, {BATCHES: rates[BATCHES]})
