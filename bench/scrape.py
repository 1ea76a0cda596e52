"""Measures how long a scrape of /metrics takes with a large fleet, over HTTP on loopback.

The limit, measured in the same process, is the time in which the Prometheus client writes the same text without HTTP.
"""

import argparse
import asyncio
import json
import statistics
import time
from urllib.request import urlopen

from prometheus_client import generate_latest

from aism_engine.store.embedded import EmbeddedServer
from bench.harness import register, run, running_engine

AGENT_TYPES = 100


def scrape(url: str) -> tuple[float, int]:
    """Return the seconds that a scrape takes, and its bytes."""
    started_at = time.perf_counter()
    with urlopen(url) as reply:  # noqa: S310  the address of our own engine
        size = len(reply.read())
    return time.perf_counter() - started_at, size


async def main(agents: int, scrapes: int) -> None:
    with EmbeddedServer() as server:
        async with running_engine(server, {"http.enabled": True, "http.port": 0}) as bench:
            await register(bench, agents, AGENT_TYPES)
            await asyncio.sleep(bench.engine.settings.sampler.poll_interval + 1)  # the metrics show the whole fleet
            host, port = bench.engine.http.address
            scrape_s, limit_s, size = [], [], 0
            for _ in range(scrapes):
                seconds, size = await asyncio.to_thread(scrape, f"http://{host}:{port}/metrics")
                scrape_s.append(seconds)
                await asyncio.sleep(0.1)
            for _ in range(scrapes):
                started_at = time.perf_counter()
                generate_latest(bench.engine.metrics.registry)
                limit_s.append(time.perf_counter() - started_at)
    figures = {
        "agents": agents,
        "bytes": size,
        "scrape_ms": round(1000 * statistics.median(scrape_s), 1),
        "scrape_max_ms": round(1000 * max(scrape_s), 1),
        "limit_ms": round(1000 * statistics.median(limit_s), 1),
        "ratio": round(statistics.median(limit_s) / statistics.median(scrape_s), 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--scrapes", type=int, default=50)
    options = parser.parse_args()
    run(main(options.agents, options.scrapes))
