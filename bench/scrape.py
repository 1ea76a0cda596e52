"""Measures how long a scrape of /metrics takes with a large fleet, over HTTP on loopback.

The limit is a request for /livez to the same engine: HTTP without the text of the metrics.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Final

from aism_engine.settings import SamplerSettings
from bench.engine_process import EngineProcess
from bench.harness import KEYS, Options, connect, make_server, percentile, progress, push, sample, wait_empty
from bench.table import Row
from bench.workloads import response

AGENT_TYPES: Final = 100
PAUSE_S: Final = 0.1


def rows(options: Options) -> Iterator[Row]:
    agents, scrapes = options.size(100_000, 10_000), options.size(50, 20)
    with make_server() as server, EngineProcess(server.url) as engine:
        client = connect(server.url)
        progress(f"scrape: {agents:,} agents join")
        types = ({"type": f"type-{number % AGENT_TYPES}"} for number in range(agents))
        push(client, KEYS.response_queue, (response(n, "register", n, payload) for n, payload in enumerate(types)))
        wait_empty(client, KEYS.response_queue)
        time.sleep(SamplerSettings().poll_interval + 1)  # the metrics show the whole fleet
        progress(f"scrape: {scrapes} scrapes")
        paths = {path: partial(get, engine, path) for path in ("/metrics", "/livez")}
        seconds, size = sample(scrapes, paths, PAUSE_S), len(engine.get("/metrics"))
    for percent in (50, 99):
        scrape_ms, limit_ms = (1000 * percentile(each, percent) for each in seconds.values())
        name = f"scrape of /metrics, {agents:,} agents, p{percent}"
        yield Row(name, scrape_ms, "ms", limit_ms, note=f"{size / 1000:.0f} kB")


def get(engine: EngineProcess, path: str) -> float:
    """Return the seconds that a request takes."""
    started_at = time.perf_counter()
    engine.get(path)
    return time.perf_counter() - started_at
