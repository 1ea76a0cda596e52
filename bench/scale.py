"""Measures whether the rate depends on the number of agents or on the length of the backlog."""

import time
from collections.abc import Callable, Iterator
from functools import partial

from aism_engine.store.embedded import EmbeddedServer
from bench.drain import Drained, drain_by_engine
from bench.engine_process import EngineProcess
from bench.harness import KEYS, Options, connect, empty, interleave, make_server, median, medians, wait_empty
from bench.responses import AGENTS
from bench.table import Row
from bench.workloads import state_changes, transition

SHORT = 1000
"""Responses in the short backlog."""
REPEATS = 20
"""Short backlogs in one run. One run needs many, because a short backlog lasts for only a few milliseconds."""


def rows(options: Options) -> Iterator[Row]:
    with make_server() as server:
        yield from by_agents(options, server)
        yield from by_backlog(options, server)


def by_agents(options: Options, server: EmbeddedServer) -> Iterator[Row]:
    """Compare fleets of three sizes, with the same number of responses.

    With 100 agents a commit of 512 responses has five of each agent, whose record is written once. From 512 agents on,
    all responses of a commit are from different agents, so the commit writes one record for each response.
    """
    many, count = options.size(100_000, 10_000), options.size(200_000, 40_000)
    contestants: dict[str, Callable[[], Drained]] = {
        f"{agents:,} agents": partial(drain_by_engine, server, state_changes(count, agents))
        for agents in (100, AGENTS, many)
    }
    results = medians(interleave(options, "scale", contestants))
    *peers, (name, largest) = ((name, each.per_second) for name, each in results.items())
    yield Row(f"responses of one engine, {name}", largest, "/s", None, dict(peers))


def by_backlog(options: Options, server: EmbeddedServer) -> Iterator[Row]:
    """Compare a short and a long backlog."""
    count = options.size(1_000_000, 100_000)
    contestants: dict[str, Callable[[], float]] = {
        "short": partial(drain_short, server),
        "long": lambda: drain_by_engine(server, state_changes(count, AGENTS)).per_second,
    }
    results = interleave(options, "scale: backlog", contestants)
    short, long = (median(each) for each in results.values())
    peer: dict[str, float | str] = {f"backlog of {SHORT:,}": short}
    yield Row(f"responses of one engine, backlog of {count:,}", long, "/s", None, peer)


def drain_short(server: EmbeddedServer) -> float:
    """Push short backlogs, each in one call, to an idle engine; return the median of the responses per second."""
    client = connect(server.url)
    empty(client)
    rates = []
    with EngineProcess(server.url) as engine:
        engine.wait_leading()
        for start in range(0, (1 + REPEATS) * SHORT, SHORT):
            backlog = [transition(number, AGENTS) for number in range(start, start + SHORT)]
            started_at = time.perf_counter()
            client.lpush(KEYS.response_queue, *backlog)
            client.publish(KEYS.responses, b"")
            wait_empty(client, KEYS.response_queue, interval_s=0.001)
            rates.append(SHORT / (time.perf_counter() - started_at))
    return median(rates[1:])  # the first backlog makes the agents known
