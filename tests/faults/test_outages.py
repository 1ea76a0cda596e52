"""Every kind of outage has a name: in the logs, in the metrics, at `/readyz`. In each the engine keeps its process,
does no work, and goes on by itself when it is over.
"""

import asyncio
import http.client
import json
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

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Client, Running, eventually, plain_client, running_engine
from tests.support.faults import Load
from tests.support.server import test_server_binary


class Scene:
    """A server that fares badly, and an operator who has been connected to it since before."""

    def __init__(self, server: EmbeddedServer, folder: Path, operator: Client, prefix: str) -> None:
        self.server = server
        self.folder = folder
        self.operator = operator
        self.queue = f"{prefix}:engine:response_queue"

    async def together(self, message: bytes, *command: str | int) -> None:
        """Push a response and change something on the server in the same instant: no engine comes between."""
        pipeline = self.operator.pipeline(transaction=True)
        pipeline.lpush(self.queue, message)
        pipeline.execute_command(*command)
        await pipeline.execute()

    async def freeze(self, message: bytes) -> None:
        """Push a response, and let nobody do anything from then on."""
        await self.together(message, "CLIENT", "PAUSE", 60_000)

    async def set(self, name: str, value: str | int) -> None:
        await self.operator.config_set(name, value)

    async def push(self, message: bytes) -> None:
        await self.operator.lpush(self.queue, message)


Outage: TypeAlias = Callable[[Scene, bytes], Any]
"""A context in which the server cannot serve; a response has been pushed that waits until it is over."""


@asynccontextmanager
async def refused(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The server is not there."""
    await scene.freeze(message)
    scene.server.kill()
    yield
    scene.server.start()


@asynccontextmanager
async def timeout(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The server stands still, and its connections are open."""
    scene.server.pause()
    yield
    scene.server.resume()
    await scene.push(message)


@asynccontextmanager
async def loading(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The server reads its data, slowly."""
    await scene.operator.eval("for i = 1, 32000 do redis.call('SET', 'k' .. i, i) end", 0)
    await scene.freeze(message)
    scene.server.kill()
    starting = asyncio.create_task(asyncio.to_thread(scene.server.start))
    yield
    await starting


@asynccontextmanager
async def readonly(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The server has been made a replica, of a primary that nobody finds."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        await scene.together(message, "REPLICAOF", "127.0.0.1", nobody.getsockname()[1])
        yield
        await scene.operator.replicaof("NO", "ONE")


@asynccontextmanager
async def masterdown(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The same, and it answers nothing that may be stale."""
    await scene.set("replica-serve-stale-data", "no")
    async with readonly(scene, message):
        yield


@asynccontextmanager
async def misconf(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The server cannot save its data, and stops taking any."""
    await scene.set("stop-writes-on-bgsave-error", "no")
    await scene.set("save", "3600 1")
    (scene.folder / "dump.rdb").mkdir()
    await _bgsave(scene, "err")
    await scene.together(message, "CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
    yield
    (scene.folder / "dump.rdb").rmdir()
    await _bgsave(scene, "ok")


@asynccontextmanager
async def oom(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The server has no memory left."""
    await scene.together(message, "CONFIG", "SET", "maxmemory", 1)
    yield
    await scene.set("maxmemory", 0)


@asynccontextmanager
async def busy(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """Somebody's script goes on for ever."""
    await scene.set("lua-time-limit", 50)
    async with plain_client(scene.server) as somebody:
        endless = asyncio.create_task(somebody.eval("while true do end", 0))
        yield
        await scene.operator.script_kill()
        with suppress(RedisError):
            await endless
    await scene.push(message)


@asynccontextmanager
async def noauth(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """The server wants a password that we do not have."""
    await scene.set("requirepass", "secret")
    await scene.together(message, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    yield
    await scene.set("requirepass", "")


@asynccontextmanager
async def noperm(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """We may not call what we have to call."""
    await scene.together(message, "ACL", "SETUSER", "default", "-evalsha")
    yield
    await scene.operator.execute_command("ACL", "SETUSER", "default", "+evalsha")


@asynccontextmanager
async def noperm_within(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """We may call the script, but it may not do what it does."""
    await scene.together(message, "ACL", "SETUSER", "default", "-set")
    yield
    await scene.operator.execute_command("ACL", "SETUSER", "default", "+set")


@asynccontextmanager
async def noperm_for_keys(scene: Scene, message: bytes) -> AsyncIterator[None]:
    """Our keys are not for us."""
    await scene.together(message, "ACL", "SETUSER", "default", "resetkeys", "~others:*")
    yield
    await scene.operator.execute_command("ACL", "SETUSER", "default", "allkeys")


async def _bgsave(scene: Scene, status: str) -> None:
    await scene.operator.bgsave()

    async def ended() -> bool:
        info = await scene.operator.info("persistence")
        return (info["rdb_bgsave_in_progress"], info["rdb_last_bgsave_status"]) == (0, status)

    await eventually(ended)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def own(folder: Path) -> Iterator[EmbeddedServer]:
    """A server that may be treated badly, and loses nothing. It takes its time to load, and says so while it does."""
    slow = ("--key-load-delay", "100")
    with EmbeddedServer(test_server_binary(), data_dir=folder, append_fsync="always", extra=slow) as server:
        yield server


OUTAGES: Final = (
    *(refused, timeout, loading, readonly, masterdown, misconf, oom, busy),
    *(noauth, noperm, noperm_within, noperm_for_keys),
)


@pytest.mark.parametrize(("outage", "name"), [(each, each.__name__.partition("_")[0]) for each in OUTAGES])
async def test_an_outage_has_a_name_and_passes(
    own: EmbeddedServer, folder: Path, prefix: str, outage: Outage, name: str
) -> None:
    """While it lasts nothing is applied; afterwards everything is, once."""
    load = Load()
    with capture_logs() as logs:
        async with (
            Redis.from_url(own.url) as operator,
            running_engine(own, prefix, redis__socket_timeout=0.5, http__enabled=True, http__port=0) as engine,
        ):
            await load.say(engine, 3)
            await load.wait_applied_once(engine)
            await eventually(partial(_shows, engine, 200, "available", 1))
            (message,) = load.encoded(1)
            async with outage(Scene(own, folder, operator, prefix), message):
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
    told = [each["outage"] for each in events[:-1]]
    assert sorted(told) == sorted({*told, name})  # each name once, and this one is among them
    assert sorted(told) == events[-1]["outages"]


async def _shows(engine: Running, status: int, detail: str, up: float) -> bool:
    """Tell whether `/readyz` and `/metrics` say this of Redis."""
    found, text = await _get(engine, "/readyz?verbose")
    check = json.loads(text)["checks"]["redis"]
    is_up = f"aism_redis_up {float(up)}" in (await _get(engine, "/metrics"))[1]
    return is_up and (found, check) == (status, {"ok": status == 200, "detail": detail})


async def _get(engine: Running, path: str) -> tuple[int, str]:
    """Ask the HTTP face of an engine that runs in this very loop."""

    def ask() -> tuple[int, str]:
        with closing(http.client.HTTPConnection(*engine.engine.http.address, timeout=300)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return await asyncio.to_thread(ask)


async def _step_again(engine: Running) -> None:
    """Wait until the consumer has tried once more."""
    consumer = engine.engine._response_consumer
    before = consumer.step_started_at
    await eventually(lambda: consumer.step_started_at > before)
