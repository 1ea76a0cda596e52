"""Sentinel failovers with a real primary, a real replica and three real sentinels."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.outages import naming_outages
from tests.support.engine import Reader, Running, eventually, launched, plain_client
from tests.support.faults import Load
from tests.support.sentinels import MASTER, SentinelSetup
from tests.support.server import Cli, OwnServer


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[SentinelSetup]:
    with SentinelSetup(tmp_path) as setup:
        yield setup


class Pair:
    """The two servers with their first roles, and an engine that follows the primary."""

    def __init__(self, setup: SentinelSetup, primary: Reader, engine: Running) -> None:
        self.setup = setup
        self.old, self.new = setup.servers
        self.primary = primary
        self.engine = engine
        """It reads from the replica, which becomes the primary."""

    async def replicated(self) -> None:
        """Wait until the replica has everything that was written so far."""
        await self.primary.call("SET", f"{self.primary.keys.prefix}:mark", 1)
        assert await self.primary.call("WAIT", 1, 300_000) == 1

    async def promoted(self) -> None:
        await asyncio.to_thread(self.setup.wait_promoted, self.new)


@asynccontextmanager
async def following(setup: SentinelSetup, prefix: str, **settings: object) -> AsyncIterator[Pair]:
    known = {"redis__sentinels": setup.addresses, "redis__sentinel_master": MASTER}
    async with (
        plain_client(setup.servers[0]) as primary,
        launched(setup.servers[1], prefix, **known, **settings) as engine,
    ):
        yield Pair(setup, Reader(primary, prefix), engine)


Failover: TypeAlias = Callable[[SentinelSetup, OwnServer], None]
"""Why the sentinels promote the replica of this primary."""


def killed(_setup: SentinelSetup, primary: OwnServer) -> None:
    """The primary is gone, and connections to it are refused."""
    primary.kill()


def stopped(_setup: SentinelSetup, primary: OwnServer) -> None:
    """The primary is suspended: connections to it stay open, without replies."""
    primary.pause()


def replaced(setup: SentinelSetup, _primary: OwnServer) -> None:
    """An operator requests the failover. The primary accepts writes until the sentinels make it a replica."""
    setup.fail_over()


@pytest.mark.parametrize("failover", [killed, stopped, replaced])
async def test_engine_follows_a_failover(setup: SentinelSetup, prefix: str, failover: Failover) -> None:
    """It continues at the new primary: each response is applied once and in order."""
    load = Load()
    async with following(setup, prefix) as pair:
        await load.say(pair.primary, 3)
        await load.wait_applied_once(pair.primary)
        await pair.replicated()
        await asyncio.to_thread(failover, setup, pair.old)
        await pair.promoted()
        await load.say(pair.engine, 3)
        await load.wait_applied_once(pair.engine)
        await eventually(lambda: pair.engine.outage is None)


async def test_responses_that_a_failover_takes_back_are_applied_when_they_are_sent_again(
    setup: SentinelSetup, prefix: str
) -> None:
    """The replica has neither the responses nor their effects, but the same lease and token. Only the ledger shows that
    the server lost writes, and the engine must not take the responses for duplicates.
    """
    load = Load()
    async with following(setup, prefix, lease__ttl=60.0) as pair:
        await load.say(pair.primary, 3)
        await load.wait_applied_once(pair.primary)
        await pair.replicated()
        token = pair.engine.engine.leadership.token
        pair.new.pause()
        await pair.primary.call("CLIENT", "KILL", "TYPE", "replica")
        messages = load.more(3)
        await pair.primary.say(*messages)
        await load.wait_applied_once(pair.primary)
        pair.old.kill()
        pair.new.resume()
        await pair.promoted()
        assert [len(causes) for causes in (await load.applied(pair.engine)).values()] == [1, 1, 1]
        await pair.engine.say(*messages)
        await load.wait_applied_once(pair.engine)
        assert pair.engine.engine.leadership.token == token
        assert pair.engine.metric("aism_commits_total", code="out_of_step") >= 1


async def test_commands_of_operators_ask_the_sentinels(setup: SentinelSetup, prefix: str) -> None:
    """The address of the URL does not count."""
    async with following(setup, prefix) as pair:
        await pair.primary.say({"id": "1", "type": "register", "agent_id": "a-1", "payload": {"type": "worker"}})
        await eventually(partial(pair.engine.record, "a-1"))
        environ = {
            "AISM_REDIS_URL": "redis://127.0.0.1:1/0",
            "AISM_REDIS__PREFIX": prefix,
            "AISM_REDIS__SENTINELS": json.dumps(setup.addresses),
            "AISM_REDIS__SENTINEL_MASTER": MASTER,
        }
        program = [sys.executable, "-c", "from aism_engine.cli.main import main; main()", "agents", "list", "--json"]
        done = await asyncio.to_thread(
            subprocess.run, program, env=os.environ | environ, check=True, capture_output=True, text=True
        )
        assert [agent["agent_id"] for agent in json.loads(done.stdout)] == ["a-1"]


async def test_a_demoted_primary_is_not_used(setup: SentinelSetup) -> None:
    """Even if a sentinel still names it: it answers PING, but its ROLE is another."""
    primary, replica = setup.servers
    settings = RedisSettings(sentinels=(setup.addresses[0],), sentinel_master=MASTER)
    with Cli(primary.port) as ask:
        ask("REPLICAOF", "127.0.0.1", replica.port)
    client = connect(settings, "test")
    with pytest.raises(ServerUnavailableError, match="not a primary"), naming_outages():
        await client.ping()
    await client.aclose()


async def test_unreachable_sentinels_are_a_named_outage() -> None:
    """The engine waits, and reports `no_primary`."""
    client = connect(RedisSettings(sentinels=("127.0.0.1:1",), sentinel_master=MASTER), "test")
    with pytest.raises(ServerUnavailableError) as caught, naming_outages():
        await client.ping()
    assert caught.value.outage == "no_primary"
    await client.aclose()
