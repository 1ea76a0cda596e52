"""The fault proxy reproduces each fault of the network, and changes nothing else."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.engine import Client, eventually
from tests.support.proxy import FaultProxy
from tests.support.proxy_rules import Frames, Match

COMMANDS = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n*1\r\n"
REPLIES = (
    *(b"+OK\r\n", b"-ERR no\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"$0\r\n\r\n"),
    b"*2\r\n*1\r\n$5\r\n\r\n$3\r\r\n*2\r\n:1\r\n*0\r\n",
    b"%1\r\n+a\r\n~2\r\n:1\r\n,1.5\r\n",
    *(b">2\r\n+message\r\n_\r\n", b"=5\r\ntxt:x\r\n", b"#f\r\n"),
)


def named(command: str) -> Match:
    return lambda request: request[0].upper() == command.encode()


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    """A client behind the proxy that tries each command once, and waits for the reply."""
    async with Redis.from_url(proxy.url, protocol=2, retry=Retry(NoBackoff(), retries=0), socket_timeout=300) as client:
        yield client


async def stays_unanswered(call: asyncio.Future[object], beside: Client) -> bool:
    """Tell whether a call has no reply, although another client was answered after it. The call is given up."""
    await asyncio.sleep(0)  # the call takes its connection first
    for _ in range(5):
        await beside.ping()
    is_unanswered = not call.done()
    call.cancel()
    return is_unanswered


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("frames", [COMMANDS, REPLIES])
def test_a_stream_is_split_into_its_frames(frames: tuple[bytes, ...], size: int) -> None:
    """Whatever the size of the pieces in which it arrives."""
    splitter, stream = Frames(), b"".join(frames)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [frame for piece in pieces for frame, _ in splitter.feed(piece)] == list(frames)


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
    """The request is executed, and the next one is answered."""
    rule = proxy.drop_reply(named("INCRBY"), cut=cut)
    asking = asyncio.ensure_future(client.incr(prefix))
    assert await rule.wait_answered() == [1]
    if cut:
        with pytest.raises(RedisConnectionError):
            await asking
    else:
        assert await stays_unanswered(asking, client)
    assert await redis_client.get(prefix) == b"1"
    assert await client.incr(prefix) == 2
    assert (rule.matched, rule.replies) == ([[b"INCRBY", prefix.encode(), b"1"]], [1])


@pytest.mark.parametrize("cut", [True, False])
async def test_a_held_request_arrives_when_it_is_released(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, *, cut: bool
) -> None:
    """Long after its client has given up."""
    rule = proxy.hold_request(named("INCRBY"), cut=cut)
    asking = asyncio.ensure_future(client.incr(prefix))
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
    asking = asyncio.ensure_future(client.incr(prefix))
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
    with socket.socket() as newcomer:
        newcomer.setblocking(False)  # noqa: FBT003
        connecting = asyncio.ensure_future(asyncio.get_running_loop().sock_connect(newcomer, ("127.0.0.1", proxy.port)))
        assert await stays_unanswered(asyncio.ensure_future(client.incr(prefix)), redis_client)
        assert (connecting.done(), await redis_client.exists(prefix)) == (False, 0)
        proxy.heal()
        await connecting
    await eventually(lambda: redis_client.exists(prefix))
    assert await client.incr(prefix) == 2


async def test_forgotten_connections_are_dead_and_new_ones_work(proxy: FaultProxy, client: Client, prefix: str) -> None:
    """As behind a router that has lost its table of connections."""
    await client.ping()
    proxy.forget()
    assert await stays_unanswered(asyncio.ensure_future(client.incr(prefix)), client)
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


@pytest.mark.parametrize("command", ["GET", "SET"])
async def test_one_connection_is_cut_after_a_number_of_bytes(
    proxy: FaultProxy, client: Client, redis_client: Client, prefix: str, command: str
) -> None:
    """In the middle of a request, or of a reply."""
    await redis_client.set(prefix, b"x" * 10_000)
    await client.ping()
    proxy.cut_after(5_000)
    with pytest.raises(RedisConnectionError):
        await (client.set(prefix, b"y" * 10_000) if command == "SET" else client.get(prefix))
    assert await client.get(prefix) == b"x" * 10_000


async def test_delays_and_throttling_take_at_least_their_time(
    proxy: FaultProxy, client: Client, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    await client.set(prefix, b"x" * 10_000)

    async def seconds(call: Awaitable[object]) -> float:
        began = time.monotonic()
        await call
        return time.monotonic() - began

    proxy.delay(0.05)
    assert await seconds(client.ping()) >= 0.1
    proxy.heal()
    proxy.throttle(100_000)
    assert await seconds(client.get(prefix)) >= 0.1
