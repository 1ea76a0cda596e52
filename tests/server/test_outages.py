"""Redis comes and goes: the engine says so, waits, and is consuming again within 5 s of its being there."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.subscription import Subscription
from tests.support.engine import Client, Running, eventually, launched, plain_client, running_engine
from tests.support.server import test_server_binary

SOON_S = 5.0
IMPATIENT: dict[str, object] = {"redis__socket_timeout": 0.3, "lease__ttl": 1.0, "lease__renew_interval": 0.2}


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that a test may treat badly; what it has accepted is on disk."""
    with EmbeddedServer(test_server_binary(), append_fsync="always") as server:
        yield server


@asynccontextmanager
async def visitor(server: EmbeddedServer) -> AsyncIterator[Client]:
    """A client that knows nothing of the outage, being new."""
    async with plain_client(server) as client:
        yield client


async def check_serving(server: EmbeddedServer, running: Running, state: str) -> None:
    """Check that a response is consumed, a request answered, and a publication heard, soon."""
    keys = running.keys
    async with visitor(server) as client:
        running.client = client
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": state}})
        await running.ask({"type": "forget", "id": f"f-{state}", "payload": {"agent_id": "nobody"}})
        await eventually(partial(_is, running, "a", state), SOON_S)
        assert (await running.replied(f"f-{state}", SOON_S))["error"]["code"] == "unknown_agent"

        async def heard() -> bool:
            await client.publish(keys.state_changes, json.dumps({"agent_id": "p", "new_state": state}))
            return await running.state("p") == state

        await eventually(heard, SOON_S)
        await eventually(lambda: running.outage is None, SOON_S)
        assert running.engine.checks()["consuming"].ok


async def _is(running: Running, agent_id: str, state: str) -> bool:
    return await running.state(agent_id) == state


async def test_a_server_that_is_not_there_at_the_start_is_waited_for(own: EmbeddedServer, prefix: str) -> None:
    """The engine says so, keeps trying, and serves when it appears."""
    own.kill()
    async with launched(own, prefix) as running:
        await eventually(lambda: running.outage == "refused")
        assert (running.engine.role(), running.engine.live()) == ("standby", True)
        assert running.metric("aism_redis_up") == 0
        own.start()
        await check_serving(own, running, "back")


@pytest.mark.parametrize("how", ["killed", "restarted"])
async def test_a_server_that_is_restarted_is_served_again(own: EmbeddedServer, prefix: str, how: str) -> None:
    """Twice, and nothing that it had accepted is lost or applied twice."""
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


async def test_a_backlog_survives_a_server_that_is_killed_under_load(own: EmbeddedServer, prefix: str) -> None:
    """Every response is applied exactly once, also those that were in flight, though both queues were being drained."""
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
            await eventually(running.is_drained, 20)
            changes = [fact["new_state"] for fact in await running.audit("state_changed")]
            assert changes == [f"s{n}" for n in range(count)]
            assert len(await running.audit("request_refused")) == 500
        await check_serving(own, running, "after")


async def test_a_server_that_has_forgotten_everything_is_served_as_it_is(prefix: str) -> None:
    """What is in memory is void: the fleet is what the server says."""
    with EmbeddedServer(test_server_binary(), append_only=False) as own:
        async with running_engine(own, prefix) as running:
            await check_serving(own, running, "before")
            own.restart()
            async with visitor(own) as client:
                running.client = client
                await running.say({"type": "heartbeat", "agent_id": "b"})
                await eventually(lambda: running.record("b"), SOON_S)
                await eventually(partial(_knows, running, {"b"}), SOON_S)
            await check_serving(own, running, "after")
            async with visitor(own) as client:
                await client.flushall()
            await check_serving(own, running, "again")


def _knows(running: Running, agent_ids: set[str]) -> bool:
    return running.engine.writer.fleet.agents.keys() == agent_ids


async def test_a_server_that_stands_still_is_served_when_it_goes_on(own: EmbeddedServer, prefix: str) -> None:
    """Longer than a reply is waited for, and longer than the lease lasts: it is taken anew."""
    async with running_engine(own, prefix, **IMPATIENT) as running:
        own.pause()
        await eventually(lambda: running.outage == "timeout")
        await eventually(lambda: running.engine.role() == "standby")
        own.resume()
        await check_serving(own, running, "after")


async def test_nobody_is_lost_by_an_outage(own: EmbeddedServer, prefix: str) -> None:
    """Heartbeats that could not be written, or read, prove nothing: everybody has the full grace again."""
    liveness: dict[str, object] = {"liveness__silent_after": 0.3, "liveness__lost_after": 1.2}
    async with running_engine(own, prefix, **IMPATIENT, **liveness) as running:
        await running.call("ZADD", running.keys.heartbeats, (await running.call("TIME"))[0], "a")
        await eventually(partial(_watched, running))
        loop = asyncio.get_running_loop()
        own.pause()
        until = loop.time() + 1.5
        await eventually(lambda: loop.time() > until)
        own.resume()
        async with visitor(own) as client:
            running.client = client
            for _ in range(20):
                seconds, microseconds = await running.call("TIME")
                await running.call("ZADD", running.keys.heartbeats, f"{seconds}.{microseconds:06}", "a")
                until = loop.time() + 0.05
                await eventually(lambda: loop.time() > until)  # noqa: B023 - awaited at once
            assert await running.audit("agent_lost") == []


