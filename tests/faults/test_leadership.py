"""Leadership: what happens to the lease when its holder is killed, stops, or is suspended."""

import json
import signal
from typing import Final

from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.services.elector import Elector
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.scripts import ACQUIRE_LEASE, LeaseCode
from tests.support.clock import FakeClock
from tests.support.daemon import Daemon, daemon
from tests.support.engine import Reader, eventually, plain_client, running_engine
from tests.support.faults import IS_LEASE, Load
from tests.support.proxy import FaultProxy

LEASE: Final[dict[str, object]] = {"lease__ttl": 2.0, "lease__renew_interval": 0.5}
LONG_LEASE: Final[dict[str, object]] = {"lease__ttl": 600.0, "lease__renew_interval": 1.0}


async def test_standby_takes_over_when_the_lease_of_a_killed_leader_expires(
    server: EmbeddedServer, reader: Reader, prefix: str
) -> None:
    """After kill -9 nothing is lost and nothing is applied twice. `bench/takeover.py` measures how long it takes."""
    load = Load(agents=20)
    async with daemon(server.url, prefix, **LEASE) as leader:
        await leader.wait_event("lease_taken")
        async with daemon(server.url, prefix, **LEASE) as standby:
            await standby.wait_event("component_started", component="sampler")
            await load.say(reader, 3_000)
            await eventually(lambda: reader.call("XLEN", reader.keys.audit))
            leader.signal(signal.SIGKILL)
            await load.say(reader, 20)
            await standby.wait_event("fleet_loaded")
            await load.wait_applied_once(reader)


async def test_standby_takes_over_from_a_leader_that_stops_before_the_lease_expires(
    server: EmbeddedServer, reader: Reader, prefix: str
) -> None:
    """A clean stop releases the lease, which would last for another ten minutes."""
    load = Load(agents=20)
    async with daemon(server.url, prefix, **LONG_LEASE) as leader:
        await leader.wait_event("lease_taken")
        async with daemon(server.url, prefix, **LONG_LEASE) as standby:
            await standby.wait_event("component_started", component="sampler")
            await load.say(reader, 20)
            await load.wait_applied_once(reader)
            leader.signal(signal.SIGTERM)
            await leader.wait_event("lease_released")
            await load.say(reader, 20)
            await standby.wait_event("lease_taken")
            assert await leader.wait_exit() == 0
            await load.wait_applied_once(reader)


async def test_suspended_leader_writes_nothing_after_its_lease_has_expired(
    server: EmbeddedServer, reader: Reader, prefix: str
) -> None:
    """Wherever it was under load when SIGSTOP came, the fencing token rejects its commits after SIGCONT."""
    load = Load(agents=20)
    async with daemon(server.url, prefix, **LEASE) as one, daemon(server.url, prefix, **LEASE) as two:
        leader, standby = await _leader_of(one, two)
        await load.say(reader, 3_000)
        await eventually(lambda: reader.call("XLEN", reader.keys.audit))
        leader.signal(signal.SIGSTOP)
        await load.say(reader, 20)
        await standby.wait_event("fleet_loaded")
        leader.signal(signal.SIGCONT)
        await load.wait_applied_once(reader)
        epochs = await _epochs(reader)
        assert epochs == sorted(epochs)
        assert len(set(epochs)) > 1


async def test_standby_is_ready_and_reports_its_role(server: EmbeddedServer, prefix: str) -> None:
    """`/readyz` is 200 for leader and standby, and names the role; so do the metrics."""
    async with daemon(server.url, prefix, **LONG_LEASE) as one, daemon(server.url, prefix, **LONG_LEASE) as two:
        leader, standby = await _leader_of(one, two)
        await _stands_by(standby)
        status, text = await leader.get("/readyz?verbose")
        assert (status, json.loads(text)["role"]) == (200, "leader")
        assert await leader.metric("aism_leader") == 1
        assert [await each.metric("aism_lease_epoch") for each in (leader, standby)] == [1, 1]


