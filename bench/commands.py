"""Measures the fan-out of one request to many agents, and the CPU time that an idle engine spends on deadlines.

The first figure is the time from the request to the last command in its list. Its limit, measured in the same run, is
what the server alone needs for the same writes: for each command an HSET of its record, an LPUSH of its body and a ZADD
of its deadline, in pipelines of a thousand.
"""

import argparse
import json
import time

from aism_engine.store.embedded import EmbeddedServer
from bench.harness import PAGE, Bench, cpu_share, poll, push, register, run, running_engine, wait_empty

IDLE_S = 20.0
SELECTOR = "type=type-0"


async def fan_out(bench: Bench, agents: int) -> float:
    """Send one request to all agents; return the seconds until the last command is in its list."""
    client, keys = bench.client, bench.keys
    payload = {"select": SELECTOR, "command": {"type": "work"}}

    async def is_done() -> bool:
        return int(await client.zcard(keys.deadlines)) > agents  # one for each command, and one for the group

    started_at = time.perf_counter()
    await push(client, keys.request_queue, [{"id": "all", "type": "send", "payload": payload}])
    await client.publish(keys.requests, b"")
    await poll(is_done, 0.002)
    return time.perf_counter() - started_at


async def write_the_same(bench: Bench, agents: int) -> float:
    """Write one record, list and deadline for each agent, without an engine; return the seconds."""
    client, keys = bench.client, bench.keys
    fields = await client.hgetall(keys.command("all.worker-000000"))
    record = {name.decode(): value for name, value in fields.items()}
    started_at = time.perf_counter()
    for start in range(0, agents, PAGE):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + PAGE, agents)):
            pipeline.hset(f"limit:command:{number}", mapping=record)
            pipeline.lpush(f"limit:agent:{number}", record["body"])
            pipeline.zadd("limit:deadlines", {f"command:{number}": number})
        await pipeline.execute()
    return time.perf_counter() - started_at


async def schedule(bench: Bench, commands: int, agents: int) -> None:
    """Schedule commands for tomorrow, the same number for each agent."""
    client, keys = bench.client, bench.keys
    payload = {"select": SELECTOR, "command": {"type": "work"}, "options": {"start_in": 86_400}}
    requests = ({"id": f"later-{n}", "type": "send", "payload": payload} for n in range(commands // agents))
    await push(client, keys.request_queue, requests)
    await wait_empty(client, keys.request_queue, keys.fanout)


async def main(agents: int, deadlines: int) -> None:
    with EmbeddedServer() as server:
        async with running_engine(server) as bench:
            await register(bench, agents)
            fan_out_s = await fan_out(bench, agents)
            limit_s = await write_the_same(bench, agents)
            without = await cpu_share(IDLE_S)
            await schedule(bench, deadlines, agents)
            idle = await cpu_share(IDLE_S)
            held = await bench.client.zcard(bench.keys.deadlines)
    figures = {
        "agents": agents,
        "fan_out_s": round(fan_out_s, 2),
        "limit_s": round(limit_s, 2),
        "ratio": round(limit_s / fan_out_s, 2),
        "deadlines": held,
        "idle_cpu": f"{idle:.2%}",
        "deadlines_cpu": f"{idle - without:.2%}",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--deadlines", type=int, default=100_000, help="scheduled commands of the idle engine")
    options = parser.parse_args()
    run(main(options.agents, options.deadlines))
