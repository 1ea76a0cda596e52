"""Measures the responses that one engine applies per second, and the CPU time of each.

Every response changes a state: the commit writes a record and a state key, adds a fact to the audit, publishes an event
and removes the response from its queue. All components of the engine run.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from bench import bullmq, peers
from bench.drain import Drained, drain_by_bullmq, drain_by_engine, drain_by_limit, drain_by_peer
from bench.harness import Options, interleave, make_server, medians
from bench.table import Row
from bench.workloads import state_changes

AGENTS = 1000
ONE_BY_ONE, BATCHES, BULLMQ = "BRPOP and SET, one by one", "SETs and LTRIM in MULTI, 512 at once", "BullMQ worker"


def rows(options: Options) -> Iterator[Row]:
    count = options.size(200_000, 40_000)
    backlog, short_backlog = state_changes(count, AGENTS), state_changes(count // 4, AGENTS)  # for the slow peers
    problem = bullmq.install()
    with make_server() as server:
        contestants: dict[str, Callable[[], Drained]] = {
            "engine": partial(drain_by_engine, server, backlog),
            "limit": partial(drain_by_limit, server, backlog),
            BATCHES: partial(drain_by_peer, server, backlog, peers.batches),
            ONE_BY_ONE: partial(drain_by_peer, server, short_backlog, peers.one_by_one),
        }
        if not problem:
            contestants[BULLMQ] = partial(drain_by_bullmq, server, count // 4, AGENTS)
        others = medians(interleave(options, "responses", contestants))
    engine, limit = others.pop("engine"), others.pop("limit")

    def compare(field: str) -> Mapping[str, float | str]:
        compared: dict[str, float | str] = {name: getattr(each, field) for name, each in others.items()}
        return compared | ({BULLMQ: problem} if problem else {})

    yield Row("responses of one engine", engine.per_second, "/s", limit.per_second, compare("per_second"))
    yield Row("CPU of the engine per response", engine.consumer_us, "µs", None, compare("consumer_us"))
    yield Row("CPU of the server per response", engine.server_us, "µs", limit.server_us, compare("server_us"))
