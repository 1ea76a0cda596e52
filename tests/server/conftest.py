"""Fixtures of the tests on a server."""

from collections.abc import AsyncIterator

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.plain_agent import Agent
from tests.support.workers import WORKER, Workers, open_workers


@pytest.fixture
async def agent(server: EmbeddedServer) -> AsyncIterator[Agent]:
    agent = Agent(server)
    yield agent
    agent.close()


@pytest.fixture
async def subscriber(server: EmbeddedServer) -> AsyncIterator[Agent]:
    """A second connection, which subscribes to events."""
    subscriber = Agent(server)
    yield subscriber
    subscriber.close()


@pytest.fixture
async def workers(server: EmbeddedServer, prefix: str) -> AsyncIterator[Workers]:
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        yield workers
