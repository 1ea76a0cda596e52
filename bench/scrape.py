"""How long a scrape takes with a large fleet, beside the time in which the Prometheus client writes the same text.

Everything is real: a server of its own, `Engine` with the settings that are shipped, HTTP over loopback, the
collector as `aism-engine run` sets it (with Python's own thresholds one full collection is a scrape of 80 ms and more).
The limit is the text itself: it is made again and again from the same registry, in the same process, without any HTTP.
"""

import argparse
import asyncio
import json
import logging
import statistics
import time
from urllib.request import urlopen

import msgspec
import structlog
import uvloop
from prometheus_client import generate_latest

from aism_engine.cli.event_loop import tune_garbage_collector
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.settings import Settings
from aism_engine.store.client import Client, connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys


async def register(client: Client, keys: Keys, agents: int) -> None:
    """Let agents of a hundred types join."""
    for start in range(0, agents, 1000):
        batch = [
            msgspec.json.encode({"type": "register", "agent_id": f"w-{n:06d}", "payload": {"type": f"type-{n % 100}"}})
            for n in range(start, min(start + 1000, agents))
        ]
        await client.lpush(keys.response_queue, *batch)
    while await client.scard(keys.index) < agents or await client.llen(keys.response_queue):  # noqa: ASYNC110 - watched
        await asyncio.sleep(0.05)


def scraped(url: str) -> tuple[float, int]:
    began = time.perf_counter()
    with urlopen(url) as answer:  # noqa: S310  our own
        size = len(answer.read())
    return time.perf_counter() - began, size


async def main(agents: int, scrapes: int) -> None:
    with EmbeddedServer() as server:
        settings = msgspec.structs.replace(
            load_settings(environ={}).settings,
            redis=msgspec.structs.replace(Settings().redis, url=server.url),
            http=msgspec.structs.replace(Settings().http, port=0),
        )
        client, keys, stopping, engine = connect(settings.redis, "bench"), Keys(), asyncio.Event(), Engine(settings)
        running = asyncio.create_task(engine.run(stopping))
        await register(client, keys, agents)
        await asyncio.sleep(settings.sampler.poll_interval + 1)
        host, port = engine.http.address
        took: list[float] = []
        for _ in range(scrapes):
            seconds, size = await asyncio.to_thread(scraped, f"http://{host}:{port}/metrics")
            took.append(seconds)
            await asyncio.sleep(0.1)
        least: list[float] = []
        for _ in range(scrapes):
            began = time.perf_counter()
            generate_latest(engine.metrics.registry)
            least.append(time.perf_counter() - began)
        stopping.set()
        await running
        await client.aclose()
    figures = {
        "agents": agents,
        "bytes": size,
        "scrape_ms": round(1000 * statistics.median(took), 1),
        "scrape_max_ms": round(1000 * max(took), 1),
        "limit_ms": round(1000 * statistics.median(least), 1),
        "ratio": round(statistics.median(least) / statistics.median(took), 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--scrapes", type=int, default=50)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    options = parser.parse_args()
    tune_garbage_collector()
    uvloop.run(main(options.agents, options.scrapes))
