"""Fixtures of all tests: a real server, and a key prefix for each test."""

import itertools
import secrets
import signal
from collections.abc import AsyncIterator, Iterator

import hypothesis
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aism_engine.store.embedded import EmbeddedServer
from tests.support.server import test_server_binary

hypothesis.settings.register_profile(
    "gate", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # a slow machine is no failure
hypothesis.settings.load_profile("gate")

# A job in the background and one under nohup inherit that these signals are ignored, and so would all their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_count = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """One server for the whole run of each xdist worker. No test flushes it, stops it or changes its settings."""
    with EmbeddedServer(test_server_binary(), append_only=False) as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """A prefix of keys and channels that no other test uses, in this run or a later one on the same server."""
    return f"t{next(_count)}-{secrets.token_hex(3)}"


@pytest.fixture
async def redis_client(server: EmbeddedServer) -> AsyncIterator[Redis]:
    """A plain client, as an agent in any language uses. It tries each command once."""
    retry = Retry(NoBackoff(), retries=0)
    async with Redis.from_url(
        server.url, protocol=2, decode_responses=False, retry=retry, socket_timeout=300
    ) as client:
        yield client
