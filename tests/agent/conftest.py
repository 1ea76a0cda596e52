"""Fixtures of the tests of agents."""

from collections.abc import AsyncIterator, Iterator

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, running_engine
from tests.support.server import test_server_binary


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    async with running_engine(server, prefix, dispatcher__poll_interval=0.05) as running:
        yield running


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that the test may kill; everything it has accepted is on disk."""
    with EmbeddedServer(test_server_binary(), append_fsync="always") as server:
        yield server
