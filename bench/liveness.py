"""The share of a core that liveness costs: an engine whose fleet beats, each agent every ten seconds, and then falls
silent all at once; each beside the same engine with nobody at all, and for as long as it takes the engine to go over
everything once (`registrar.metadata_interval`).

Everything is real: a server of its own, `Engine` with the settings that are shipped. The agents are another process, so
only the engine is measured.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import resource
import time

import msgspec
import redis
import structlog
import uvloop

from aism_engine.cli.event_loop import tune_garbage_collector
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.settings import Settings
from aism_engine.store.client import Client, connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys


async def share(seconds: float) -> float:
    """Watch the engine, and give the share of a core that it takes."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    await asyncio.sleep(seconds)
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / took


def beat(url: str, agents: int, rate: int) -> None:
    """Beat for all of them in turn, `rate` times in a second, until killed."""
    client, heartbeats, number = redis.Redis.from_url(url), Keys().heartbeats, 0
    page, due = max(1, rate // 20), time.monotonic()
    while True:
        now = time.time()
        client.zadd(heartbeats, {f"agent-{(number + each) % agents:06d}": now for each in range(page)})
        number += page
        due += page / rate
        time.sleep(max(0.0, due - time.monotonic()))


async def taken_in(client: Client, keys: Keys, agents: int) -> None:
    while await client.scard(keys.index) < agents:  # noqa: ASYNC110  watched
        await asyncio.sleep(0.2)


async def main(agents: int, seconds: float) -> None:
    with EmbeddedServer() as server:
        settings = msgspec.structs.replace(
            load_settings(environ={}).settings,
            redis=msgspec.structs.replace(Settings().redis, url=server.url),
            http=msgspec.structs.replace(Settings().http, enabled=False),
        )
        client, keys, stopping = connect(settings.redis, "bench"), Keys(), asyncio.Event()
        running = asyncio.create_task(Engine(settings).run(stopping))
        await asyncio.sleep(3)
        idle = await share(seconds)
        figures: dict[str, object] = {"agents": agents, "idle": f"{idle:.2%}"}
        agent = multiprocessing.get_context("spawn").Process(target=beat, args=(server.url, agents, agents // 10))
        agent.start()
        await taken_in(client, keys, agents)
        await asyncio.sleep(settings.liveness.silent_after + 5)  # all have been seen to beat, and are known
        figures["beating"] = f"{await share(seconds) - idle:.2%}"
        agent.kill()
        agent.join()
        await asyncio.sleep(settings.liveness.lost_after + 5)  # all silent at once: nobody is lost
        figures["silent"] = f"{await share(seconds) - idle:.2%}"
        stopping.set()
        await running
        await client.aclose()
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is watched")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    tune_garbage_collector()  # as `aism-engine run` does
    options = parser.parse_args()
    uvloop.run(main(options.agents, options.seconds))
