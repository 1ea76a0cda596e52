"""Measures how long a standby takes from the lease to its first commit, after the leader of a large fleet was killed.

The server has an append-only file. The leader and the standby are processes of `aism-engine run` with the default
settings. The fleet has registered agents that send heartbeats, and open commands. After the leader was killed
(kill -9), some agents send measurements.
All times are observed in Redis: when the lease has a new holder, when the ledger changes, and when the queue is empty.
Then the next standby is started.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterator
from typing import Any, NamedTuple

from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.client_type import Client
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from bench.harness import PAGE, poll, push, run, wait_empty

MEASUREMENTS = 1000
"""Messages after the death of the leader: an arbitrary number that needs more than one commit."""
KEYS = Keys()


class Takeover(NamedTuple):
    """Durations of one takeover."""

    lease_s: float
    """From the kill until the standby has the lease."""
    commit_s: float
    """From the lease to the first commit."""
    drained_s: float
    """From the lease until the queue is empty."""
    loaded_s: float
    """Time that the standby took to load the fleet."""


class Daemon:
    """A process of `aism-engine run`, and the events that it logs."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, url: str) -> "Daemon":
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")}
        environ |= {"AISM_REDIS__URL": url, "AISM_HTTP__PORT": "0"}
        program = (sys.executable, "-c", "from aism_engine.cli.main import main; main()", "run", "--log-format", "json")
        return cls(await asyncio.create_subprocess_exec(*program, env=environ, stdout=DEVNULL, stderr=PIPE))

    async def wait_event(self, name: str, component: str | None = None) -> dict[str, Any]:
        """Wait for the next event of this name, and drop the events before it."""
        while True:
            event = await self._events.get()
            if event["event"] == name and component in {None, event.get("component")}:
                return event

    async def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._events.put_nowait(json.loads(line))


def agent_id(number: int) -> str:
    return f"architect-{number:06d}"


def responses(agents: int) -> Iterator[dict[str, Any]]:
    """Yield the responses with which each agent registers and changes its state."""
    for number in range(agents):
        head = {"agent_id": agent_id(number)}
        payload = {"type": "architect", "labels": {"team": f"team-{number % 50}"}, "capabilities": ["ack"]}
        yield {"id": f"r{number}", "type": "register", **head, "payload": payload}
        yield {"id": f"i{number}", "type": "state_transition", **head, "payload": {"target": "inbox"}}


async def populate(client: Client, agents: int, commands: int) -> None:
    """Add the fleet and its open commands."""
    await push(client, KEYS.response_queue, responses(agents))
    await wait_empty(client, KEYS.response_queue)
    payloads = ({"agent_id": agent_id(number), "command": {"type": "w"}} for number in range(commands))
    requests = ({"id": f"c{n}", "type": "send", "payload": payload} for n, payload in enumerate(payloads))
    await push(client, KEYS.request_queue, requests)
    await wait_empty(client, KEYS.request_queue)
    assert await client.scard(KEYS.index) == agents
    assert await client.zcard(KEYS.deadlines) == commands


async def send_heartbeats(client: Client, agents: int) -> None:
    """Send a heartbeat of each agent, so that the standby does not find a silent fleet."""
    now = time.time()
    for start in range(0, agents, PAGE):
        await client.zadd(
            KEYS.heartbeats, {agent_id(number): now for number in range(start, min(agents, start + PAGE))}
        )


async def measure_takeover(client: Client, leader: Daemon, standby: Daemon, name: str) -> Takeover:
    """Kill the leader, and observe how the standby takes over."""
    lease = await client.get(KEYS.lease)
    await leader.kill()
    killed_at = time.perf_counter()
    ledger = await client.get(KEYS.ledger)

    async def is_taken() -> bool:
        return await client.get(KEYS.lease) not in {lease, None}

    async def has_committed() -> bool:
        return bool(await client.get(KEYS.ledger) != ledger)

    measurements = (
        {"id": f"{name}-{n}", "type": "measurement", "agent_id": agent_id(n), "payload": {"depth": n}}
        for n in range(MEASUREMENTS)
    )
    await push(client, KEYS.response_queue, measurements)
    await poll(is_taken)
    taken_at = time.perf_counter()
    await poll(has_committed)
    committed_at = time.perf_counter()
    await wait_empty(client, KEYS.response_queue)
    drained_at = time.perf_counter()
    loaded = await standby.wait_event("fleet_loaded")
    return Takeover(taken_at - killed_at, committed_at - taken_at, drained_at - taken_at, loaded["seconds"])


async def main(agents: int, commands: int, runs: int, *, as_json: bool) -> None:
    takeovers: list[Takeover] = []
    with EmbeddedServer() as server:
        client = connect(RedisSettings(url=server.url), "bench", timeout_s=60)
        leader = await Daemon.start(server.url)
        await leader.wait_event("lease_taken")
        await populate(client, agents, commands)
        for number in range(runs):
            standby = await Daemon.start(server.url)
            await standby.wait_event("component_started", component="sampler")
            await send_heartbeats(client, agents)
            takeovers.append(await measure_takeover(client, leader, standby, f"run{number}"))
            if not as_json:
                print("  ".join(f"{name} {value:6.3f}" for name, value in takeovers[-1]._asdict().items()))
            leader = standby
        await leader.kill()
        await client.aclose()
    columns = zip(Takeover._fields, zip(*takeovers, strict=True), strict=True)
    summary = {name: [round(of(column), 3) for of in (min, statistics.median, max)] for name, column in columns}
    text = "minimum, median, maximum:  " + "  ".join(f"{name} {values}" for name, values in summary.items())
    print(json.dumps(summary) if as_json else text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--commands", type=int, default=10_000, help="open commands, each for another agent")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    run(main(options.agents, options.commands, options.runs, as_json=options.json))
