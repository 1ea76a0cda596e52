"""Measures the share of a core that liveness costs: for a fleet that sends heartbeats, and for one that falls silent.

Each agent sends a heartbeat every ten seconds; then all fall silent at once. The figure of the same engine without
agents is subtracted from both figures. By default each is measured for as long as the registrar needs to read all
metadata once (`registrar.metadata_interval`). The agents run in another process, so that only the engine is measured.
"""

import argparse
import asyncio
import json
import multiprocessing
import time

import redis

from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from bench.harness import cpu_share, poll, run, running_engine

HEARTBEAT_INTERVAL_S = 10
PAGES_PER_SECOND = 20
START_S = 3
"""The engine starts meanwhile."""


def send_heartbeats(url: str, agents: int) -> None:
    """Send heartbeats for all agents in turn, until killed."""
    client, heartbeats, number = redis.Redis.from_url(url), Keys().heartbeats, 0
    page = max(1, agents // HEARTBEAT_INTERVAL_S // PAGES_PER_SECOND)
    interval_s = page * HEARTBEAT_INTERVAL_S / agents
    next_at = time.monotonic()
    while True:
        now = time.time()
        client.zadd(heartbeats, {f"agent-{(number + each) % agents:06d}": now for each in range(page)})
        number += page
        next_at += interval_s
        time.sleep(max(0.0, next_at - time.monotonic()))


async def main(agents: int, seconds: float) -> None:
    with EmbeddedServer() as server:
        async with running_engine(server) as bench:
            liveness = bench.engine.settings.liveness

            async def all_admitted() -> bool:
                return int(await bench.client.scard(bench.keys.index)) == agents

            await asyncio.sleep(START_S)
            idle = await cpu_share(seconds)
            fleet = multiprocessing.get_context("spawn").Process(target=send_heartbeats, args=(server.url, agents))
            fleet.start()
            await poll(all_admitted, 0.2)
            await asyncio.sleep(liveness.silent_after + 5)  # every agent is fresh by then
            beating = await cpu_share(seconds)
            fleet.kill()
            fleet.join()
            await asyncio.sleep(liveness.lost_after + 5)  # the brake holds: no agent is lost
            silent = await cpu_share(seconds)
    figures = {"agents": agents, "idle": f"{idle:.2%}"}
    print(json.dumps(figures | {"beating": f"{beating - idle:.2%}", "silent": f"{silent - idle:.2%}"}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each figure is measured")
    options = parser.parse_args()
    run(main(options.agents, options.seconds))
