"""Measures how long a standby takes from the lease to its first commit, after the leader of a large fleet was killed,
and the memory of the engine per agent.

The server has an append-only file. The fleet has registered agents that send heartbeats, and open commands. After the
leader was killed (kill -9), some agents send measurements. Three instants are observed in Redis: when the lease has a
new holder, when the ledger changes, and when the queue is empty. The time to load the fleet comes from the log of the
standby. Then the next standby is started.

The limit is the time that a client takes to read the records of all agents, without decoding them.
"""

import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from bench.engine_process import EngineProcess
from bench.harness import KEYS, PAGE, Client, Options, connect, make_server, medians, poll, progress, push, wait_empty
from bench.table import Row
from bench.workloads import agent_id

MEASUREMENTS: Final = 1000
"""Messages after the death of the leader: an arbitrary number that needs more than one commit."""


class Takeover(NamedTuple):
    """Durations of one takeover, in seconds."""

    lease: float
    """From the kill until the standby has the lease."""
    commit: float
    """From the lease to the first commit."""
    drained: float
    """From the lease until the queue is empty."""
    loaded: float
    """Time that the standby took to load the fleet."""
    limit: float
    """Time to read the records of all agents."""


def rows(options: Options) -> Iterator[Row]:
    agents, commands = options.size(100_000, 10_000), options.size(10_000, 1000)
    takeovers: list[Takeover] = []
    with make_server(append_only=True) as server:
        client, leader = connect(server.url), EngineProcess(server.url)
        leader.wait_leading()
        before_kb = resident_kb(leader)
        progress(f"takeover: {agents:,} agents join")
        populate(client, agents, commands)
        kb_per_agent = (resident_kb(leader) - before_kb) / agents
        for run in range(options.runs):
            progress(f"takeover: run {run + 1} of {options.runs}")
            standby = EngineProcess(server.url)
            standby.wait_started()
            send_heartbeats(client, agents)
            takeovers.append(measure_takeover(client, leader, standby, f"run{run}"))
            leader = standby
        leader.kill()
    median = medians({"engine": takeovers})["engine"]
    fleet = f"{agents:,} agents, {commands:,} open commands"
    yield Row("takeover, from the kill to the lease", median.lease, "s", note=fleet)
    yield Row("takeover, from the lease to the first commit", median.commit, "s", median.limit, note=fleet)
    yield Row("takeover, from the lease until nothing waits", median.drained, "s", median.limit, note=fleet)
    yield Row("takeover, load of the fleet", median.loaded, "s", median.limit, note=fleet)
    yield Row("memory of the engine per agent", kb_per_agent, "kB", note=fleet)


def resident_kb(engine: EngineProcess) -> float:
    """Return the resident memory of an engine, in kB of 1000 bytes."""
    return engine.metrics()["process_resident_memory_bytes"] / 1000


def responses(agents: int) -> Iterator[dict[str, Any]]:
    """Yield the responses with which each agent registers and changes its state."""
    for number in range(agents):
        head = {"agent_id": agent_id(number)}
        payload = {"type": "architect", "labels": {"team": f"team-{number % 50}"}, "capabilities": ["ack"]}
        yield {"id": f"r{number}", "type": "register", **head, "payload": payload}
        yield {"id": f"i{number}", "type": "state_transition", **head, "payload": {"target": "inbox"}}


def populate(client: Client, agents: int, commands: int) -> None:
    """Add the fleet and its open commands, each for a different agent."""
    push(client, KEYS.response_queue, responses(agents))
    wait_empty(client, KEYS.response_queue)
    payloads = ({"agent_id": agent_id(number), "command": {"type": "w"}} for number in range(commands))
    requests = ({"id": f"c{n}", "type": "send", "payload": payload} for n, payload in enumerate(payloads))
    push(client, KEYS.request_queue, requests)
    wait_empty(client, KEYS.request_queue)
    assert client.scard(KEYS.index) == agents
    assert client.zcard(KEYS.deadlines) == commands


def send_heartbeats(client: Client, agents: int) -> None:
    """Send a heartbeat of each agent, so that the standby does not find a silent fleet."""
    now = time.time()
    for start in range(0, agents, PAGE):
        page = range(start, min(agents, start + PAGE))
        client.zadd(KEYS.heartbeats, {agent_id(number): now for number in page})


def read_records(client: Client, agents: int) -> float:
    """Read the records of all agents in pages; return the seconds."""
    started_at = time.perf_counter()
    for start in range(0, agents, PAGE):
        client.mget([KEYS.agent(agent_id(number)) for number in range(start, min(agents, start + PAGE))])
    return time.perf_counter() - started_at


def measure_takeover(client: Client, leader: EngineProcess, standby: EngineProcess, name: str) -> Takeover:
    """Kill the leader, and observe how the standby takes over."""
    limit_s = read_records(client, client.scard(KEYS.index))
    lease = client.get(KEYS.lease)
    leader.kill()
    killed_at = time.perf_counter()
    ledger = client.get(KEYS.ledger)
    measurements = (
        {"id": f"{name}-{n}", "type": "measurement", "agent_id": agent_id(n), "payload": {"depth": n}}
        for n in range(MEASUREMENTS)
    )
    push(client, KEYS.response_queue, measurements)
    poll(lambda: client.get(KEYS.lease) not in {lease, None})
    taken_at = time.perf_counter()
    poll(lambda: client.get(KEYS.ledger) != ledger)
    committed_at = time.perf_counter()
    wait_empty(client, KEYS.response_queue)
    drained_at = time.perf_counter()
    loaded_s = standby.wait_event("fleet_loaded")["seconds"]
    return Takeover(taken_at - killed_at, committed_at - taken_at, drained_at - taken_at, loaded_s, limit_s)
