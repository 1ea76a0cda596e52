"""Laws of an idle engine: a push wakes it, and it sends few commands meanwhile."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Literal

import msgspec
import pytest
from structlog.testing import capture_logs

from aism_engine.clock import SystemClock
from aism_engine.domain.text import message_digest
from aism_engine.errors import ServerUnavailableError
from aism_engine.services.queue_consumer import QueueConsumer
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.doorbell import Doorbell
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.queue_tail import QueueTail
from aism_engine.store.reads import FleetReader
from tests.support.engine import Running, eventually, launched, plain_client, running_engine
from tests.support.server import OwnServer

_NEVER: Final[dict[str, object]] = {
    f"{name}__poll_interval": 3600.0 for name in ("response_consumer", "request_consumer", "fanout")
}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_push_alone_wakes_the_engine(server: EmbeddedServer, prefix: str, protocol: Literal[2, 3]) -> None:
    """Responses, requests, and the targets of a request for many agents. The next poll would come too late."""
    async with running_engine(server, prefix, redis__protocol=protocol, **_NEVER) as engine:
        for number in range(3):
            await engine.say({"type": "register", "agent_id": f"a{number}", "payload": {"type": "x"}})
            await eventually(partial(engine.state, f"a{number}"))
            payload = {"select": "type=x", "command": {"type": "work"}}
            await engine.ask({"type": "send", "id": f"s{number}", "payload": payload})
            assert (await engine.replied(f"s{number}"))["ok"] is True
            await eventually(partial(_has_commands, engine, f"a{number}", 1))


async def _has_commands(engine: Running, agent_id: str, count: int) -> bool:
    return bool(await engine.call("LLEN", engine.keys.commands(agent_id)) == count)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_waiting_for_a_message_does_not_change_the_queue(
    server: EmbeddedServer, prefix: str, protocol: Literal[2, 3]
) -> None:
    """Also with one message only, after which the queue would be empty, and although the wait began before the push."""
    client = connect(RedisSettings(url=server.url, protocol=protocol), "test")
    tail = QueueTail(client, prefix)
    async with plain_client(server) as other:
        waiting = asyncio.create_task(tail.wait(1024))
        await eventually(partial(_is_blocked, other))
        await other.lpush(prefix, b"first\r\n")
        assert await waiting == b"first\r\n"
        await other.lpush(prefix, b"second", b"third")
        for _ in range(2):
            assert await tail.wait(1024) == b"first\r\n"
        assert await other.lrange(prefix, 0, -1) == [b"third", b"second", b"first\r\n"]
    await client.aclose()


async def _is_blocked(client: Any) -> bool:  # noqa: ANN401 - a client of redis-py
    return bool((await client.info("clients"))["blocked_clients"])


async def test_an_old_reply_does_not_remove_another_message(
    server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network delays the reply until the engine has applied the message, and the next one has the same digest."""
    pad = {"x": "x" * 5000}
    first, second = (
        msgspec.json.encode(
            {"type": "state_transition", "agent_id": "a", "payload": {"context": pad, "target": target}}
        )
        for target in ("first", "other")
    )
    assert message_digest(first) == message_digest(second)
    delayed, original = asyncio.Event(), QueueTail.wait

    async def wait(tail: QueueTail, max_bytes: int) -> bytes | None:
        message = await original(tail, max_bytes)
        if message == first:
            await delayed.wait()
        return message

    monkeypatch.setattr(QueueTail, "wait", wait)
    async with running_engine(server, prefix, liveness__scan_interval=3600.0, **_NEVER) as engine:
        await engine.say(first)
        await engine.call("PUBLISH", engine.keys.responses, "wake up")
        await eventually(partial(engine.state_is, "a", "first"))
        consumer = engine.engine._response_consumer
        await eventually(lambda: not consumer._wakeup.is_set and consumer._watch._task is not None)
        await engine.say(second)
        delayed.set()
        await eventually(engine.is_drained)
        assert await engine.state("a") == "other"


async def test_two_engines_that_wait_for_a_queue_both_find_its_oldest_message(
    server: EmbeddedServer, prefix: str
) -> None:
    """An engine that no longer leads may still wait, and may stop at any time. The queue does not change."""
    client = connect(RedisSettings(url=server.url), "test")
    tail = QueueTail(client, prefix)
    async with plain_client(server) as other:
        before = await other.info("clients")
        stopped, *waiting = [asyncio.create_task(tail.wait(1024)) for _ in range(3)]
        await eventually(partial(_blocks, other, before["blocked_clients"] + 3))
        stopped.cancel()
        await other.lpush(prefix, b"1", b"2", b"3")
        assert await asyncio.gather(*waiting) == [b"1", b"1"]
        assert await other.lrange(prefix, 0, -1) == [b"3", b"2", b"1"]
    await asyncio.gather(stopped, return_exceptions=True)
    await client.aclose()


async def _blocks(client: Any, count: int) -> bool:  # noqa: ANN401 - a client of redis-py
    return bool((await client.info("clients"))["blocked_clients"] == count)


