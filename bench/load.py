"""Measures the latency of a busy engine: at 80 % of the rate that it reached with a backlog.

A sender pushes pages of responses on a fixed schedule. Like the agents of a fleet, it does not wait for replies. The
first response of each page asks for a reply. Its latency is the time from the instant at which it was due until the
agent has popped the reply, so that a stall counts for every message that was due meanwhile. The peer, a bare consumer
of batches, gets the same load.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from aism_engine.store.embedded import EmbeddedServer
from bench import peers
from bench.drain import drain_by_engine
from bench.engine_process import EngineProcess
from bench.harness import (
    KEYS,
    Options,
    RawConnection,
    connect,
    empty,
    interleave,
    make_server,
    median,
    medians,
    percentile,
    run_in_process,
)
from bench.responses import AGENTS
from bench.table import Row
from bench.workloads import agent_id, message_id, state_changes, transition

SHARE: Final = 0.8
TICK_S: Final = 0.005
BATCHES: Final = "SETs and LTRIM in MULTI"

Page: TypeAlias = Sequence[bytes]
"""What is pushed at one tick."""


class Latency(NamedTuple):
    """Percentiles of the latency, in milliseconds."""

    p50_ms: float
    p99_ms: float


def rows(options: Options) -> Iterator[Row]:
    with make_server() as server:
        backlog = state_changes(options.size(200_000, 40_000), AGENTS)
        maxima = interleave(options, "load: maximum rate", {"engine": partial(drain_by_engine, server, backlog)})
        per_second = SHARE * median(each.per_second for each in maxima["engine"])
        pages = make_pages(per_second, options.size(20, 2))
        contestants: dict[str, Callable[[], Latency]] = {
            "engine": partial(load_engine, server, pages),
            BATCHES: partial(load_peer, server, pages),
        }
        results = medians(interleave(options, f"load: {per_second:,.0f} responses/s", contestants))
    for field in Latency._fields:
        name = f"push, until the reply, at {SHARE:.0%} of the maximum rate, {field.removesuffix('_ms')}"
        peer = {BATCHES: getattr(results[BATCHES], field)}
        yield Row(name, getattr(results["engine"], field), "ms", None, peer, f"{per_second:,.0f} responses/s")


def make_pages(per_second: float, seconds: float) -> list[Page]:
    """Prepare the pages of a load. The first response of each page asks for a reply."""
    size = max(1, round(per_second * TICK_S))
    starts = range(0, round(seconds / TICK_S) * size, size)
    return [[transition(start + n, AGENTS, reply=n == 0) for n in range(size)] for start in starts]


def load_engine(server: EmbeddedServer, pages: Sequence[Page]) -> Latency:
    empty(connect(server.url))
    with EngineProcess(server.url) as engine:
        engine.wait_leading()
        return send_load(server.url, pages)


def load_peer(server: EmbeddedServer, pages: Sequence[Page]) -> Latency:
    empty(connect(server.url))
    with run_in_process(peers.batches, server.url):
        return send_load(server.url, pages)


def send_load(url: str, pages: Sequence[Page]) -> Latency:
    """Warm up the consumer with the first page; then push the others on schedule, and read the replies.

    A consumer applies messages in their order, so the replies are read in the order of their messages.
    """
    sender, reader, size = RawConnection(url), RawConnection(url), len(pages[0])
    first_replies = [KEYS.agent_reply(agent_id(n % AGENTS), message_id(n)) for n in range(0, len(pages) * size, size)]
    push_page(sender, pages[0])
    reader.call(("BRPOP", first_replies[0], 0))
    started_at = time.perf_counter()
    thread = threading.Thread(target=push_on_schedule, args=(sender, pages[1:], started_at), daemon=True)
    thread.start()
    latencies_ms = []
    for number, key in enumerate(first_replies[1:]):
        reader.call(("BRPOP", key, 0))
        latencies_ms.append(1000 * (time.perf_counter() - started_at - number * TICK_S))
    thread.join()
    sender.close()
    reader.close()
    return Latency(percentile(latencies_ms, 50), percentile(latencies_ms, 99))


def push_on_schedule(sender: RawConnection, pages: Sequence[Page], started_at: float) -> None:
    for number, page in enumerate(pages):
        time.sleep(max(0.0, started_at + number * TICK_S - time.perf_counter()))
        push_page(sender, page)


def push_page(sender: RawConnection, page: Page) -> None:
    sender.call(("LPUSH", KEYS.response_queue, *page), ("PUBLISH", KEYS.responses, b""))
