"""The fault proxy reproduces each fault of the network, and changes nothing else."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Client, eventually
from tests.support.proxy import Direction, FaultProxy
from tests.support.proxy_rules import Frames, Match

COMMANDS = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n*1\r\n"
REPLIES = (
    *(b"+OK\r\n", b"-ERR no\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"$0\r\n\r\n"),
    b"*2\r\n*1\r\n$5\r\n\r\n$3\r\r\n*2\r\n:1\r\n*0\r\n",
    b"%1\r\n+a\r\n~2\r\n:1\r\n,1.5\r\n",
    *(b"|1\r\n+ttl\r\n:3\r\n$1\r\nx\r\n", b">2\r\n+message\r\n_\r\n", b"=5\r\ntxt:x\r\n", b"#t\r\n"),
)


def named(command: str) -> Match:
    return lambda request: request[0].upper() == command.encode()


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    """A client behind the proxy that tries each command once, and waits for the reply."""
    async with Redis.from_url(proxy.url, protocol=2, retry=Retry(NoBackoff(), retries=0), socket_timeout=300) as client:
        yield client


async def assert_unanswered(call: Awaitable[object]) -> None:
    """Check that a call gets no reply. On a slow machine a reply may be missed, but the check does not fail."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await call


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("frames", [COMMANDS, REPLIES])
def test_a_stream_is_split_into_its_frames(frames: tuple[bytes, ...], size: int) -> None:
    """Whatever the size of the pieces in which it arrives."""
    splitter, stream = Frames(), b"".join(frames)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [frame for piece in pieces for frame in splitter.feed(piece)] == list(frames)


async def test_without_faults_the_proxy_changes_nothing(client: Client, prefix: str) -> None:
    """Large values, many commands, pipelines and publications pass."""
    large = b"\r\n$5\r\n" * 100_000
    await client.set(prefix, large)
    assert await client.get(prefix) == large
    async with client.pipeline(transaction=True) as pipeline:
        for number in range(1000):
            pipeline.echo(number)
        assert await pipeline.execute() == [b"%d" % number for number in range(1000)]
    async with client.pubsub() as subscriber:
        await subscriber.subscribe(f"{prefix}:1", f"{prefix}:2")
        await client.publish(f"{prefix}:2", "hello")
        found = [await subscriber.get_message(timeout=300) for _ in range(3)]
    assert [message["data"] for message in found] == [1, 2, b"hello"]


@pytest.mark.parametrize("cut", [True, False])
async def test_exactly_one_reply_is_dropped(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, *, cut: bool
) -> None:
    """That of the n-th request that matches. The request is executed, and the next one is answered."""
    rule = proxy.drop_reply(named("INCRBY"), nth=2, cut=cut)
    assert await client.incr(prefix) == 1
    if cut:
        with pytest.raises(RedisConnectionError):
            await client.incr(prefix)
    else:
        await assert_unanswered(client.incr(prefix))
    assert await rule.wait_answered() == [2]
    assert await redis_client.get(prefix) == b"2"
    assert await client.incr(prefix) == 3
    assert (rule.matched, rule.replies) == ([[b"INCRBY", prefix.encode(), b"1"]], [2])


@pytest.mark.parametrize("cut", [True, False])
async def test_a_held_request_arrives_when_it_is_released(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, *, cut: bool
) -> None:
    """Long after its client has given up."""
    rule = proxy.hold_request(named("INCRBY"), cut=cut)
    asking = asyncio.create_task(client.incr(prefix))
    await rule.wait_matched()
    if not cut:
        asking.cancel()
    with pytest.raises(RedisConnectionError if cut else asyncio.CancelledError):
        await asking
    assert await redis_client.exists(prefix) == 0
    assert await client.incr(prefix) == 1
    rule.release()
    assert await rule.wait_answered() == [2]


async def test_a_held_reply_arrives_when_it_is_released(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str
) -> None:
    """The server has executed the command long before."""
    rule = proxy.hold_reply(named("INCRBY"))
    asking = asyncio.create_task(client.incr(prefix))
    await rule.wait_answered()
    assert (await redis_client.get(prefix), asking.done()) == (b"1", False)
    rule.release()
    assert await asking == 1


async def test_a_black_hole_passes_nothing_until_it_heals(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str
) -> None:
    """No reply, no end, no answer to a new connection; what was sent arrives late."""
    await client.ping()
    proxy.black_hole()
    await assert_unanswered(client.incr(prefix))
    newcomer = socket.socket()
    newcomer.settimeout(0.1)
    with newcomer, pytest.raises(TimeoutError):
        newcomer.connect(("127.0.0.1", proxy.port))
    assert await redis_client.exists(prefix) == 0
    proxy.heal()
    await eventually(lambda: redis_client.exists(prefix))
    assert await client.incr(prefix) == 2


async def test_forgotten_connections_are_dead_and_new_ones_work(proxy: FaultProxy, client: Client, prefix: str) -> None:
    """As behind a router that has lost its table of connections."""
    await client.ping()
    proxy.forget()
    await assert_unanswered(client.incr(prefix))
    assert await client.incr(prefix) == 1


async def test_a_reset_sends_rst(proxy: FaultProxy) -> None:
    """Not FIN."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"*1\r\n$4\r\nPING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1000)
    writer.close()


async def test_a_half_closed_connection_ends_in_one_direction(proxy: FaultProxy) -> None:
    """The client reads an end, and what it sends still arrives."""
    rule = proxy.watch(named("PING"))
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"*1\r\n$4\r\nPING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    proxy.half_close(Direction.TO_CLIENT)
    assert await reader.read() == b""
    writer.write(b"*1\r\n$4\r\nPING\r\n")
    assert await rule.wait_answered(2) == [b"PONG", b"PONG"]
    writer.close()


@pytest.mark.parametrize("direction", [Direction.TO_SERVER, Direction.TO_CLIENT])
async def test_one_connection_is_cut_after_a_number_of_bytes(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, direction: Direction
) -> None:
    """In the middle of a request, or of a reply."""
    await redis_client.set(prefix, b"x" * 10_000)
    await client.ping()
    proxy.cut_after(5_000, 5_000, direction)
    with pytest.raises(RedisConnectionError):
        await (client.set(prefix, b"y" * 10_000) if direction is Direction.TO_SERVER else client.get(prefix))
    assert await client.get(prefix) == b"x" * 10_000


async def test_the_same_seed_makes_the_same_cuts(server: EmbeddedServer) -> None:
    async def cuts(seed: int) -> list[int | None]:
        found = []
        async with FaultProxy(server.port, seed=seed) as proxy:
            for _ in range(5):
                proxy.cut_after(0, 1 << 30)
                found.append(proxy.conditions[Direction.TO_SERVER].left)
        return found

    assert await cuts(1) == await cuts(1) != await cuts(2)


async def test_delays_and_throttling_take_at_least_their_time(proxy: FaultProxy, client: Client, prefix: str) -> None:
    await client.set(prefix, b"x" * 10_000)
    began = time.monotonic()
    proxy.delay(0.05, 0.05)
    await client.ping()
    assert time.monotonic() - began >= 0.1
    proxy.heal()
    proxy.throttle(100_000)
    began = time.monotonic()
    assert len(await client.get(prefix)) == 10_000
    assert time.monotonic() - began >= 0.1
