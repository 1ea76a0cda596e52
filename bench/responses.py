"""Measures the responses that one engine applies per second, and the limit: the same commits without an engine.

Every response changes a state: the commit writes a record and a state key, adds a fact to the audit, publishes an event
and removes the response from its queue. Engine and limit start from the same backlog on the same server, one after the
other. All components of the engine run.

The limit is what the server can do: each call of `commit.lua` is decided, built and packed beforehand, and all calls
are sent without waiting for replies. It leaves out peeking, deciding and packing, so no engine can reach it.
"""

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

import hiredis
import msgspec

from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.protocol.codec import decode_response
from aism_engine.domain.responses import decide_response
from aism_engine.policy_loader import build_policy
from aism_engine.settings import Settings
from aism_engine.store.batch import Batch, Bounds
from aism_engine.store.client import connect
from aism_engine.store.client_type import Client
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import COMMIT
from aism_engine.store.store import Peek
from bench.harness import default_settings, poll, push, run, running_engine, wait_empty

TOKEN = "1:bench"  # noqa: S105  a fencing token is not a secret
KEYS = Keys()


def build_backlog(count: int, agents: int) -> list[bytes]:
    """Build responses. Each one changes the state of its agent."""
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


def pack_commits(backlog: list[bytes], settings: Settings) -> list[bytes]:
    """Decide, build and pack the commits of a backlog."""
    policy, fleet, packed = build_policy(settings, {}), Fleet(), []
    size, previous = settings.response_consumer.batch_messages, ""
    for number, start in enumerate(range(0, len(backlog), size)):
        raws = backlog[start : start + size]
        draft = Draft(fleet, time.time())
        decisions = [decide_response(draft, policy, decode_response(raw), raw) for raw in raws]
        batch = Batch(KEYS, Bounds(1_000_000, 10_000, 16), decisions, draft.seen_ids())
        commit_id = f"commit-{number}"
        trim = Peek(KEYS.response_queue, raws, "", len(backlog), "").trim
        keys, arguments = batch.call(TOKEN, commit_id, previous, trim)
        call: Any = ("EVALSHA", COMMIT.digest, len(keys), *keys, *arguments)
        packed.append(hiredis.pack_command(call))
        draft.apply()
        previous = commit_id
    return packed


async def measure_limit(server: EmbeddedServer, client: Client, backlog: list[bytes]) -> float:
    """Send all commits at once; return the responses per second."""
    await client.script_load(COMMIT.text)
    await client.set(KEYS.epoch, TOKEN)
    calls = pack_commits(backlog, default_settings(server))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    replies = hiredis.Reader()
    started_at = time.perf_counter()
    writer.writelines(calls)
    for _ in calls:
        while (reply := replies.gets()) is False:
            replies.feed(await reader.read(1 << 16))
        assert reply[:2] == [1, []], reply
    seconds = time.perf_counter() - started_at
    writer.close()
    assert await client.llen(KEYS.response_queue) == 0
    return len(backlog) / seconds


async def measure_engine(server: EmbeddedServer, client: Client, backlog: list[bytes]) -> float:
    """Let an engine apply the backlog; return the responses per second, from its first commit to its last."""

    async def has_started() -> bool:
        return int(await client.llen(KEYS.response_queue)) < len(backlog)

    async with running_engine(server):
        await poll(has_started, 0.001)
        started_at, left = time.perf_counter(), await client.llen(KEYS.response_queue)
        await wait_empty(client, KEYS.response_queue, interval_s=0.02)
        seconds = time.perf_counter() - started_at
    assert await client.xlen(KEYS.dead_letters) == 0
    return float(left / seconds)


async def main(responses: int, agents: int, runs: int, *, as_json: bool) -> None:
    backlog, rates = build_backlog(responses, agents), []
    with EmbeddedServer(append_only=False) as server:
        client = connect(default_settings(server).redis, "bench", timeout_s=60)
        for _ in range(runs):
            rate = []
            for measure in (measure_engine, measure_limit):
                await client.flushall()
                await push(client, KEYS.response_queue, backlog)
                rate.append(await measure(server, client, backlog))
            rates.append(rate)
            if not as_json:
                print(f"engine {rate[0]:>9,.0f}/s   limit {rate[1]:>9,.0f}/s   ratio {rate[0] / rate[1]:.2f}")
        await client.aclose()
    engine, limit = (statistics.median(column) for column in zip(*rates, strict=True))
    summary = {"engine_per_second": round(engine), "limit_per_second": round(limit), "ratio": round(engine / limit, 3)}
    text = f"median: engine {engine:,.0f}/s, limit {limit:,.0f}/s, ratio {engine / limit:.2f}"
    print(json.dumps(summary) if as_json else text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=200_000)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    run(main(options.responses, options.agents, options.runs, as_json=options.json))
