"""Responses applied per second by one engine, and the limit: the same commits driven back to back without an engine.

Every response is a state change: a record and a state key are written, a fact goes to the audit, an event is published,
and the response leaves its queue. Both halves run over the same server, one after the other, from the same backlog. The
engine runs whole: listener, reaper and all.

The limit is what the server can take: each `commit.lua` call is decided, built and packed beforehand, and all of them
are sent without waiting for answers. It leaves out peeking, deciding and packing, so no engine can reach it.
"""

import argparse
import asyncio
import json
import logging
import statistics
import time
from typing import Any

import hiredis
import msgspec
import structlog
import uvloop

from aism_engine.cli.event_loop import tune_garbage_collector
from aism_engine.config import load_machines, load_settings
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import decode_response
from aism_engine.domain.responses import decide_response
from aism_engine.engine import Engine
from aism_engine.settings import Settings
from aism_engine.store.batch import Batch, Bounds
from aism_engine.store.client import Client, connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import COMMIT
from aism_engine.store.store import Peek

TOKEN = "1:bench"  # noqa: S105 - a fencing token is no secret


def responses(count: int, agents: int) -> list[bytes]:
    """Build a backlog in which every response changes the state of its agent."""
    return [
        msgspec.json.encode(
            {
                "id": f"0190a5e2-7777-7000-8000-{number:012d}",
                "type": "state_transition",
                "agent_id": f"architect-{number % agents:06d}",
                "payload": {"target": ("deep_work", "inbox")[number // agents % 2]},
                "timestamp": "2026-11-22T22:00:00Z",
            }
        )
        for number in range(count)
    ]


async def fill(client: Client, keys: Keys, watermark: list[bytes]) -> None:
    await client.flushall()
    for start in range(0, len(watermark), 1000):
        await client.lpush(keys.response_queue, *watermark[start : start + 1000])


def prepared(watermark: list[bytes], keys: Keys, settings: Settings) -> list[bytes]:
    """Decide, build and pack all commits of the backlog."""
    rules, fleet, packed = Policy(machines=load_machines(settings.machines)), Fleet(), []
    size, previous = settings.response_consumer.batch_messages, ""
    for number, start in enumerate(range(0, len(watermark), size)):
        raws = watermark[start : start + size]
        draft = Draft(fleet, time.time())
        decisions = [decide_response(draft, rules, decode_response(raw), raw) for raw in raws]
        batch = Batch(keys, Bounds(1_000_000, 10_000, 16), decisions)
        commit_id = f"commit-{number}"
        taken = Peek(keys.response_queue, raws, "", len(watermark), "").trim
        call_keys, arguments = batch.call(TOKEN, commit_id, previous, taken)
        call: Any = ("EVALSHA", COMMIT.digest, len(call_keys), *call_keys, *arguments)
        packed.append(hiredis.pack_command(call))
        draft.apply()
        previous = commit_id
    return packed


async def limit(
    server: EmbeddedServer, client: Client, keys: Keys, watermark: list[bytes], settings: Settings
) -> float:
    """Drive all commits back to back; gives responses per second."""
    await fill(client, keys, watermark)
    await client.script_load(COMMIT.text)
    await client.set(keys.epoch, TOKEN)
    calls = prepared(watermark, keys, settings)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    replies = hiredis.Reader()
    began = time.perf_counter()
    writer.writelines(calls)
    for _ in calls:
        while (reply := replies.gets()) is False:
            replies.feed(await reader.read(1 << 16))
        assert reply[:2] == [1, []], reply
    seconds = time.perf_counter() - began
    writer.close()
    assert await client.llen(keys.response_queue) == 0
    return len(watermark) / seconds


async def engine(client: Client, keys: Keys, watermark: list[bytes], settings: Settings) -> float:
    """Let one engine drain the backlog; gives responses per second, from its first commit to its last."""
    await fill(client, keys, watermark)
    subject, stopping = Engine(settings), asyncio.Event()
    running = asyncio.create_task(subject.run(stopping))
    while await client.llen(keys.response_queue) == len(watermark):  # noqa: ASYNC110 - it is watched from outside
        await asyncio.sleep(0.001)
    began, left = time.perf_counter(), await client.llen(keys.response_queue)
    while await client.llen(keys.response_queue):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - began
    stopping.set()
    await running
    assert await client.xlen(keys.dead_letters) == 0
    return float(left / seconds)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=200_000)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    watermark = responses(options.responses, options.agents)
    with EmbeddedServer(append_only=False) as server:
        flags = {"redis.url": server.url, "http.port": 0, "logs.level": "warning"}
        settings = load_settings(overrides=flags).settings
        keys = Keys(settings.redis.prefix)
        client = connect(settings.redis, "bench", timeout_s=60)
        pairs = []
        for _ in range(options.runs):
            most = await limit(server, client, keys, watermark, settings)
            got = await engine(client, keys, watermark, settings)
            pairs.append((got, most))
            if not options.json:
                print(f"engine {got:>9,.0f}/s   limit {most:>9,.0f}/s   ratio {got / most:.2f}")
        await client.aclose()
    got, most = (statistics.median(column) for column in zip(*pairs, strict=True))
    summary = {"engine_per_second": round(got), "limit_per_second": round(most), "ratio": round(got / most, 3)}
    text = f"median: engine {got:,.0f}/s, limit {most:,.0f}/s, ratio {got / most:.2f}"
    print(json.dumps(summary) if options.json else text)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    tune_garbage_collector()  # as `aism-engine run` does
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
