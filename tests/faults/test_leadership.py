"""One engine leads, the others stand by, ready: what becomes of the lease when its holder dies, stops, or sleeps."""

import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest

from aism_engine.clock import FakeClock
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.services.elector import Elector
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.scripts import LEASE as SCRIPT
from aism_engine.store.scripts import LeaseCode
from tests.support.engine import Reader, eventually, plain_client, running_engine
from tests.support.faults import IS_LEASE, Daemon, Load, daemon
from tests.support.proxy import FaultProxy

TTL_S: Final = 2.0
LEASE: Final[dict[str, object]] = {"lease__ttl": TTL_S, "lease__renew_interval": 0.5}
START_S: Final = 0.5
"""What it takes from the lease to the first response: an allowance for a busy machine."""


@pytest.fixture
async def reader(server: EmbeddedServer, prefix: str) -> AsyncIterator[Reader]:
    async with plain_client(server) as client:
        yield Reader(client, prefix)


@pytest.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.port) as proxy:
        yield proxy


async def test_a_standby_takes_over_from_a_leader_that_is_killed(
    server: EmbeddedServer, reader: Reader, prefix: str, record_property: Callable[[str, object], None]
) -> None:
    """Within `lease.ttl` of a kill -9; nothing is lost and nothing done twice."""
    load = Load(agents=20)
    async with daemon(server.url, prefix, **LEASE) as leader:
        await leader.wait_event("lease_taken")
        async with daemon(server.url, prefix, **LEASE) as standby:
            await standby.wait_event("component_started", component="sampler")
            await load.say(reader, 10_000)
            await eventually(lambda: reader.call("XLEN", reader.keys.audit))
            leader.signal(signal.SIGKILL)
            began = time.monotonic()
            await load.say(reader, 20)
            await standby.wait_event("fleet_loaded")
            record_property("takeover_s", round(time.monotonic() - began, 3))
            print(f"takeover after kill -9: {time.monotonic() - began:.3f} s")  # noqa: T201
            assert time.monotonic() - began < TTL_S + START_S
            await load.wait_applied_once(reader)


async def test_a_standby_takes_over_at_once_from_a_leader_that_stops(
    server: EmbeddedServer, reader: Reader, prefix: str, record_property: Callable[[str, object], None]
) -> None:
    """Within 1 s of a clean stop, with the settings that are shipped: the lease is given back, not left to expire."""
    load = Load(agents=20)
    async with daemon(server.url, prefix) as leader:
        await leader.wait_event("lease_taken")
        async with daemon(server.url, prefix) as standby:
            await standby.wait_event("component_started", component="sampler")
            await load.say(reader, 20)
            await load.wait_applied_once(reader)
            leader.signal(signal.SIGTERM)
            await leader.wait_event("lease_released")
            began = time.monotonic()
            await load.say(reader, 20)
            await eventually(reader.is_drained)
            record_property("takeover_s", round(time.monotonic() - began, 3))
            print(f"takeover after a clean stop: {time.monotonic() - began:.3f} s")  # noqa: T201
            assert time.monotonic() - began < 1
            assert await leader.wait_exit() == 0
            await load.wait_applied_once(reader)


async def test_a_leader_that_slept_through_its_lease_under_load_writes_nothing_more(
    server: EmbeddedServer, reader: Reader, prefix: str
) -> None:
    """Wherever it was when it was stopped."""
    load = Load(agents=20)
    async with daemon(server.url, prefix, **LEASE) as sleeper, daemon(server.url, prefix, **LEASE) as other:
        leader, standby = await _leader_of(sleeper, other)
        await load.say(reader, 10_000)
        await eventually(lambda: reader.call("XLEN", reader.keys.audit))
        leader.signal(signal.SIGSTOP)
        await load.say(reader, 20)
        await standby.wait_event("fleet_loaded")
        leader.signal(signal.SIGCONT)
        await load.wait_applied_once(reader)
        await _stands_by(leader)
        epochs = await _epochs(reader)
        assert epochs == sorted(epochs)
        assert set(epochs) == {1, 2}


async def test_a_standby_is_ready_and_says_what_it_is(server: EmbeddedServer, prefix: str) -> None:
    """`/readyz` is 200 for both, and tells them apart; so do the metrics."""
    async with daemon(server.url, prefix, **LEASE) as one, daemon(server.url, prefix, **LEASE) as two:
        leader, standby = await _leader_of(one, two)
        await _stands_by(standby)
        status, text = await leader.get("/readyz?verbose")
        assert (status, json.loads(text)["role"]) == (200, "leader")
        assert await leader.metric("aism_leader") == 1
        assert [await each.metric("aism_lease_epoch") for each in (leader, standby)] == [1, 1]


