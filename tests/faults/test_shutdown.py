"""SIGTERM under full load loses nothing, finishes the commit in hand, gives the lease back, and ends within 10 s with
code 0. So does SIGINT, and to ask again changes nothing, whatever has become of Redis meanwhile.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Reader, eventually, launched, plain_client
from tests.support.faults import IS_COMMIT, Daemon, Load, daemon
from tests.support.proxy import FaultProxy
from tests.support.server import test_server_binary

WITHIN_S: Final = 10.0
MANY: Final = 6000
SHORT: Final[dict[str, object]] = {"lease__ttl": 1.5, "lease__renew_interval": 0.3}
"""A lease that is soon over, where it cannot be given back."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(test_server_binary(), data_dir=tmp_path, append_fsync="always") as server:
        yield server


@pytest.fixture
async def reader(own: EmbeddedServer, prefix: str) -> AsyncIterator[Reader]:
    async with plain_client(own) as client:
        yield Reader(client, prefix)


async def _finish(own: EmbeddedServer, prefix: str, load: Load) -> None:
    """Let another engine do what is left, and check the whole."""
    async with launched(own, prefix) as engine:
        await load.wait_applied_once(engine, 30)


@asynccontextmanager
async def _working(url: str, reader: Reader, load: Load, **settings: object) -> AsyncIterator[Daemon]:
    """Start the daemon on a long queue; it is in the middle of that."""
    await load.say(reader, MANY)
    async with daemon(url, reader.keys.prefix, **settings) as engine:
        await engine.wait_event("lease_taken", within_s=20)
        await eventually(lambda: reader.call("XLEN", reader.keys.audit))
        assert not await reader.is_drained()
        yield engine


async def _end(engine: Daemon, record_property: Callable[[str, object], None]) -> None:
    began = time.monotonic()
    assert await engine.wait_exit(WITHIN_S + 5) == 0
    took_s = time.monotonic() - began
    record_property("stopped_s", round(took_s, 3))
    print(f"stopped after {took_s:.3f} s")  # noqa: T201
    assert took_s < WITHIN_S
    assert engine.count("component_failed") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_full_load_loses_nothing(
    own: EmbeddedServer,
    reader: Reader,
    prefix: str,
    number: signal.Signals,
    record_property: Callable[[str, object], None],
) -> None:
    """What is applied and what is left are together what was said; the next engine leads at once and does the rest."""
    load = Load(agents=50)
    async with _working(own.url, reader, load) as engine:
        engine.signal(number)
        await _end(engine, record_property)
        left = await reader.call("LLEN", reader.keys.response_queue)
        applied = await load.applied(reader)
        assert left > 0
        assert sum(map(len, applied.values())) + left == MANY
        assert await reader.call("EXISTS", reader.keys.lease) == 0
        assert engine.count("lease_released") == 1
    await _finish(own, prefix, load)


async def test_asking_again_and_again_changes_nothing(
    own: EmbeddedServer, reader: Reader, prefix: str, record_property: Callable[[str, object], None]
) -> None:
    """At any moment of the stop, the very last included: there is one stop, in order, and its code is 0."""
    load = Load(agents=50)

    async def pester() -> None:
        while engine.process.returncode is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                engine.signal(number)
                await asyncio.sleep(0.005)

    async with _working(own.url, reader, load) as engine:
        engine.signal(signal.SIGTERM)
        pestering = asyncio.create_task(pester())
        await _end(engine, record_property)
        pestering.cancel()
        assert engine.count("signal_received") == 1
        assert engine.count("lease_released") == 1
    await _finish(own, prefix, load)


async def test_the_commit_in_hand_is_finished(
    own: EmbeddedServer, reader: Reader, prefix: str, record_property: Callable[[str, object], None]
) -> None:
    """Its answer is awaited before anything else is given up; the lease goes back after it."""
    load = Load()
    async with FaultProxy(own.port) as proxy, daemon(proxy.url, prefix, **SHORT) as engine:
        await load.say(reader, 3)
        await load.wait_applied_once(reader)
        cue = proxy.hold_request(IS_COMMIT)
        await load.say(reader, 20)
        await cue.wait_struck()
        engine.signal(signal.SIGTERM)
        await engine.wait_event("component_stopped", component="request_consumer")
        cue.release()
        await _end(engine, record_property)
        await load.wait_applied_once(reader)
        names = [each["event"] for each in engine.events]
        assert names.index("lease_released") > names.index("component_stopped")
        stopped = [each["component"] for each in engine.events if each["event"] == "component_stopped"]
        assert stopped.index("response_consumer") < stopped.index("elector")


Away: TypeAlias = Callable[[EmbeddedServer, FaultProxy], None]


def _kill(server: EmbeddedServer, _proxy: FaultProxy) -> None:
    server.kill()


def _pause(server: EmbeddedServer, _proxy: FaultProxy) -> None:
    server.pause()


def _black_hole(_server: EmbeddedServer, proxy: FaultProxy) -> None:
    proxy.black_hole()


@pytest.mark.parametrize("away", [_kill, _pause, _black_hole])
async def test_redis_being_away_does_not_keep_an_idle_one(
    own: EmbeddedServer, prefix: str, away: Away, record_property: Callable[[str, object], None]
) -> None:
    """Refused or silent: nothing is in hand. `/readyz` has said what is the matter."""
    async with FaultProxy(own.port) as proxy, daemon(proxy.url, prefix, **SHORT) as engine:
        await engine.wait_event("lease_taken")
        away(own, proxy)
        name = (await engine.wait_event("redis_unavailable"))["outage"]
        status, text = await engine.get("/readyz?verbose")
        assert (status, json.loads(text)["checks"]["redis"]["ok"]) == (503, False)
        assert await engine.metric(f'aism_redis_outages_total{{outage="{name}"}}') == 1
        assert (await engine.get("/livez"))[0] == 200
        engine.signal(signal.SIGTERM)
        await _end(engine, record_property)
        assert engine.count("engine_stopped") == 1


@pytest.mark.parametrize("away", [_kill, _pause, _black_hole])
async def test_redis_being_away_does_not_keep_a_busy_one(
    own: EmbeddedServer, reader: Reader, prefix: str, away: Away, record_property: Callable[[str, object], None]
) -> None:
    """With a commit in hand of which nobody will say what became of it: the next engine finds out."""
    load = Load(agents=50)
    async with FaultProxy(own.port) as proxy:
        async with _working(proxy.url, reader, load, **SHORT) as engine:
            away(own, proxy)
            engine.signal(signal.SIGTERM)
            await _end(engine, record_property)
            assert engine.count("engine_stopped") == 1
        if away is _kill:
            own.start()
        elif away is _pause:
            own.resume()
        proxy.heal()  # what was under way arrives, long after its sender is gone
        await reader.client.connection_pool.disconnect()
        await _finish(own, prefix, load)
