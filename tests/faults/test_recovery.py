"""When the server is there again, the engine consumes again within 5 s, with no hand on it: G5, measured.

The settings are those that are shipped. What was measured is printed (pytest `-rP`), and in the report of the tests as
the property `recovery_s` (pytest `--junit-xml=… -o junit_family=xunit1`; the default family has no properties, and
pytest makes that an error). A black hole lasts 3 s; `AISM_TEST_BLACK_HOLE_S=10` makes it 10.

A failover has its own test, in `test_sentinel.py`.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import pytest
from redis.asyncio import Redis

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Client, Running, eventually, running_engine
from tests.support.faults import Load
from tests.support.proxy import FaultProxy
from tests.support.server import test_server_binary

WITHIN_S: Final = 5.0
BLACK_HOLE_S: Final = float(os.environ.get("AISM_TEST_BLACK_HOLE_S", "3"))
SHIPPED: Final[dict[str, object]] = {
    "response_consumer__poll_interval": 0.05,
    "request_consumer__poll_interval": 0.05,
    "timekeeper__poll_interval": 0.5,
    "liveness__scan_interval": 1.0,
    "registrar__metadata_interval": 60.0,
    "sampler__poll_interval": 5.0,
    "redis__retry_backoff_max": 1.0,
}


class Scene:
    """An engine behind a proxy, and a server of its own."""

    def __init__(self, server: EmbeddedServer, proxy: FaultProxy, engine: Running, operator: Client) -> None:
        self.server = server
        self.proxy = proxy
        self.engine = engine
        self.operator = operator


Fault: TypeAlias = Callable[[Scene], Awaitable[None]]
"""Something happens to the server, or on the way to it; in the end the server is there again."""


async def a_restart(scene: Scene) -> None:
    """The server is killed, and started at once."""
    scene.server.kill()
    scene.server.start()


async def a_long_absence(scene: Scene) -> None:
    """The server is away for so long that the pauses between the engine's attempts have grown."""
    scene.server.kill()
    await asyncio.sleep(BLACK_HOLE_S)
    scene.server.start()


async def all_clients_killed(scene: Scene) -> None:
    """Every connection is closed by the server."""
    for kind in ("normal", "pubsub"):
        await scene.operator.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


async def all_connections_reset(scene: Scene) -> None:
    """Every connection is reset."""
    scene.proxy.reset()


async def clients_paused(scene: Scene) -> None:
    """The server lets everybody wait, for longer than anybody does."""
    await scene.operator.execute_command("CLIENT", "PAUSE", int(1000 * BLACK_HOLE_S), "ALL")
    await scene.operator.ping()


async def a_stopped_server(scene: Scene) -> None:
    """The server stands still."""
    scene.server.pause()
    await asyncio.sleep(BLACK_HOLE_S)
    scene.server.resume()


async def a_black_hole(scene: Scene) -> None:
    """Nothing passes, in either direction, and no new connection is answered."""
    scene.proxy.black_hole()
    await asyncio.sleep(BLACK_HOLE_S)
    scene.proxy.heal()


async def a_black_hole_that_forgets(scene: Scene) -> None:
    """The same, and no connection from before it ever works again, nor says so."""
    scene.proxy.black_hole()
    await asyncio.sleep(BLACK_HOLE_S)
    scene.proxy.forget()
    scene.proxy.heal()


async def a_router_that_forgets(scene: Scene) -> None:
    """Every connection is mute from one moment to the next; a new one works."""
    scene.proxy.forget()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(test_server_binary(), data_dir=tmp_path, append_fsync="always") as server:
        yield server


@pytest.fixture
async def scene(own: EmbeddedServer, prefix: str) -> AsyncIterator[Scene]:
    async with (
        FaultProxy(own.port) as proxy,
        running_engine(own, prefix, redis__url=proxy.url, **SHIPPED) as engine,
        Redis.from_url(own.url, socket_timeout=30) as operator,
    ):
        yield Scene(own, proxy, engine, operator)


@pytest.mark.parametrize(
    "fault",
    [
        *(a_restart, a_long_absence, all_clients_killed, all_connections_reset, clients_paused, a_stopped_server),
        *(a_black_hole, a_black_hole_that_forgets, a_router_that_forgets),
    ],
)
async def test_it_consumes_again_within_five_seconds(
    scene: Scene, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    """Responses and requests, each once."""
    load, engine = Load(), scene.engine
    await load.say(engine, 3)
    await load.wait_applied_once(engine)
    await fault(scene)
    await engine.client.connection_pool.disconnect()
    began = time.monotonic()
    await load.say(engine, 3)
    await engine.ask({"type": "send", "id": "r", "payload": {"agent_id": "a0", "command": {"type": "work"}}})
    await eventually(engine.is_drained, 2 * WITHIN_S)
    _note(fault, "consuming", began, record_property)
    await load.wait_applied_once(engine)
    await eventually(lambda: engine.outage is None)


@pytest.mark.parametrize("fault", [all_clients_killed, all_connections_reset, a_router_that_forgets])
async def test_it_hears_again_within_five_seconds(
    scene: Scene, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    """What is only published: also where nobody has said that the connection is dead."""
    engine, heard = scene.engine, "aism_publications_total"

    async def is_heard() -> bool:
        event = {"agent_id": "a", "old_state": "x", "new_state": "y"}
        await engine.call("PUBLISH", engine.keys.state_changes, json.dumps(event))
        return engine.metric(heard, outcome="declaration") > 0

    await fault(scene)
    await engine.client.connection_pool.disconnect()
    began = time.monotonic()
    await eventually(is_heard, 2 * WITHIN_S)
    _note(fault, "hearing", began, record_property)


def _note(fault: Fault, what: str, began: float, record_property: Callable[[str, object], None]) -> None:
    """Write down how long it took, and insist on its being less than was promised."""
    took_s = time.monotonic() - began
    record_property("recovery_s", round(took_s, 3))
    print(f"{fault.__name__}: {what} again after {took_s:.3f} s")  # noqa: T201
    assert took_s < WITHIN_S
