"""Every kind of outage has a name in the log, in the metrics and in `/readyz`.

During an outage the process of the engine stays alive and applies nothing; afterwards it continues by itself.
"""

import asyncio
import http.client
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from aism_engine.errors import ServerUnavailableError
from tests.support.engine import Client, Running, eventually, plain_client, running_engine
from tests.support.faults import Load
from tests.support.server import OwnServer


class Setup:
    """A server with an outage, and an operator's client that was connected before the outage."""

    def __init__(self, server: OwnServer, folder: Path, operator: Client, prefix: str) -> None:
        self.server = server
        self.folder = folder
        self.operator = operator
        self.queue = f"{prefix}:engine:response_queue"

    async def push_and_call(self, message: bytes, *command: str | int) -> None:
        """Push a response and run a command in one transaction, so that no engine reads the response before."""
        pipeline = self.operator.pipeline(transaction=True)
        pipeline.lpush(self.queue, message)
        pipeline.execute_command(*command)
        await pipeline.execute()

    async def freeze(self, message: bytes) -> None:
        """Push a response, and suspend all clients."""
        await self.push_and_call(message, "CLIENT", "PAUSE", 600_000)

    async def set(self, name: str, value: str | int) -> None:
        await self.operator.config_set(name, value)

    async def push(self, message: bytes) -> None:
        await self.operator.lpush(self.queue, message)


Outage: TypeAlias = Callable[[Setup, bytes], Any]
"""A context in which the server cannot serve, and a response waits until the end of it."""