async def test_who_leads_no_more_tells_nothing_of_the_fleet(server: EmbeddedServer, prefix: str) -> None:
    """What it has measured is another's to tell now: two would be added up, and an alert would last for ever."""
    haste = {"liveness__scan_interval": 0.05, "liveness__silent_after": 0.2, "liveness__brake_min_agents": 2}
    async with running_engine(server, prefix, **haste, lease__ttl=60.0) as engine:
        for agent_id in "abc":
            await engine.call("ZADD", engine.keys.heartbeats, 1, agent_id)
        await eventually(lambda: engine.metric("aism_fleet_mode", mode="full"))
        await eventually(lambda: engine.metric("aism_agents", liveness="fresh") == 3)
        for key in (engine.keys.epoch, engine.keys.lease):
            await engine.call("SET", key, "2:another")
        await eventually(lambda: engine.metric("aism_fleet_mode", mode="normal"))
        await eventually(lambda: engine.metric("aism_agents", liveness="fresh") == 0)
        assert (engine.engine.role(), engine.metric("aism_agents_silent")) == ("standby", 0)
        assert engine.metric("aism_fleet_mode", mode="full") == 0


async def test_a_lease_is_trusted_from_before_it_was_asked_for(server: EmbeddedServer, prefix: str) -> None:
    """However long the answer took: the server counts from some instant in between, so it never forgets a lease that
    its holder still trusts.
    """
    clock = FakeClock()
    flags = {"redis.url": server.url, "redis.prefix": prefix, "lease.ttl": 5.0}
    engine = Engine(load_settings(environ={}, overrides=flags).settings, clock=clock, environ={})
    elector = next(part for part in engine.components if isinstance(part, Elector))
    take = elector._lease_store.take_lease

    async def take_slowly(holder: str, ttl_s: float, token: str | None) -> tuple[LeaseCode, str]:
        clock.advance(2)
        answer = await take(holder, ttl_s, token)
        clock.advance(2)
        return answer

    elector._lease_store.take_lease = take_slowly  # type: ignore[method-assign]
    try:
        for _ in ("taken", "renewed"):
            asked_at = clock.now
            await elector.run_once()
            clock.now = asked_at + 4.999
            assert engine.role() == "leader"
        clock.now = asked_at + 5
        assert engine.role() == "standby"
    finally:
        await engine._clients["lease"].aclose()


async def test_a_lease_that_was_taken_unheard_is_ones_own(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """The reply that gives it is lost: the engine finds its own name on it, and leads without waiting for its end."""
    async with plain_client(server) as client:
        await client.script_load(SCRIPT.text)  # or the first answer would be that it is not there
    cue = proxy.drop_reply(IS_LEASE, cut=True)
    async with running_engine(server, prefix, redis__url=proxy.url, lease__ttl=60.0) as engine:
        ((code, token, _),) = cue.replies
        assert (code, engine.engine.leadership.token) == (LeaseCode.TAKEN, token.decode())
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)


async def _leader_of(one: Daemon, two: Daemon) -> tuple[Daemon, Daemon]:
    """Wait until one of them leads and both run; gives the leader first."""
    for each in (one, two):
        await each.wait_event("component_started", component="sampler")
    await eventually(lambda: one.count("lease_taken") + two.count("lease_taken"))
    return (one, two) if one.count("lease_taken") else (two, one)


async def _stands_by(engine: Daemon) -> None:
    """Wait until an engine that does not lead says so, everywhere, and that it is ready."""

    async def ready() -> bool:
        return (await engine.get("/readyz"))[0] == 200

    await eventually(ready)
    status, text = await engine.get("/readyz?verbose")
    answer = json.loads(text)
    assert (status, answer["role"], answer["checks"]["role"]["detail"]) == (200, "standby", "standby")
    assert answer["checks"]["redis"] == {"ok": True, "detail": "serving"}
    assert await engine.metric("aism_leader") == 0
    assert await engine.metric("aism_redis_up") == 1


async def _epochs(reader: Reader) -> list[int]:
    """Read the epoch of each commit in the audit, the oldest first."""
    entries = await reader.call("XRANGE", reader.keys.audit, "-", "+")
    return [int(fields[b"epoch"]) for _, fields in entries]
