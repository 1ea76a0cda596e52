"""Seconds from a request to many agents to the last command in its list, beside the time that the server alone
needs for as many records, lists and deadlines; then what an engine that has nothing to do uses of a core, and how much
of it is for the deadlines that it holds.

Everything is real: a server of its own, `Engine` with the settings that are shipped. The limit is measured in the same
run: for each command an HSET of its record, an LPUSH of its body and a ZADD of its deadline, sent in pipelines of a
thousand.
"""

import argparse
import asyncio
import json
import logging
import resource
import time

import msgspec
import structlog
import uvloop

from aism_engine.cli.event_loop import tune_garbage_collector
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.settings import Settings
from aism_engine.store.client import Client, connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys

IDLE_S = 20.0


async def register(client: Client, keys: Keys, agents: int) -> None:
    for start in range(0, agents, 1000):
        batch = [
            msgspec.json.encode({"type": "register", "agent_id": f"worker-{number:06d}", "payload": {"type": "worker"}})
            for number in range(start, min(start + 1000, agents))
        ]
        await client.lpush(keys.response_queue, *batch)
    while await client.scard(keys.index) < agents or await client.llen(keys.response_queue):  # noqa: ASYNC110 - watched
        await asyncio.sleep(0.05)


async def fan_out(client: Client, keys: Keys, agents: int) -> float:
    """Ask once for all; gives the seconds to the last command in its list."""
    request = {"id": "all", "type": "send", "payload": {"select": "type=worker", "command": {"type": "work"}}}
    began = time.perf_counter()
    await client.lpush(keys.request_queue, msgspec.json.encode(request))
    await client.publish(keys.requests, b"")
    while await client.zcard(keys.deadlines) < agents + 1:  # noqa: ASYNC110  # the group has one, too
        await asyncio.sleep(0.002)
    return time.perf_counter() - began


async def limit(client: Client, keys: Keys, agents: int) -> float:
    record = {name.decode(): value for name, value in (await client.hgetall(keys.command("all.worker-000000"))).items()}
    began = time.perf_counter()
    for start in range(0, agents, 1000):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + 1000, agents)):
            pipeline.hset(f"limit:command:{number}", mapping=record)
            pipeline.lpush(f"limit:agent:{number}", record["body"])
            pipeline.zadd("limit:deadlines", {f"command:{number}": number})
        await pipeline.execute()
    return time.perf_counter() - began


async def hold(client: Client, keys: Keys, deadlines: int, agents: int) -> None:
    """Have so many commands outstanding, all of them scheduled far away."""
    options = {"start_in": 86_400}
    for round_ in range(deadlines // agents):
        payload = {"select": "type=worker", "command": {"type": "work"}, "options": options}
        request = {"id": f"later-{round_}", "type": "send", "payload": payload}
        await client.lpush(keys.request_queue, msgspec.json.encode(request))
    while await client.llen(keys.request_queue) or await client.llen(keys.fanout):  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def idle_share() -> float:
    """Watch the process do nothing, and give the share of a core that it takes."""
    await asyncio.sleep(2)
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(IDLE_S)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / IDLE_S


async def main(agents: int, deadlines: int) -> None:
    with EmbeddedServer() as server:
        settings = msgspec.structs.replace(
            load_settings(environ={}).settings,
            redis=msgspec.structs.replace(Settings().redis, url=server.url),
            http=msgspec.structs.replace(Settings().http, enabled=False),
        )
        client, keys, stopping = connect(settings.redis, "bench"), Keys(), asyncio.Event()
        running = asyncio.create_task(Engine(settings).run(stopping))
        await register(client, keys, agents)
        took_s = await fan_out(client, keys, agents)
        least_s = await limit(client, keys, agents)
        alone = await idle_share()
        await hold(client, keys, deadlines, agents)
        share = await idle_share()
        held = await client.zcard(keys.deadlines)
        stopping.set()
        await running
        await client.aclose()
    figures = {
        "agents": agents,
        "fan_out_s": round(took_s, 2),
        "limit_s": round(least_s, 2),
        "ratio": round(least_s / took_s, 2),
        "deadlines": held,
        "idle_cpu": f"{share:.2%}",
        "deadlines_cpu": f"{share - alone:.2%}",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--deadlines", type=int, default=100_000, help="outstanding commands of the idle engine")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    tune_garbage_collector()  # as `aism-engine run` does
    options = parser.parse_args()
    uvloop.run(main(options.agents, options.deadlines))