@asynccontextmanager
async def refused(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The server does not run."""
    await setup.freeze(message)
    setup.server.kill()
    yield
    setup.server.start()


@asynccontextmanager
async def timeout(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The server is suspended, and its connections are open."""
    setup.server.pause()
    yield
    setup.server.resume()
    await setup.push(message)


@asynccontextmanager
async def loading(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """A server with the same data loads them, which would take minutes. Then it is replaced by one that is fast."""
    await setup.operator.eval("for i = 1, 200000 do redis.call('INCR', 'k') end", 0)
    await setup.freeze(message)
    setup.server.kill()
    slowly = ("--key-load-delay", "300")  # in microseconds per command
    loading = OwnServer(port=setup.server.port, data_dir=setup.folder, extra=slowly, start_timeout_s=300)
    starting = asyncio.create_task(asyncio.to_thread(loading.start))
    yield
    os.kill(loading.pid, signal.SIGKILL)
    with suppress(ServerUnavailableError):
        await starting
    loading.stop()
    await asyncio.to_thread(setup.server.start)


@asynccontextmanager
async def readonly(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The server is a replica of a primary that does not exist."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        await setup.push_and_call(message, "REPLICAOF", "127.0.0.1", unused.getsockname()[1])
        yield
        await setup.operator.replicaof("NO", "ONE")


@asynccontextmanager
async def masterdown(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The same, and the server refuses to answer with stale data."""
    await setup.set("replica-serve-stale-data", "no")
    async with readonly(setup, message):
        yield


@asynccontextmanager
async def misconf(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The server cannot save its data, and therefore refuses writes."""
    await setup.set("stop-writes-on-bgsave-error", "no")
    await setup.set("save", "3600 1")
    (setup.folder / "dump.rdb").mkdir()
    await _bgsave(setup, "err")
    await setup.push_and_call(message, "CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
    yield
    (setup.folder / "dump.rdb").rmdir()
    await _bgsave(setup, "ok")


@asynccontextmanager
async def oom(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The server has no memory left."""
    await setup.push_and_call(message, "CONFIG", "SET", "maxmemory", 1)
    yield
    await setup.set("maxmemory", 0)


@asynccontextmanager
async def busy(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The script of another client never ends."""
    await setup.set("lua-time-limit", 50)
    async with plain_client(setup.server) as other:
        endless = asyncio.create_task(other.eval("while true do end", 0))
        yield
        await setup.operator.script_kill()
        with suppress(RedisError):
            await endless
    await setup.push(message)


@asynccontextmanager
async def noauth(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The server requires a password that the engine does not have."""
    await setup.set("requirepass", "secret")
    await setup.push_and_call(message, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    yield
    await setup.set("requirepass", "")


@asynccontextmanager
async def noperm(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The user may not call scripts."""
    await setup.push_and_call(message, "ACL", "SETUSER", "default", "-evalsha")
    yield
    await setup.operator.execute_command("ACL", "SETUSER", "default", "+evalsha")


@asynccontextmanager
async def noperm_within(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The user may call the script, but not a command in it."""
    await setup.push_and_call(message, "ACL", "SETUSER", "default", "-set")
    yield
    await setup.operator.execute_command("ACL", "SETUSER", "default", "+set")


@asynccontextmanager
async def noperm_for_keys(setup: Setup, message: bytes) -> AsyncIterator[None]:
    """The user may not access the keys of the fleet."""
    await setup.push_and_call(message, "ACL", "SETUSER", "default", "resetkeys", "~others:*")
    yield
    await setup.operator.execute_command("ACL", "SETUSER", "default", "allkeys")


async def _bgsave(setup: Setup, status: str) -> None:
    await setup.operator.bgsave()

    async def ended() -> bool:
        info = await setup.operator.info("persistence")
        return (info["rdb_bgsave_in_progress"], info["rdb_last_bgsave_status"]) == (0, status)

    await eventually(ended)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def own(folder: Path) -> Iterator[OwnServer]:
    """A server for one test, which persists everything."""
    with OwnServer(data_dir=folder, start_timeout_s=300) as server:
        yield server


OUTAGES: Final = (
    *(refused, timeout, loading, readonly, masterdown, misconf, oom, busy),
    *(noauth, noperm, noperm_within, noperm_for_keys),
)


@pytest.mark.parametrize(("outage", "name"), [(each, each.__name__.partition("_")[0]) for each in OUTAGES])
async def test_an_outage_is_named_and_the_engine_continues_after_it(
    own: OwnServer, folder: Path, prefix: str, outage: Outage, name: str
) -> None:
    """During the outage nothing is applied; afterwards everything is, once."""
    load = Load()
    timeout_s = 1.0 if name == "timeout" else 5.0
    with capture_logs() as logs:
        async with (
            Redis.from_url(own.url, socket_timeout=300) as operator,
            running_engine(own, prefix, redis__socket_timeout=timeout_s, http__enabled=True, http__port=0) as engine,
        ):
            await load.say(engine, 3)
            await load.wait_applied_once(engine)
            await eventually(partial(_shows, engine, 200, "available", 1))
            (message,) = load.encoded(1)
            async with outage(Setup(own, folder, operator, prefix), message):
                await eventually(partial(_shows, engine, 503, name, 0))
                assert f'aism_redis_outages_total{{outage="{name}"}} 1.0' in (await _get(engine, "/metrics"))[1]
                assert (await _get(engine, "/livez"))[0] == 200
                await _step_again(engine)
                assert engine.metric("aism_audit_events_total", event="state_changed") == 3
            await engine.client.connection_pool.disconnect()
            await load.wait_applied_once(engine)
            await eventually(partial(_shows, engine, 200, "available", 1))
    events = [each for each in logs if each["event"] in {"redis_unavailable", "redis_available", "component_failed"}]
    assert [each["event"] for each in events] == [*["redis_unavailable"] * (len(events) - 1), "redis_available"]
    names = [each["outage"] for each in events[:-1]]
    assert sorted(names) == sorted({*names, name})  # each name once, and the expected one is among them
    assert sorted(names) == events[-1]["outages"]


async def _shows(engine: Running, status: int, detail: str, up: float) -> bool:
    """Tell whether `/readyz` and `/metrics` say this of Redis."""
    found, text = await _get(engine, "/readyz?verbose")
    check = json.loads(text)["checks"]["redis"]
    is_up = f"aism_redis_up {float(up)}" in (await _get(engine, "/metrics"))[1]
    return is_up and (found, check) == (status, {"ok": status == 200, "detail": detail})


async def _get(engine: Running, path: str) -> tuple[int, str]:
    """Send a GET request to an engine that runs in this event loop."""

    def ask() -> tuple[int, str]:
        with closing(http.client.HTTPConnection(*engine.engine.http.address, timeout=300)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return await asyncio.to_thread(ask)


async def _step_again(engine: Running) -> None:
    """Wait until the consumer has begun another step."""
    consumer = engine.engine._response_consumer
    before = consumer.step_started_at
    await eventually(lambda: consumer.step_started_at > before)
