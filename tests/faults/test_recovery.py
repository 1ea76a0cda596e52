"""When the server serves again after a fault, the engine consumes again by itself (G5).

The settings are the defaults. How long recovery takes depends on the machine: each test prints it (pytest `-rP`), and
`make chaos` compares it with the promised 5 s.

Failovers have their own tests in `test_sentinel.py`.
"""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeAlias

import pytest

from tests.support.engine import Client, Running, eventually, running_engine
from tests.support.faults import Load
from tests.support.proxy import FaultProxy
from tests.support.server import OwnServer

DEFAULTS: Final[dict[str, object]] = {
    "response_consumer__poll_interval": 0.05,
    "request_consumer__poll_interval": 0.05,
    "timekeeper__poll_interval": 0.5,
    "liveness__scan_interval": 1.0,
    "registrar__metadata_interval": 60.0,
    "sampler__poll_interval": 5.0,
    "redis__retry_backoff_max": 1.0,
}


class Setup:
    """An engine behind a proxy, and a server of its own."""

    def __init__(self, server: OwnServer, proxy: FaultProxy, engine: Running, operator: Client) -> None:
        self.server = server
        self.proxy = proxy
        self.engine = engine
        self.operator = operator

    async def wait_noticed(self) -> None:
        """Wait until the engine has given up a request, or a connection."""
        await eventually(lambda: self.engine.outage)


Fault: TypeAlias = Callable[[Setup], Awaitable[None]]
"""A fault of the server or the network. When it returns, the server serves again."""


async def a_restart(setup: Setup) -> None:
    """The server is killed and restarted at once."""
    setup.server.kill()
    setup.server.start()


async def a_long_absence(setup: Setup) -> None:
    """The server is down until the engine has noticed it."""
    setup.server.kill()
    await setup.wait_noticed()
    setup.server.start()


async def all_clients_killed(setup: Setup) -> None:
    """The server closes every connection."""
    for kind in ("normal", "pubsub"):
        await setup.operator.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


async def all_connections_reset(setup: Setup) -> None:
    """The network resets every connection."""
    setup.proxy.reset()


async def clients_paused(setup: Setup) -> None:
    """The server suspends all clients for longer than their timeouts."""
    timeout_s = setup.engine.engine.settings.redis.socket_timeout
    await setup.operator.execute_command("CLIENT", "PAUSE", int(1000 * (timeout_s + 1)), "ALL")
    await setup.operator.ping()


async def a_stopped_server(setup: Setup) -> None:
    """The server process is suspended."""
    setup.server.pause()
    await setup.wait_noticed()
    setup.server.resume()


async def a_black_hole(setup: Setup) -> None:
    """All packets are dropped in both directions, SYNs as well."""
    setup.proxy.black_hole()
    await setup.wait_noticed()
    setup.proxy.heal()


async def a_black_hole_that_forgets(setup: Setup) -> None:
    """As `a_black_hole`, and connections opened before it stay dead without a reset."""
    setup.proxy.black_hole()
    await setup.wait_noticed()
    setup.proxy.forget()
    setup.proxy.heal()


async def a_router_that_forgets(setup: Setup) -> None:
    """All open connections go dead without a reset; new ones work."""
    setup.proxy.forget()


@pytest.fixture
def server(own: OwnServer) -> OwnServer:
    """The server behind the fixtures `proxy` and `redis_client`."""
    return own


@pytest.fixture
async def setup(own: OwnServer, proxy: FaultProxy, redis_client: Client, prefix: str) -> AsyncIterator[Setup]:
    async with running_engine(own, prefix, redis__url=proxy.url, **DEFAULTS) as engine:
        yield Setup(own, proxy, engine, redis_client)


@pytest.mark.parametrize(
    "fault",
    [
        *(a_restart, a_long_absence, all_clients_killed, all_connections_reset, clients_paused, a_stopped_server),
        *(a_black_hole, a_black_hole_that_forgets, a_router_that_forgets),
    ],
)
async def test_engine_consumes_again_after_a_fault(setup: Setup, fault: Fault) -> None:
    """Responses and requests are applied, each once."""
    load, engine = Load(), setup.engine
    await load.say(engine, 3)
    await load.wait_applied_once(engine)
    await fault(setup)
    await engine.client.connection_pool.disconnect()
    began = time.monotonic()
    await load.say(engine, 3)
    await engine.ask({"type": "send", "id": "r", "payload": {"agent_id": "a0", "command": {"type": "work"}}})
    await eventually(engine.is_drained)
    print(f"{fault.__name__}: consuming again after {time.monotonic() - began:.3f} s")  # noqa: T201
    await load.wait_applied_once(engine)
    await eventually(lambda: engine.outage is None)


@pytest.mark.parametrize("fault", [all_clients_killed, all_connections_reset, a_router_that_forgets])
async def test_engine_receives_publications_again_after_a_fault(setup: Setup, fault: Fault) -> None:
    """It subscribes again, also where nothing has reported that the connection is dead."""
    engine = setup.engine

    async def is_received() -> bool:
        event = {"agent_id": "a", "old_state": "x", "new_state": "y"}
        await engine.call("PUBLISH", engine.keys.state_changes, json.dumps(event))
        return engine.metric("aism_publications_total", outcome="declaration") > 0

    await fault(setup)
    await engine.client.connection_pool.disconnect()
    began = time.monotonic()
    await eventually(is_received)
    print(f"{fault.__name__}: receiving again after {time.monotonic() - began:.3f} s")  # noqa: T201