async def test_a_stall_of_our_own_gives_everybody_the_full_grace_again(own: EmbeddedServer, prefix: str) -> None:
    """However long an agent was silent before: in a machine that stands still it could not have beaten either."""
    lost_after = 1.2
    patient: dict[str, object] = {"lease__ttl": 30.0, "liveness__silent_after": 0.3, "liveness__lost_after": lost_after}
    async with running_engine(own, prefix, **patient) as running:
        await running.call("ZADD", running.keys.heartbeats, 1_800_000_000, "a")
        await eventually(lambda: running.metric("aism_agents_silent") == 1)
        time.sleep(2.5)  # noqa: ASYNC251  the loop stands still, as under SIGSTOP
        resumed_at = running.engine.store.now
        await eventually(lambda: running.audit("agent_lost"))
        assert running.engine.store.now - resumed_at >= lost_after


async def _watched(running: Running) -> bool:
    return (await running.record("a")).get("liveness") == "fresh"


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
async def test_connections_that_are_killed_are_made_again(server: EmbeddedServer, prefix: str, kind: str) -> None:
    """All at once, of either kind, over and over; a gap in what is heard is not noticed by anyone."""
    async with running_engine(server, prefix) as running:
        for number in range(5):
            lines = await running.client.client_list(_type=kind)
            for line in filter(_is_ours, lines):
                await running.call("CLIENT", "KILL", "ID", line["id"])
            await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": f"s{number}"}})
            await eventually(partial(_is, running, "a", f"s{number}"), SOON_S)
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
async def test_a_server_that_refuses_writes_is_waited_for(
    own: EmbeddedServer, prefix: str, outage: str, begin: tuple[str, ...], end: tuple[str, ...]
) -> None:
    """By the name of its state, which is no failure of ours; nothing is half written.

    Nobody can say anything meanwhile, but an agent falls silent: that is to be written down.
    """
    async with running_engine(own, prefix, liveness__silent_after=0.3) as running:
        await running.call("ZADD", running.keys.heartbeats, time.time(), "b")
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "before"}})
        await eventually(partial(_is, running, "a", "before"))
        await running.call(*begin)
        await eventually(lambda: running.outage == outage)
        assert not running.engine.checks()["redis"].ok
        assert running.engine.live()
        await running.call(*end)
        await check_serving(own, running, "after")


async def test_a_subscription_without_channels_waits_for_some(server: EmbeddedServer, prefix: str) -> None:
    """Both readers may be busy when the connection is made anew: then there is nothing to hear, and no error."""
    client = connect(RedisSettings(url=server.url), "test")
    subscription = Subscription(client, [prefix])
    try:
        await subscription.leave([prefix])
        assert await subscription.read(10, timeout_s=0.01) == []
        await subscription.join([prefix])
        async with visitor(server) as other:
            assert await subscription.read(1, timeout_s=5.0) == [(None, b"")]
            await other.publish(prefix, "heard")
            assert await subscription.read(1, timeout_s=5.0) == [(prefix.encode(), b"heard")]
            await subscription.leave([prefix])
            assert await subscription.read(10, timeout_s=0.01) == []
    finally:
        await subscription.close()
        await client.aclose()


async def test_an_engine_that_may_not_listen_works_all_the_same(own: EmbeddedServer, prefix: str) -> None:
    """What is published is a hint: without it the queues are polled, and that is no outage."""
    async with visitor(own) as operator:
        await operator.execute_command("ACL", "SETUSER", "default", "-subscribe")
        with capture_logs() as logs:
            async with launched(own, prefix) as running:
                await eventually(lambda: _told(logs, "subscribe_denied"))
                await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "deaf"}})
                await eventually(partial(_is, running, "a", "deaf"))
                assert running.outage is None
        assert len(_told(logs, "subscribe_denied")) == 1
        assert _told(logs, "redis_unavailable") == []


def _told(logs: list[EventDict], event: str) -> list[EventDict]:
    return [entry for entry in logs if entry["event"] == event]


async def test_an_engine_that_stops_while_redis_is_away_stops_all_the_same(own: EmbeddedServer, prefix: str) -> None:
    """At once, by its own means: the lease expires."""
    loop = asyncio.get_running_loop()
    began: Callable[[], float] = loop.time
    async with running_engine(own, prefix):
        own.kill()
        at = began()
    assert began() - at < SOON_S


async def test_channels_that_are_joined_while_it_connects_are_heard_with_the_others(
    server: EmbeddedServer, prefix: str
) -> None:
    """Readers join and leave when they like, also while the reader of the subscription makes its connection."""
    for number in range(5):
        client = connect(RedisSettings(url=server.url), "test")
        first, second, third = channels = [f"{prefix}:{number}:{name}" for name in ("first", "second", "third")]
        subscription = Subscription(client, [first])
        await asyncio.gather(
            subscription.read(1, timeout_s=5.0),
            subscription.join([second]),
            subscription.join([third]),
            subscription.leave([third]),
        )
        heard: list[bytes | None] = []
        async with visitor(server) as other:
            await eventually(partial(_subscribed, other, channels, [1, 1, 0]))
            for channel in channels:
                await other.publish(channel, "hello")

            async def both() -> bool:
                heard.extend(channel for channel, _ in await subscription.read(10, timeout_s=0.01))  # noqa: B023
                return {first.encode(), second.encode()} <= set(heard)  # noqa: B023

            await eventually(both)
        await subscription.close()
        await client.aclose()


async def test_two_who_connect_at_the_same_time_make_one_connection(server: EmbeddedServer, prefix: str) -> None:
    """A subscription whose connection broke is mended by its reader, and by a reader that leaves or joins, at once."""
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
