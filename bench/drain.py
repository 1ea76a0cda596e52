"""Measures how fast a consumer drains a preloaded queue: an engine, the limit, or a peer.

The engine and the peers are measured from outside, by polling the length of the queue. The measurement starts when the
consumer has taken the preamble of the backlog and at least one response, and ends when the queue is empty. The start of
the consumer and the preamble are not counted.

The limit is what the server can do: each call of `commit.lua` is decided, built and packed beforehand, and all calls
are sent without waiting for replies. It leaves out peeking, deciding and packing, so no engine can reach it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import hiredis

from aism_engine.config import load_settings
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.protocol.codec import decode_response
from aism_engine.domain.responses import decide_response
from aism_engine.policy_loader import build_policy
from aism_engine.store.batch import Batch, Bounds
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.scripts import COMMIT
from aism_engine.store.store import Peek
from bench import bullmq
from bench.engine_process import EngineProcess
from bench.harness import (
    KEYS,
    Client,
    RawConnection,
    connect,
    cpu_s,
    empty,
    poll,
    push,
    run_in_process,
    server_cpu_s,
    wait_empty,
)

TOKEN: Final = "1:bench"  # noqa: S105  a fencing token is not a secret


class Backlog(NamedTuple):
    """Responses in a queue. Those of `preamble` come first and make the agents known.

    The rate of the limit includes the preamble. The rates of the engine and the peers do not.
    """

    responses: Sequence[bytes]
    preamble: Sequence[bytes] = ()
    prepare: Callable[[EmbeddedServer], None] | None = None
    """Writes to the server what the responses refer to, such as commands. Only the engine needs this, not the peers."""


class Drained(NamedTuple):
    """What a consumer needed for a backlog."""

    per_second: float
    consumer_us: float
    """CPU time of the consumer per message, in microseconds."""
    server_us: float
    """CPU time of the server per message, in microseconds."""


def drain_by_engine(server: EmbeddedServer, backlog: Backlog, **settings: object) -> Drained:
    """Let an engine with these settings (`section__name`) apply a backlog."""
    client = _preload(server, backlog, backlog.prepare)
    with EngineProcess(server.url, **settings) as engine:
        drained = _measure(client, engine.pid, len(backlog.responses), KEYS.response_queue)
    assert client.xlen(KEYS.dead_letters) == 0, client.xrange(KEYS.dead_letters, count=1)
    return drained


def drain_by_peer(server: EmbeddedServer, backlog: Backlog, program: Callable[[str], None]) -> Drained:
    """Let a program of `peers.py` apply a backlog."""
    client = _preload(server, backlog)
    with run_in_process(program, server.url) as pid:
        return _measure(client, pid, len(backlog.responses), KEYS.response_queue)


def drain_by_bullmq(server: EmbeddedServer, count: int, agents: int) -> Drained:
    """Let a worker of BullMQ process jobs that set states."""
    client = connect(server.url)
    empty(client)
    bullmq.add_jobs(server.url, count, agents)
    with bullmq.worker(server.url) as pid:
        return _measure(client, pid, count, *bullmq.QUEUES)


def drain_by_limit(server: EmbeddedServer, backlog: Backlog) -> Drained:
    """Send the commits of a backlog at once. They are decided by this process, before the time is taken."""
    client = _preload(server, backlog)
    client.script_load(COMMIT.text)
    client.set(KEYS.epoch, TOKEN)
    raws = [*backlog.preamble, *backlog.responses]
    calls = pack_commits(server, raws)
    connection = RawConnection(server.url)
    cpu_before_s, started_at = server_cpu_s(client), time.perf_counter()
    connection.send_packed(b"".join(calls))
    for _ in calls:
        reply = connection.read()
        assert reply[:2] == [1, []], reply
    seconds = time.perf_counter() - started_at
    server_us = 1e6 * (server_cpu_s(client) - cpu_before_s) / len(raws)
    connection.close()
    assert client.llen(KEYS.response_queue) == 0
    return Drained(len(raws) / seconds, 0.0, server_us)


def pack_commits(server: EmbeddedServer, raws: Sequence[bytes]) -> list[bytes]:
    """Decide, build and pack the commits of a queue, in batches of the default size."""
    settings = load_settings(environ={}, overrides={"redis.url": server.url}).settings
    policy, fleet, packed = build_policy(settings, {}), Fleet(), []
    size, previous = settings.response_consumer.batch_messages, ""
    for number, start in enumerate(range(0, len(raws), size)):
        page = raws[start : start + size]
        draft = Draft(fleet, time.time())
        decisions = [decide_response(draft, policy, decode_response(raw), raw) for raw in page]
        batch = Batch(KEYS, Bounds(1_000_000, 10_000, 16), decisions, draft.seen_ids())
        commit_id = f"commit-{number}"
        trim = Peek(KEYS.response_queue, list(page), "", len(raws), "").trim
        keys, arguments = batch.call(TOKEN, commit_id, previous, trim)
        call: Any = ("EVALSHA", COMMIT.digest, len(keys), *keys, *arguments)
        packed.append(hiredis.pack_command(call))
        draft.apply()
        previous = commit_id
    return packed


def _preload(
    server: EmbeddedServer, backlog: Backlog, prepare: Callable[[EmbeddedServer], None] | None = None
) -> Client:
    """Empty the server, prepare it, and fill the queue."""
    client = connect(server.url)
    empty(client)
    if prepare is not None:
        prepare(server)
    push(client, KEYS.response_queue, [*backlog.preamble, *backlog.responses])
    return client


def _measure(client: Client, pid: int, count: int, *queues: str) -> Drained:
    """Observe how a process drains the last `count` messages of the queues."""

    def left() -> int:
        return sum(client.llen(queue) for queue in queues)

    poll(lambda: left() < count, 0.001)
    started_at, messages = time.perf_counter(), max(1, left())  # a poll may find a short backlog empty
    server_before_s, before_s = server_cpu_s(client), cpu_s(pid)
    wait_empty(client, *queues, interval_s=0.02)
    seconds = time.perf_counter() - started_at
    consumer_s, server_s = cpu_s(pid) - before_s, server_cpu_s(client) - server_before_s
    return Drained(messages / seconds, 1e6 * consumer_s / messages, 1e6 * server_s / messages)
