"""Measures an engine that only observes a fleet: its share of a core, and how long its event loop was held.

Each agent sends a heartbeat every ten seconds, spread evenly. Then all agents fall silent at once. This puts the brake
into its mode `full` (docs/liveness.md): the engine marks no agent as lost. The agents run in another process.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Final

from aism_engine.domain.policy import LivenessSettings
from aism_engine.store.embedded import EmbeddedServer
from bench import peers
from bench.engine_process import EngineProcess
from bench.harness import KEYS, Options, connect, cpu_share, make_server, poll, progress, run_in_process
from bench.table import Row

FEW: Final = 10
SETTLE_S: Final = 5.0
"""Extra wait after `silent_after` or `lost_after`, so that the engine has noticed the change of every agent."""
LAG: Final = 'aism_event_loop_lag_seconds_bucket{le="'


def rows(options: Options) -> Iterator[Row]:
    """Measure for as long as the registrar needs to read all metadata once (`registrar.metadata_interval`)."""
    liveness, seconds, many = LivenessSettings(), options.size(60, 10), options.size(100_000, 10_000)
    few: dict[str, float] = {}
    for agents in (FEW, many):
        with make_server() as server, EngineProcess(server.url) as engine:
            engine.wait_leading()
            with run_in_process(peers.send_heartbeats, server.url, agents):
                progress(f"liveness: {agents:,} agents join")
                wait_admitted(server, agents)
                time.sleep(liveness.silent_after + SETTLE_S)
                yield from observe(engine, f"{agents:,} agents that send heartbeats", seconds, few)
            if agents == many:
                time.sleep(liveness.lost_after + SETTLE_S)
                yield from observe(engine, f"{agents:,} agents that fell silent at once", seconds, few)


def wait_admitted(server: EmbeddedServer, agents: int) -> None:
    client = connect(server.url)
    poll(lambda: client.scard(KEYS.index) == agents, 0.2)


def observe(engine: EngineProcess, fleet: str, seconds: float, few: dict[str, float]) -> Iterator[Row]:
    """Measure for a time. The first fleet fills `few`, to which the other fleets are compared."""
    progress(f"liveness: {fleet}, for {seconds:.0f} s")
    before = engine.metrics()
    measured = {
        "CPU of an idle engine": (cpu_share(engine.pid, seconds), "% of a core"),
        "longest time the event loop was held": (longest_lag_ms(before, engine.metrics()), "ms at most"),
    }
    for name, (figure, unit) in measured.items():
        peers = {f"{FEW} agents": few[name]} if name in few else {}
        few.setdefault(name, figure)
        yield Row(f"{name}, {fleet}", figure, unit, None, peers)


def longest_lag_ms(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the upper bound of the histogram's bucket with the longest lag between two scrapes, in milliseconds."""
    bounds = [(float(name[len(LAG) : -2]), count - before[name]) for name, count in after.items() if LAG in name]
    observed = max(count for _, count in bounds)
    return 1000 * min(bound for bound, count in bounds if count == observed)
