"""Fixtures of all tests: a real server, and a key prefix for each test."""

import itertools
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Client, Reader, Running, plain_client, running_engine
from tests.support.proxy import FaultProxy
from tests.support.server import OwnServer

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
    with OwnServer(append_only=False) as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """A prefix of keys and channels that no other test uses, in this run or a later one on the same server."""
    return f"t{next(_count)}-{secrets.token_hex(3)}"


@pytest.fixture
async def redis_client(server: EmbeddedServer) -> AsyncIterator[Client]:
    """A plain client, as an agent in any language uses. It tries each command once."""
    async with plain_client(server) as client:
        yield client


@pytest.fixture
def reader(redis_client: Client, prefix: str) -> Reader:
    return Reader(redis_client, prefix)


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    """A running engine that leads. Some folders and modules have one with other settings."""
    async with running_engine(server, prefix) as running:
        yield running


@pytest.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the server."""
    async with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnServer]:
    """A server for this test alone."""
    with OwnServer(data_dir=tmp_path / "data") as server:
        yield server
