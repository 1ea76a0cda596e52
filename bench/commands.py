"""Measures the fan-out of one request to many agents, and the CPU time that an idle engine spends on deadlines.

The first figure is the time from the request until the last command is in its list. Its limit is what the server alone
needs for the same writes: for each command an HSET of its record, an LPUSH of its body and a ZADD of its deadline, in
pipelines of a thousand.
"""

import time
from collections.abc import Iterator
from typing import Final

from bench.engine_process import EngineProcess
from bench.harness import KEYS, PAGE, Client, Options, connect, cpu_share, make_server, poll, progress, push, wait_empty
from bench.table import Row
from bench.workloads import agent_id, registrations

SELECTOR: Final = "type=architect"


def rows(options: Options) -> Iterator[Row]:
    agents, deadlines, idle_s = options.size(10_000, 1000), options.size(100_000, 10_000), options.size(20, 3)
    with make_server(append_only=True) as server, EngineProcess(server.url) as engine:
        client = connect(server.url)
        push(client, KEYS.response_queue, registrations(agents))
        wait_empty(client, KEYS.response_queue)
        progress(f"commands: one request for {agents:,} agents")
        fan_out_s, limit_s = fan_out(client, agents), write_the_same(client, agents)
        yield Row(f"one request for {agents:,} agents, until the last command is in its list", fan_out_s, "s", limit_s)
        progress("commands: idle engine")
        without = cpu_share(engine.pid, idle_s)
        schedule(client, deadlines, agents)
        progress(f"commands: idle engine with {deadlines:,} scheduled commands")
        idle, peer = cpu_share(engine.pid, idle_s), {"the same engine without them": without}
        yield Row(f"CPU of an idle engine, {deadlines:,} scheduled commands", idle, "% of a core", None, peer)


def fan_out(client: Client, agents: int) -> float:
    """Send one request to all agents; return the seconds until the last command is in its list."""
    payload = {"select": SELECTOR, "command": {"type": "work"}}
    started_at = time.perf_counter()
    push(client, KEYS.request_queue, [{"id": "all", "type": "send", "payload": payload}])
    client.publish(KEYS.requests, b"")
    poll(lambda: client.zcard(KEYS.deadlines) > agents, 0.002)  # one for each command, and one for the group
    return time.perf_counter() - started_at


def write_the_same(client: Client, agents: int) -> float:
    """Write one record, list and deadline for each agent, without an engine; return the seconds."""
    fields = client.hgetall(KEYS.command(f"all.{agent_id(0)}"))
    record = {name.decode(): value for name, value in fields.items()}
    started_at = time.perf_counter()
    for start in range(0, agents, PAGE):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + PAGE, agents)):
            pipeline.hset(f"limit:command:{number}", mapping=record)
            pipeline.lpush(f"limit:agent:{number}", record["body"])
            pipeline.zadd("limit:deadlines", {f"command:{number}": number})
        pipeline.execute()
    return time.perf_counter() - started_at


def schedule(client: Client, commands: int, agents: int) -> None:
    """Schedule commands for tomorrow, the same number for each agent."""
    payload = {"select": SELECTOR, "command": {"type": "work"}, "options": {"start_in": 86_400}}
    requests = ({"id": f"later-{n}", "type": "send", "payload": payload} for n in range(commands // agents))
    push(client, KEYS.request_queue, requests)
    wait_empty(client, KEYS.request_queue, KEYS.fanout)
