"""Shutdown: SIGTERM and SIGINT finish the commit in flight, lose nothing, release the lease, and exit with code 0.

Repeated signals change nothing, and neither does the state of Redis. `supervisor.shutdown_timeout`, 10 s by default, is
long here, so that no test passes or fails by the speed of the machine: an engine that waits for it hangs the test.
"""

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import pytest

from tests.support.daemon import Daemon, daemon
from tests.support.engine import Reader, launched
from tests.support.faults import IS_COMMIT, Load
from tests.support.proxy import FaultProxy
from tests.support.proxy_rules import Rule
from tests.support.server import OwnServer

MANY: Final = 1000
SETTINGS: Final[dict[str, object]] = {"supervisor__shutdown_timeout": 3600, "response_consumer__batch_messages": 100}
SHORT_LEASE: Final[dict[str, object]] = {"lease__ttl": 1.5, "lease__renew_interval": 0.3}
"""For tests in which the lease cannot be released: the next engine waits until it expires."""


@pytest.fixture
def server(own: OwnServer) -> OwnServer:
    """The server behind the fixtures `reader` and `proxy`."""
    return own


@asynccontextmanager
async def _working(
    proxy: FaultProxy, reader: Reader, load: Load, **settings: object
) -> AsyncIterator[tuple[Daemon, Rule]]:
    """Run the daemon on a long queue. Its third commit is in flight: the proxy holds the request."""
    await load.say(reader, MANY)
    number = itertools.count(1)
    rule = proxy.hold_request(lambda request: IS_COMMIT(request) and next(number) == 3)
    async with daemon(proxy.url, reader.keys.prefix, **SETTINGS, **settings) as engine:
        await rule.wait_matched()
        yield engine, rule


async def _ends_well(engine: Daemon) -> None:
    assert await engine.wait_exit() == 0
    assert engine.count("engine_stopped") == 1
    assert engine.count("component_failed") == engine.count("stop_timed_out") == 0


async def _finish(own: OwnServer, prefix: str, load: Load) -> None:
    """Let another engine apply the rest, and check the whole."""
    async with launched(own, prefix) as engine:
        await load.wait_applied_once(engine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_under_load_finishes_the_commit_in_flight_and_loses_nothing(
    own: OwnServer, proxy: FaultProxy, reader: Reader, prefix: str, number: signal.Signals
) -> None:
    """Responses are either applied or still queued; the lease is released last, and the next engine does the rest."""
    load = Load(agents=50)
    async with _working(proxy, reader, load, lease__ttl=3600.0) as (engine, rule):
        engine.signal(number)
        await engine.wait_event("component_stopped", component="request_consumer")
        rule.release()
        await _ends_well(engine)
        left = await reader.call("LLEN", reader.keys.response_queue)
        assert 0 < left < MANY
        assert sum(map(len, (await load.applied(reader)).values())) + left == MANY
        assert await reader.call("EXISTS", reader.keys.lease) == 0
        assert engine.count("lease_released") == 1
        stopped = [each["component"] for each in engine.events if each["event"] == "component_stopped"]
        assert stopped.index("response_consumer") < stopped.index("elector")
    await _finish(own, prefix, load)


async def test_repeated_signals_change_nothing(own: OwnServer, proxy: FaultProxy, reader: Reader, prefix: str) -> None:
    """At any moment of the shutdown, the very last included: there is one shutdown, and its exit code is 0."""
    load = Load(agents=50)
    async with _working(proxy, reader, load) as (engine, rule):

        async def repeat_signals() -> None:
            while engine.exit_code is None:
                for number in (signal.SIGTERM, signal.SIGINT):
                    engine.signal(number)
                    await asyncio.sleep(0.005)

        engine.signal(signal.SIGTERM)
        repeating = asyncio.create_task(repeat_signals())
        await engine.wait_event("signal_ignored")
        rule.release()
        await _ends_well(engine)
        await repeating
        assert engine.count("signal_received") == 1
        assert engine.count("lease_released") == 1
    await _finish(own, prefix, load)


Away: TypeAlias = Callable[[OwnServer, FaultProxy], None]
"""Makes Redis unreachable."""


def _kill(server: OwnServer, _proxy: FaultProxy) -> None:
    server.kill()


def _pause(server: OwnServer, _proxy: FaultProxy) -> None:
    server.pause()


def _black_hole(_server: OwnServer, proxy: FaultProxy) -> None:
    proxy.black_hole()


@pytest.mark.parametrize("away", [_kill, _pause, _black_hole])
async def test_idle_engine_stops_while_redis_is_away(
    own: OwnServer, proxy: FaultProxy, prefix: str, away: Away
) -> None:
    """Whether Redis refuses connections or is silent. `/readyz` has reported the outage."""
    async with daemon(proxy.url, prefix, **SETTINGS, **SHORT_LEASE) as engine:
        await engine.wait_event("lease_taken")
        away(own, proxy)
        name = (await engine.wait_event("redis_unavailable"))["outage"]
        status, text = await engine.get("/readyz?verbose")
        assert (status, json.loads(text)["checks"]["redis"]["ok"]) == (503, False)
        assert await engine.metric(f'aism_redis_outages_total{{outage="{name}"}}') == 1
        assert (await engine.get("/livez"))[0] == 200
        engine.signal(signal.SIGTERM)
        await _ends_well(engine)


@pytest.mark.parametrize("away", [_kill, _pause, _black_hole])
async def test_busy_engine_stops_while_redis_is_away(
    own: OwnServer, proxy: FaultProxy, reader: Reader, prefix: str, away: Away
) -> None:
    """The outcome of the commit in flight stays unknown to it; the next engine finds out."""
    load = Load(agents=50)
    async with _working(proxy, reader, load, **SHORT_LEASE) as (engine, rule):
        away(own, proxy)
        engine.signal(signal.SIGTERM)
        await _ends_well(engine)
    if away is _kill:
        own.start()
    elif away is _pause:
        own.resume()
    proxy.heal()
    rule.release()  # the request arrives long after its sender has ended
    await reader.client.connection_pool.disconnect()
    await _finish(own, prefix, load)
