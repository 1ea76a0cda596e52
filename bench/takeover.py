"""Seconds from the lease to the first commit, when a standby takes over a large fleet from a leader that is killed.

Everything is real: a server with an append-only file, two `aism-engine run` with the settings that are shipped, agents
that have registered, moved and beaten, commands that are open. The leader is killed (kill -9); then some agents speak.
What is measured is what Redis shows: when the lease has a new holder, when the ledger has moved, when all that was said
is off the queue. The killed one is started again as the next standby.
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

import msgspec
import uvloop

from aism_engine.settings import RedisSettings
from aism_engine.store.client import Client, connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys

SPOKEN = 1000
"""How many agents speak after the leader's death: an arbitrary number, more than one commit of them."""
LOOK_EVERY_S = 0.005


class Takeover(NamedTuple):
    """Seconds from the kill to the lease, from there to the first commit, and to the last of what was said; and what
    the engine says of it: how long it took to load the fleet.
    """

    lease_s: float
    commit_s: float
    drained_s: float
    loaded_s: float


class Daemon:
    """`aism-engine run`; what it logs is read as it comes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, url: str) -> "Daemon":
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")}
        environ |= {"AISM_REDIS__URL": url, "AISM_HTTP__PORT": "0"}
        program = (sys.executable, "-c", "from aism_engine.cli.main import main; main()", "run", "--log-format", "json")
        return cls(await asyncio.create_subprocess_exec(*program, env=environ, stdout=DEVNULL, stderr=PIPE))

    async def event(self, name: str, component: str | None = None) -> dict[str, Any]:
        """Wait for the next event of this name; those before it are forgotten."""
        while True:
            found = await self._events.get()
            if found["event"] == name and component in {None, found.get("component")}:
                return found

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self._events.put_nowait(json.loads(line))


def fleet(agents: int) -> Iterator[dict[str, Any]]:
    """What the agents have said so far: each has registered and is at work."""
    for number in range(agents):
        agent_id = f"architect-{number:06d}"
        about = {"type": "architect", "labels": {"team": f"team-{number % 50}"}, "capabilities": ["ack"]}
        yield {"id": f"r{number}", "type": "register", "agent_id": agent_id, "payload": about}
        yield {"id": f"i{number}", "type": "state_transition", "agent_id": agent_id, "payload": {"target": "inbox"}}


async def push(client: Client, queue: str, messages: list[dict[str, Any]]) -> None:
    for start in range(0, len(messages), 1000):
        await client.lpush(queue, *map(msgspec.json.encode, messages[start : start + 1000]))


async def beat(client: Client, keys: Keys, agents: int) -> None:
    """Let all of them beat: a fleet that falls silent would be another story."""
    now = time.time()
    for start in range(0, agents, 1000):
        beats = {f"architect-{number:06d}": now for number in range(start, min(agents, start + 1000))}
        await client.zadd(keys.heartbeats, beats)


async def drained(client: Client, queue: str) -> None:
    while await client.llen(queue):  # noqa: ASYNC110 - it is watched from outside
        await asyncio.sleep(LOOK_EVERY_S)


async def populate(client: Client, keys: Keys, agents: int, commands: int) -> None:
    await push(client, keys.response_queue, list(fleet(agents)))
    await drained(client, keys.response_queue)
    sends = [
        {
            "id": f"c{number}",
            "type": "send",
            "payload": {"agent_id": f"architect-{number:06d}", "command": {"type": "w"}},
        }
        for number in range(commands)
    ]
    await push(client, keys.request_queue, sends)
    await drained(client, keys.request_queue)
    assert await client.scard(keys.index) == agents
    assert await client.zcard(keys.deadlines) == commands


async def takeover(client: Client, keys: Keys, leader: Daemon, standby: Daemon, name: str) -> Takeover:
    """Kill the leader, and watch the standby take its place."""
    lease = await client.get(keys.lease)
    await leader.kill()
    killed_at = time.perf_counter()
    ledger = await client.get(keys.ledger)
    moves = [
        {
            "id": f"{name}-{number}",
            "type": "measurement",
            "agent_id": f"architect-{number:06d}",
            "payload": {"depth": number},
        }
        for number in range(SPOKEN)
    ]
    await push(client, keys.response_queue, moves)
    while await client.get(keys.lease) in {lease, None}:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)
    taken_at = time.perf_counter()
    while await client.get(keys.ledger) == ledger:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)
    committed_at = time.perf_counter()
    await drained(client, keys.response_queue)
    drained_at = time.perf_counter()
    loaded = await standby.event("fleet_loaded")
    return Takeover(taken_at - killed_at, committed_at - taken_at, drained_at - taken_at, loaded["seconds"])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--commands", type=int, default=10_000, help="open commands, of as many agents")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keys, found = Keys("aism"), []
    with EmbeddedServer() as server:
        client = connect(RedisSettings(url=server.url), "bench", timeout_s=60)
        leader = await Daemon.start(server.url)
        await leader.event("lease_taken")
        await populate(client, keys, options.agents, options.commands)
        for run in range(options.runs):
            standby = await Daemon.start(server.url)
            await standby.event("component_started", component="sampler")
            await beat(client, keys, options.agents)
            found.append(await takeover(client, keys, leader, standby, f"run{run}"))
            if not options.json:
                print("  ".join(f"{name} {value:6.3f}" for name, value in found[-1]._asdict().items()))
            leader = standby
        await leader.kill()
        await client.aclose()
    columns = dict(zip(Takeover._fields, zip(*found, strict=True), strict=True))
    summary = {
        name: [round(pick(column), 3) for pick in (min, statistics.median, max)] for name, column in columns.items()
    }
    text = "least, median, most:  " + "  ".join(f"{name} {values}" for name, values in summary.items())
    print(json.dumps(summary) if options.json else text)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
