"""Fixtures of the tests of agents."""

from collections.abc import AsyncIterator

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, running_engine


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    async with running_engine(server, prefix, dispatcher__poll_interval=0.05) as running:
        yield running