async def test_a_message_that_is_too_large_is_not_read(server: EmbeddedServer, prefix: str) -> None:
    client = connect(RedisSettings(url=server.url), "test")
    tail = QueueTail(client, prefix)
    await client.lpush(prefix, b"x" * 1_000_000)
    for limit, expected in ((999_999, b""), (1_000_000, b"x" * 1_000_000), (10, b"")):
        assert await tail.wait(limit) == expected
    assert await client.llen(prefix) == 1
    await client.aclose()


@pytest.mark.parametrize("value", ["of another type", None])
async def test_a_call_that_the_server_refuses_names_the_outage(own: OwnServer, prefix: str, value: str | None) -> None:
    """A command that was renamed is as one that is not permitted."""
    client = connect(RedisSettings(url=own.url), "test")
    if value is None:
        await client.execute_command("ACL", "SETUSER", "default", "-blmove")
    else:
        await client.set(prefix, value)
    with pytest.raises(ServerUnavailableError) as refused:
        await QueueTail(client, prefix).wait(1024)
    assert refused.value.outage == ("noperm" if value is None else "wrong_type")
    await client.aclose()


async def test_engine_works_without_the_permission_to_block(own: OwnServer, prefix: str) -> None:
    """It polls the queues, and does not count this as an outage."""
    async with plain_client(own) as operator:
        await operator.execute_command("ACL", "SETUSER", "default", "-blmove")
        with capture_logs() as logs:
            async with launched(own, prefix) as running:
                await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "polled"}})
                await eventually(partial(running.state_is, "a", "polled"))
                await eventually(lambda: _count(logs, "watch_denied") == 3)
                assert running.refusal is None


def _count(logs: Iterable[Any], event: str) -> int:
    return sum(entry["event"] == event for entry in logs)


async def test_an_idle_engine_does_not_poll_its_queues(own: OwnServer, prefix: str) -> None:
    """It renews its lease, and peeks once for each scan of the heartbeats and once a second."""
    async with running_engine(own, prefix, response_consumer__poll_interval=0.001) as running:
        await eventually(lambda: all(each._watch._blocks for each in _consumers(running)))
        await running.call("CONFIG", "RESETSTAT")
        scans = running.metric("aism_service_step_duration_seconds_count", service="reaper")

        def scanned() -> float:
            return running.metric("aism_service_step_duration_seconds_count", service="reaper") - scans

        await eventually(lambda: scanned() >= 20)
        stats = await running.client.info("commandstats")
        used = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
        # Each scan asks for a peek, and a scan takes a second at most: each queue is peeked, and the lease is renewed.
        assert used["evalsha"] <= 5 * (scanned() + 2), used


def _consumers(running: Running) -> list[Any]:
    return [each for each in running.engine.components if isinstance(each, QueueConsumer)]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_heartbeats_outside_a_range_are_read_in_pages(
    server: EmbeddedServer, prefix: str, protocol: Literal[2, 3]
) -> None:
    """Old ones and future ones, in seconds and in milliseconds; each span has several pages."""
    client, now = connect(RedisSettings(url=server.url, protocol=protocol), "test"), 1_800_000_000.0
    keys = Keys(prefix)
    outside = {
        f"{name}-{number}": base + number
        for name, base in (("old", 1.0), ("ahead", now + 1), ("old-ms", now * 1000 - 90_000), ("ahead-ms", now * 1001))
        for number in range(5)
    }
    inside = {"in": now - 5, "in-ms": now * 1000 - 5000}
    await client.zadd(keys.heartbeats, outside | inside)
    found, _ = await FleetReader(client, keys, SystemClock()).heartbeats_outside(now - 15, now, 2)
    assert found == outside
    await client.aclose()


async def test_a_doorbell_rings_for_its_subscription_and_for_messages(server: EmbeddedServer, prefix: str) -> None:
    """It can ring once for several messages, and says when its connection ends."""
    client, rung = connect(RedisSettings(url=server.url), prefix), asyncio.Event()
    listening = asyncio.create_task(Doorbell(client, prefix).listen(rung.set))
    await rung.wait()
    async with plain_client(server) as other:
        for message in (b"", b"-" * 1_000_000):  # a read may begin within the message
            rung.clear()
            assert await other.publish(prefix, message) == 1
            await rung.wait()
        (own,) = [each for each in await other.client_list() if each["name"] == f"aism-{prefix}"]
        await other.client_kill_filter(_id=own["id"])
    with pytest.raises(ServerUnavailableError) as ended:
        await listening
    assert ended.value.outage == "connection"
    await client.aclose()


async def test_a_doorbell_that_the_server_refuses_names_the_outage(own: OwnServer, prefix: str) -> None:
    client = connect(RedisSettings(url=own.url), "test")
    await client.execute_command("ACL", "SETUSER", "default", "-subscribe")
    with pytest.raises(ServerUnavailableError) as refused:
        await Doorbell(client, prefix).listen(lambda: None)
    assert refused.value.outage == "noperm"
    await client.aclose()


async def test_a_notification_wakes_an_engine_that_may_not_block(own: OwnServer, prefix: str) -> None:
    async with plain_client(own) as operator:
        await operator.execute_command("ACL", "SETUSER", "default", "-blmove")
        async with running_engine(own, prefix, **_NEVER) as engine:
            await engine.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "rung"}})
            await engine.call("PUBLISH", engine.keys.responses, "")
            await eventually(partial(engine.state_is, "a", "rung"))
