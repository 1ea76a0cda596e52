"""What the benchmarks share: an engine with the default settings, messages in pages, polling, and CPU time."""

import asyncio
import logging
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import structlog
import uvloop

from aism_engine.cli.event_loop import tune_garbage_collector
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.settings import Settings
from aism_engine.store.client import connect
from aism_engine.store.client_type import Client
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys

PAGE = 1000
"""Messages or keys in one call."""


class Bench(NamedTuple):
    """A running engine, and a client of its server."""

    engine: Engine
    client: Client
    keys: Keys


def default_settings(server: EmbeddedServer, overrides: Mapping[str, object] | None = None) -> Settings:
    """Return the default settings for a server, without HTTP; `overrides` is by dotted name."""
    flags = {"redis.url": server.url, "http.enabled": False, **(overrides or {})}
    return load_settings(environ={}, overrides=flags).settings


@asynccontextmanager
async def running_engine(server: EmbeddedServer, overrides: Mapping[str, object] | None = None) -> AsyncIterator[Bench]:
    settings, stopping = default_settings(server, overrides), asyncio.Event()
    engine, client = Engine(settings), connect(settings.redis, "bench", timeout_s=60)
    running = asyncio.create_task(engine.run(stopping))
    try:
        yield Bench(engine, client, Keys(settings.redis.prefix))
    finally:
        stopping.set()
        await running
        await client.aclose()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a benchmark in the same event loop, and with the same garbage collection, as `aism-engine run`."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    tune_garbage_collector()
    uvloop.run(main)


async def poll(condition: Callable[[], Awaitable[Any]], interval_s: float = 0.005) -> None:
    """Wait until a condition about the server is true. Polls, because the engine must not know that it is observed."""
    while not await condition():  # noqa: ASYNC110  the condition is in Redis
        await asyncio.sleep(interval_s)


async def push(client: Client, queue: str, messages: Iterable[bytes | dict[str, Any]]) -> None:
    """Push messages in pages, the first one first. Dictionaries are encoded."""
    bodies = (each if isinstance(each, bytes) else msgspec.json.encode(each) for each in messages)
    while page := list(islice(bodies, PAGE)):
        await client.lpush(queue, *page)


async def wait_empty(client: Client, *queues: str, interval_s: float = 0.005) -> None:
    async def are_empty() -> bool:
        return not any([await client.llen(queue) for queue in queues])

    await poll(are_empty, interval_s)


async def register(bench: Bench, agents: int, types: int = 1) -> None:
    """Register agents `worker-000000`, … of the types `type-0`, … in turn, and wait until the engine has applied it."""
    client, keys = bench.client, bench.keys
    registrations = (
        {"type": "register", "agent_id": f"worker-{number:06d}", "payload": {"type": f"type-{number % types}"}}
        for number in range(agents)
    )
    await push(client, keys.response_queue, registrations)
    await wait_empty(client, keys.response_queue)
    assert await client.scard(keys.index) == agents


async def cpu_share(seconds: float) -> float:
    """Return the share of a core that this process uses in this time."""
    started_at, before_s = time.monotonic(), _cpu_s()
    await asyncio.sleep(seconds)
    return (_cpu_s() - before_s) / (time.monotonic() - started_at)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