async def test_former_leader_exports_no_metrics_of_the_fleet(server: EmbeddedServer, prefix: str) -> None:
    """The fleet's gauges are the leader's: two exporters would be added up, and an alert would never clear."""
    haste = {"liveness__scan_interval": 0.05, "liveness__silent_after": 0.2, "liveness__brake_min_agents": 2}
    async with running_engine(server, prefix, **haste, lease__ttl=600.0) as engine:
        for agent_id in "abc":
            await engine.call("ZADD", engine.keys.heartbeats, 1, agent_id)
        await eventually(lambda: engine.metric("aism_fleet_mode", mode="full"))
        await eventually(lambda: engine.metric("aism_agents", liveness="silent") == 3)
        for key in (engine.keys.epoch, engine.keys.lease):
            await engine.call("SET", key, "2:another")
        await eventually(lambda: engine.metric("aism_fleet_mode", mode="normal"))
        await eventually(lambda: engine.metric("aism_agents", liveness="silent") == 0)
        assert (engine.engine.role(), engine.metric("aism_agents_silent")) == ("standby", 0)
        assert engine.metric("aism_fleet_mode", mode="full") == 0


async def test_lease_is_trusted_from_before_the_request_was_sent(server: EmbeddedServer, prefix: str) -> None:
    """The server counts the lease from a later instant, so the holder never trusts a lease that has expired there."""
    clock = FakeClock()
    flags = {"redis.url": server.url, "redis.prefix": prefix, "lease.ttl": 5.0}
    engine = Engine(load_settings(environ={}, overrides=flags).settings, clock=clock, environ={})
    elector = next(part for part in engine.components if isinstance(part, Elector))
    take = elector._lease_store.acquire_lease

    async def take_slowly(holder: str, ttl_s: float, token: str | None) -> tuple[LeaseCode, str]:
        clock.advance(2)
        answer = await take(holder, ttl_s, token)
        clock.advance(2)
        return answer

    elector._lease_store.acquire_lease = take_slowly  # type: ignore[method-assign]
    try:
        for _ in ("taken", "renewed"):
            asked_at = clock.now
            await elector.run_once()
            clock.now = asked_at + 4.999
            assert engine.role() == "leader"
        clock.now = asked_at + 5
        assert engine.role() == "standby"
    finally:
        for client in engine._clients:
            await client.aclose()


async def test_engine_recognizes_a_lease_whose_grant_was_lost(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """The reply that grants the lease is lost. The engine finds its own token in it, and leads without waiting."""
    async with plain_client(server) as client:
        await client.script_load(ACQUIRE_LEASE.text)  # otherwise the first reply would be NOSCRIPT
    rule = proxy.drop_reply(IS_LEASE, cut=True)
    async with running_engine(server, prefix, redis__url=proxy.url, lease__ttl=600.0) as engine:
        ((code, token, _),) = rule.replies
        assert (code, engine.engine.leadership.token) == (LeaseCode.TAKEN, token.decode())
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)


async def _leader_of(one: Daemon, two: Daemon) -> tuple[Daemon, Daemon]:
    """Wait until both run and one of them leads; return the leader first."""
    for each in (one, two):
        await each.wait_event("component_started", component="sampler")
    await eventually(lambda: one.count("lease_taken") + two.count("lease_taken"))
    return (one, two) if one.count("lease_taken") else (two, one)


async def _stands_by(engine: Daemon) -> None:
    """Wait until the engine is ready as a standby, and check what it reports."""

    async def ready() -> bool:
        return (await engine.get("/readyz"))[0] == 200

    await eventually(ready)
    status, text = await engine.get("/readyz?verbose")
    answer = json.loads(text)
    assert (status, answer["role"], answer["checks"]["role"]["detail"]) == (200, "standby", "standby")
    assert answer["checks"]["redis"] == {"ok": True, "detail": "available"}
    assert await engine.metric("aism_leader") == 0
    assert await engine.metric("aism_redis_up") == 1


async def _epochs(reader: Reader) -> list[int]:
    """Return the epochs of the commits in the audit, oldest first."""
    entries = await reader.call("XRANGE", reader.keys.audit, "-", "+")
    return [int(fields[b"epoch"]) for _, fields in entries]
