"""What the load takes for safe is safe: nothing less than a replica's word counts."""

import asyncio
from collections.abc import Iterator

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.chaos.line import Line, load_client
from tests.support.resp import Cli
from tests.support.server import test_server_binary


@pytest.fixture
def pair() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    with (
        EmbeddedServer(test_server_binary(), append_only=False, extra=("--repl-diskless-sync-delay", "0")) as primary,
        EmbeddedServer(test_server_binary(), append_only=False) as replica,
        Cli("127.0.0.1", replica.port) as ask,
    ):
        ask("REPLICAOF", "127.0.0.1", primary.port)
        yield primary, replica


async def test_what_is_written_lies_on_the_replica(pair: tuple[EmbeddedServer, EmbeddedServer]) -> None:
    """It is there when the write returns, however often it had to be done before somebody was there to have it."""
    primary, replica = pair
    async with load_client(primary.url) as client:
        attempts = await Line(client, replicas=1).write("LPUSH", "list", "x")
    with Cli("127.0.0.1", replica.port) as ask:
        assert 1 <= ask("LLEN", "list") <= attempts


async def test_what_no_replica_has_is_written_again_and_not_believed(
    pair: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    """Neither a write nor an answer counts: both go on until they are safe, which here they never are."""
    primary, replica = pair
    replica.kill()
    async with load_client(primary.url) as client:
        line = Line(client, replicas=1)
        for call in (line.write("LPUSH", "list", "x"), line.read("LLEN", "list")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.7):
                    await call
        assert await Line(client).read("LLEN", "list") > 1
