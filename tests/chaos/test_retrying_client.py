"""The client of the load counts nothing as done that a replica has not confirmed."""

import asyncio
from collections.abc import Iterator

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.chaos.retrying_client import RetryingClient, load_client
from tests.support.engine import eventually
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


async def test_written_value_is_on_the_replica(pair: tuple[EmbeddedServer, EmbeddedServer]) -> None:
    """A write that has returned is on the replica, or is applied there in a moment, however often it was repeated."""
    primary, replica = pair
    async with load_client(primary.url) as client:
        attempts = await RetryingClient(client, replicas=1).write("LPUSH", "list", "x")
    with Cli("127.0.0.1", replica.port) as ask:
        await eventually(lambda: ask("LLEN", "list"))
        assert ask("LLEN", "list") <= attempts


async def test_unconfirmed_calls_are_repeated(
    pair: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    """Without a replica neither writes nor reads end."""
    primary, replica = pair
    replica.kill()
    async with load_client(primary.url) as client:
        line = RetryingClient(client, replicas=1)
        for call in (line.write("LPUSH", "list", "x"), line.read("LLEN", "list")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.7):
                    await call
        assert await RetryingClient(client).read("LLEN", "list") > 1
