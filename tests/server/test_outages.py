"""Outages of Redis: the engine reports the outage, retries, and consumes again when Redis is back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from aism_engine.clock import ROUNDING_S, from_iso
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.subscription import Subscription
from tests.support.engine import Client, Running, eventually, launched, plain_client, running_engine
from tests.support.server import OwnServer

SHORT_TIMEOUTS: dict[str, object] = {"redis__socket_timeout": 0.3, "lease__ttl": 1.0, "lease__renew_interval": 0.2}


@asynccontextmanager
async def visitor(server: EmbeddedServer) -> AsyncIterator[Client]:
    """A new client, which is not affected by an earlier outage."""
    async with plain_client(server) as client:
        yield client


async def check_serving(server: EmbeddedServer, running: Running, state: str) -> None:
    """Check that the engine consumes a response, replies to a request, and receives a publication."""
    keys = running.keys
    async with visitor(server) as client:
        running.client = client
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": state}})
        await running.ask({"type": "forget", "id": f"f-{state}", "payload": {"agent_id": "nobody"}})
        await eventually(partial(running.state_is, "a", state))
        assert (await running.replied(f"f-{state}"))["error"]["code"] == "unknown_agent"

        async def is_received() -> bool:
            await client.publish(keys.state_changes, json.dumps({"agent_id": "p", "new_state": state}))
            return await running.state("p") == state

        await eventually(is_received)
        await eventually(lambda: running.outage is None)
        assert running.engine.checks()["consuming"].ok


async def test_engine_waits_for_a_server_that_is_unavailable_at_the_start(own: OwnServer, prefix: str) -> None:
    """It reports the outage, and works as soon as the server starts."""
    own.kill()
    async with launched(own, prefix) as running:
        await eventually(lambda: running.outage == "refused")
        assert (running.engine.role(), running.engine.live()) == ("standby", True)
        assert running.metric("aism_redis_up") == 0
        own.start()
        await check_serving(own, running, "back")


@pytest.mark.parametrize("how", ["killed", "restarted"])
async def test_engine_works_again_after_a_restart_of_the_server(own: OwnServer, prefix: str, how: str) -> None:
    """No accepted response is lost or applied twice."""
    async with running_engine(own, prefix) as running:
        await check_serving(own, running, "before")
        for state in ("first", "second"):
            if how == "killed":
                own.kill()
                await eventually(lambda: running.outage)
                own.start()
            else:
                own.restart()
            await check_serving(own, running, state)
        async with visitor(own) as client:
            running.client = client
            changes = [fact["new_state"] for fact in await running.audit("state_changed", agent_id="a")]
            assert changes == ["before", "first", "second"]


async def test_backlog_is_applied_once_although_the_server_is_killed(own: OwnServer, prefix: str) -> None:
    """Also the responses in flight, while both queues are drained."""
    async with running_engine(
        own, prefix, response_consumer__batch_messages=16, request_consumer__batch_messages=4
    ) as running:
        count = 2000
        move, forget = {"type": "state_transition", "agent_id": "a"}, {"type": "forget", "payload": {"agent_id": "x"}}
        await running.say(*({**move, "id": f"m{n}", "payload": {"target": f"s{n}"}} for n in range(count)))
        await running.ask(*({**forget, "id": f"f{n}", "reply": False} for n in range(500)))
        await eventually(lambda: running.audit("state_changed"))
        own.kill()
        await eventually(lambda: running.outage)
        own.start()
        async with visitor(own) as client:
            running.client = client
            await eventually(running.is_drained)
            changes = [fact["new_state"] for fact in await running.audit("state_changed")]
            assert changes == [f"s{n}" for n in range(count)]
            assert len(await running.audit("request_refused")) == 500
        await check_serving(own, running, "after")


async def test_fleet_is_reloaded_from_a_server_that_lost_its_data(prefix: str) -> None:
    """The engine drops the fleet in memory."""
    with OwnServer(append_only=False) as own:
        async with running_engine(own, prefix) as running:
            await check_serving(own, running, "before")
            own.restart()
            async with visitor(own) as client:
                running.client = client
                await running.say({"type": "heartbeat", "agent_id": "b"})
                await eventually(lambda: running.record("b"))
                await eventually(partial(_knows, running, {"b"}))
            await check_serving(own, running, "after")
            async with visitor(own) as client:
                await client.flushall()
            await check_serving(own, running, "again")


def _knows(running: Running, agent_ids: set[str]) -> bool:
    return running.engine.writer.fleet.agents.keys() == agent_ids


async def test_engine_works_again_after_the_server_was_suspended(own: OwnServer, prefix: str) -> None:
    """It was suspended for longer than the socket timeout and the lease: the engine takes the lease again."""
    async with running_engine(own, prefix, **SHORT_TIMEOUTS) as running:
        own.pause()
        await eventually(lambda: running.outage == "timeout")
        await eventually(lambda: running.engine.role() == "standby")
        own.resume()
        await check_serving(own, running, "after")


async def test_outage_restarts_the_observation_of_every_agent(own: OwnServer, prefix: str) -> None:
    """Silence during an outage does not count: an agent is lost `lost_after` seconds after its end."""
    lost_after = 2.0
    settings = SHORT_TIMEOUTS | {"lease__ttl": 3.0, "liveness__silent_after": 0.3, "liveness__lost_after": lost_after}
    async with running_engine(own, prefix, **settings) as running:
        await running.call("ZADD", running.keys.heartbeats, await running.now(), "a")
        await eventually(partial(_is_fresh, running))
        paused_at = running.engine.store.now
        own.pause()
        await eventually(lambda: running.engine.role() == "standby")  # the lease lasts longer than lost_after
        resumed_at = running.engine.store.now
        own.resume()
        async with visitor(own) as client:
            running.client = client
            (fact,) = await eventually(lambda: running.audit("agent_lost"))
            lost_at = from_iso(fact["at"])
            # A slow machine may pause the server so late that the agent is lost before.
            assert lost_at < paused_at or lost_at + ROUNDING_S - resumed_at >= lost_after


async def _is_fresh(running: Running) -> bool:
    return (await running.record("a")).get("liveness") == "fresh"


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
async def test_engine_reconnects_killed_connections(server: EmbeddedServer, prefix: str, kind: str) -> None:
    """All connections of a kind at once, several times. A gap in the subscription delays nothing."""
    async with running_engine(server, prefix) as running:
        for number in range(5):
            lines = await running.client.client_list(_type=kind)
            for line in filter(_is_ours, lines):
                await running.call("CLIENT", "KILL", "ID", line["id"])
            await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": f"s{number}"}})
            await eventually(partial(running.state_is, "a", f"s{number}"))
        await check_serving(server, running, "after")


SET_REPLICAS = ("CONFIG", "SET", "min-replicas-to-write")


def _is_ours(line: dict[str, str]) -> bool:
    return line["name"].startswith("aism-")


@pytest.mark.parametrize(
    ("outage", "begin", "end"),
    [
        ("oom", ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        ("readonly", ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        ("noreplicas", (*SET_REPLICAS, "1"), (*SET_REPLICAS, "0")),
    ],
)
async def test_engine_waits_for_a_server_that_refuses_writes(
    own: OwnServer, prefix: str, outage: str, begin: tuple[str, ...], end: tuple[str, ...]
) -> None:
    """The outage has the name of the state of the server, and no component fails.

    No response arrives meanwhile, but an agent becomes silent, so the engine has something to write.
    """
    async with running_engine(own, prefix, liveness__silent_after=0.3) as running:
        await running.call("ZADD", running.keys.heartbeats, time.time(), "b")
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "before"}})
        await eventually(partial(running.state_is, "a", "before"))
        await running.call(*begin)
        await eventually(lambda: running.outage == outage)
        assert not running.engine.checks()["redis"].ok
        assert running.engine.live()
        await running.call(*end)
        await check_serving(own, running, "after")


async def test_subscription_without_channels_waits_for_a_channel(server: EmbeddedServer, prefix: str) -> None:
    """Both consumers may be busy, and have left their channels, during a reconnection: that is no error."""
    client = connect(RedisSettings(url=server.url), "test")
    subscription = Subscription(client, [prefix])
    try:
        await subscription.leave([prefix])
        assert await subscription.read(10, timeout_s=0.01) == []
        await subscription.join([prefix])
        async with visitor(server) as other:
            assert await subscription.read(1, timeout_s=300.0) == [(None, b"")]
            await other.publish(prefix, "heard")
            assert await subscription.read(1, timeout_s=300.0) == [(prefix.encode(), b"heard")]
            await subscription.leave([prefix])
            assert await subscription.read(10, timeout_s=0.01) == []
    finally:
        await subscription.close()
        await client.aclose()


async def test_engine_works_without_the_permission_to_subscribe(own: OwnServer, prefix: str) -> None:
    """A push wakes it in another way, and it does not count this as an outage."""
    async with visitor(own) as operator:
        await operator.execute_command("ACL", "SETUSER", "default", "-subscribe")
        with capture_logs() as logs:
            async with launched(own, prefix) as running:
                await eventually(lambda: _logged(logs, "subscribe_denied"))
                await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "polled"}})
                await eventually(partial(running.state_is, "a", "polled"))
                assert running.refusal is None
        assert len(_logged(logs, "subscribe_denied")) == 1
        assert {entry["outage"] for entry in _logged(logs, "redis_unavailable")} <= {"timeout"}  # of a busy machine


def _logged(logs: list[EventDict], event: str) -> list[EventDict]:
    return [entry for entry in logs if entry["event"] == event]


async def test_engine_stops_while_redis_is_unavailable(own: OwnServer, prefix: str) -> None:
    """The stop does not wait for Redis. The lease expires by itself."""
    with capture_logs() as logs:
        async with running_engine(own, prefix):
            own.kill()
    assert len(_logged(logs, "lease_not_released")) == 1
    assert len(_logged(logs, "engine_stopped")) == 1


async def test_channels_joined_while_connecting_are_subscribed(server: EmbeddedServer, prefix: str) -> None:
    """Services may join and leave channels while the reader connects."""
    for number in range(5):
        client = connect(RedisSettings(url=server.url), "test")
        first, second, third = channels = [f"{prefix}:{number}:{name}" for name in ("first", "second", "third")]
        subscription = Subscription(client, [first])
        await asyncio.gather(
            subscription.read(1, timeout_s=300.0),
            subscription.join([second]),
            subscription.join([third]),
            subscription.leave([third]),
        )
        heard: list[bytes | None] = []
        async with visitor(server) as other:
            await eventually(partial(_subscribed, other, channels, [1, 1, 0]))
            for channel in channels:
                await other.publish(channel, "hello")

            async def are_received() -> bool:
                heard.extend(channel for channel, _ in await subscription.read(10, timeout_s=0.01))  # noqa: B023
                return {first.encode(), second.encode()} <= set(heard)  # noqa: B023

            await eventually(are_received)
        await subscription.close()
        await client.aclose()


async def test_concurrent_connects_make_one_connection(server: EmbeddedServer, prefix: str) -> None:
    """After a broken connection, the reader and a service that joins or leaves a channel connect at the same time."""
    client = connect(RedisSettings(url=server.url), prefix)
    connection = client.connection_pool.make_connection()
    await asyncio.gather(*(connection.connect() for _ in range(3)))
    async with visitor(server) as other:
        names = [each["name"] for each in await other.client_list()]
    assert names.count(f"aism-{prefix}") == 1
    await connection.disconnect()
    await client.aclose()


async def _subscribed(client: Client, channels: list[str], expected: list[int]) -> bool:
    return [count for _, count in await client.pubsub_numsub(*channels)] == expected
