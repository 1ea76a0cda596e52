"""The laws of the proxy by which all faults are made: each does what it says, and nothing else."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Client, eventually
from tests.support.proxy import Direction, FaultProxy
from tests.support.proxy_rules import Frames, Match, Request

COMMANDS = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n*1\r\n"
REPLIES = (
    *(b"+OK\r\n", b"-ERR no\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"$0\r\n\r\n"),
    b"*2\r\n*1\r\n$5\r\n\r\n$3\r\r\n*2\r\n:1\r\n*0\r\n",
    b"%1\r\n+a\r\n~2\r\n:1\r\n,1.5\r\n",
    *(b"|1\r\n+ttl\r\n:3\r\n$1\r\nx\r\n", b">2\r\n+message\r\n_\r\n", b"=5\r\ntxt:x\r\n", b"#t\r\n"),
)


def named(command: str) -> Match:
    def match(request: Request) -> bool:
        return request[0].upper() == command.encode()

    return match


@pytest.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    """A client behind the proxy that tries everything once."""
    retry = Retry(NoBackoff(), retries=0)
    async with Redis.from_url(proxy.url, protocol=2, retry=retry, socket_timeout=0.2) as client:
        yield client


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("frames", [COMMANDS, REPLIES])
def test_a_stream_is_cut_into_the_frames_that_were_put_in(frames: tuple[bytes, ...], size: int) -> None:
    """However the pieces fall in which it arrives."""
    cutter, stream = Frames(), b"".join(frames)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [frame for piece in pieces for frame in cutter.feed(piece)] == list(frames)


async def test_in_good_weather_it_changes_nothing(proxy: FaultProxy, client: Client, prefix: str) -> None:
    """Large and many, plain commands, pipelines and publications."""
    large = b"\r\n$5\r\n" * 100_000
    await client.set(prefix, large)
    assert await client.get(prefix) == large
    async with client.pipeline(transaction=True) as pipeline:
        for number in range(1000):
            pipeline.echo(number)
        assert await pipeline.execute() == [b"%d" % number for number in range(1000)]
    async with client.pubsub() as ear:
        await ear.subscribe(f"{prefix}:1", f"{prefix}:2")
        await client.publish(f"{prefix}:2", "heard")
        found = [await ear.get_message(timeout=1) for _ in range(3)]
    assert [message["data"] for message in found] == [1, 2, b"heard"]
    assert proxy.accepted == 2


@pytest.mark.parametrize("cut", [True, False])
async def test_exactly_one_reply_is_dropped(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, *, cut: bool
) -> None:
    """That of the n-th request that matches; what was asked is done, and whoever comes next is served."""
    rule = proxy.drop_reply(named("INCRBY"), nth=2, cut=cut)
    assert await client.incr(prefix) == 1
    with pytest.raises(RedisConnectionError if cut else RedisTimeoutError):
        await client.incr(prefix)
    assert await redis_client.get(prefix) == b"2"
    assert await client.incr(prefix) == 3
    assert (rule.matched, rule.replies) == ([[b"INCRBY", prefix.encode(), b"1"]], [2])


@pytest.mark.parametrize("cut", [True, False])
async def test_a_request_that_is_held_arrives_when_it_is_released(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, *, cut: bool
) -> None:
    """Long after its client has given up."""
    rule = proxy.hold_request(named("INCRBY"), cut=cut)
    with pytest.raises(RedisConnectionError if cut else RedisTimeoutError):
        await client.incr(prefix)
    assert await redis_client.exists(prefix) == 0
    assert await client.incr(prefix) == 1
    rule.release()
    assert await rule.wait_answered() == [2]


async def test_a_reply_that_is_held_arrives_when_it_is_released(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str
) -> None:
    """The server has done it long before."""
    rule = proxy.hold_reply(named("INCRBY"))
    asking = asyncio.create_task(client.incr(prefix))
    await rule.wait_answered()
    assert (await redis_client.get(prefix), asking.done()) == (b"1", False)
    rule.release()
    assert await asking == 1


async def test_it_answers_in_the_servers_place(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str
) -> None:
    """Until that is lifted; the server sees nothing of it."""
    rule = proxy.answer(named("INCRBY"), b"-LOADING not yet\r\n")
    with pytest.raises(BusyLoadingError):
        await client.incr(prefix)
    assert await redis_client.exists(prefix) == 0
    rule.disable()
    assert await client.incr(prefix) == 1


async def test_a_black_hole_swallows_everything_until_it_heals(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str
) -> None:
    """No reply, no end, no answer to a new connection; what was sent arrives late."""
    await client.ping()
    proxy.black_hole()
    with pytest.raises(RedisTimeoutError):
        await client.incr(prefix)
    newcomer = socket.socket()
    newcomer.settimeout(0.1)
    with newcomer, pytest.raises(TimeoutError):
        newcomer.connect(("127.0.0.1", proxy.port))
    assert await redis_client.exists(prefix) == 0
    proxy.heal()
    await eventually(lambda: redis_client.exists(prefix))
    assert await client.incr(prefix) == 2


async def test_a_black_hole_of_one_way_lets_the_other_pass(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str
) -> None:
    """What is asked is done, and nobody hears of it."""
    await client.ping()
    proxy.black_hole(Direction.TO_CLIENT)
    with pytest.raises(RedisTimeoutError):
        await client.incr(prefix)
    assert await redis_client.get(prefix) == b"1"


async def test_what_is_forgotten_is_mute_and_newcomers_are_served(
    proxy: FaultProxy, client: Client, prefix: str
) -> None:
    """As behind a router that has lost its table."""
    await client.ping()
    proxy.forget()
    with pytest.raises(RedisTimeoutError):
        await client.incr(prefix)
    assert await client.incr(prefix) == 1


async def test_a_reset_is_a_reset(proxy: FaultProxy) -> None:
    """Not an orderly end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"*1\r\n$4\r\nPING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1000)
    writer.close()


async def test_a_half_closed_connection_ends_for_one_side(proxy: FaultProxy) -> None:
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


async def test_refused_connections_are_refused_until_they_are_admitted(proxy: FaultProxy, client: Client) -> None:
    """Open ones go on."""
    await client.ping()
    proxy.refuse()
    with socket.socket() as newcomer, pytest.raises(ConnectionRefusedError):
        newcomer.connect(("127.0.0.1", proxy.port))
    await client.ping()
    proxy.admit()
    socket.create_connection(("127.0.0.1", proxy.port)).close()


@pytest.mark.parametrize("way", [Direction.TO_SERVER, Direction.TO_CLIENT])
async def test_a_connection_is_cut_after_so_many_bytes(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, way: Direction
) -> None:
    """In the middle of a request, or of a reply; once."""
    await redis_client.set(prefix, b"x" * 10_000)
    await client.ping()
    proxy.cut_after(5_000, way=way)
    with pytest.raises(RedisConnectionError):
        await (client.set(prefix, b"y" * 10_000) if way is Direction.TO_SERVER else client.get(prefix))
    assert await client.get(prefix) == b"x" * 10_000


async def test_chance_is_in_the_seed(server: EmbeddedServer) -> None:
    """The same seed, the same cuts."""

    async def cuts(seed: int) -> list[int | None]:
        found = []
        async with FaultProxy(server.port, seed=seed) as proxy:
            for _ in range(5):
                proxy.cut_after(0, 1 << 30)
                found.append(proxy.conditions[Direction.TO_SERVER].left)
        return found

    assert await cuts(1) == await cuts(1) != await cuts(2)


async def test_it_delays_and_throttles(proxy: FaultProxy, client: Client, prefix: str) -> None:
    """At least by what was asked for."""
    await client.set(prefix, b"x" * 10_000)
    began = time.monotonic()
    proxy.delay(0.05)
    await client.ping()
    assert time.monotonic() - began >= 0.1
    proxy.heal()
    proxy.throttle(100_000, Direction.TO_CLIENT)
    began = time.monotonic()
    assert len(await client.get(prefix)) == 10_000
    assert time.monotonic() - began >= 0.1
