"""Sentinel failovers with a real primary, a real replica and three real sentinels."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect, naming_outages
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Reader, Running, eventually, launched, plain_client
from tests.support.faults import Load
from tests.support.resp import Cli
from tests.support.sentinels import MASTER, SentinelSetup
from tests.support.server import test_server_binary


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SentinelSetup]:
    with SentinelSetup(test_server_binary(), tmp_path) as site:
        yield site


class Pair:
    """The two servers as they begin, and an engine that follows whom the sentinels name."""

    def __init__(self, site: SentinelSetup, primary: Reader, engine: Running) -> None:
        self.site = site
        self.old, self.new = site.servers
        self.primary = primary
        self.engine = engine
        """Its own reader looks at the replica, which is the primary later on."""

    async def replicated(self) -> None:
        """Wait until the replica has all that was written so far."""
        await self.primary.call("SET", f"{self.primary.keys.prefix}:mark", 1)
        assert await self.primary.call("WAIT", 1, 5000) == 1

    async def promoted(self) -> None:
        await asyncio.to_thread(self.site.wait_promoted, self.new)


@asynccontextmanager
async def following(site: SentinelSetup, prefix: str, **settings: object) -> AsyncIterator[Pair]:
    known = {"redis__sentinels": site.addresses, "redis__sentinel_master": MASTER}
    async with (
        plain_client(site.servers[0]) as primary,
        launched(site.servers[1], prefix, **known, **settings) as engine,
    ):
        yield Pair(site, Reader(primary, prefix), engine)


Failover: TypeAlias = Callable[[SentinelSetup, EmbeddedServer], None]
"""Why the sentinels promote the replica of this primary."""


def killed(_site: SentinelSetup, primary: EmbeddedServer) -> None:
    """It is gone, and says so: whoever connects is refused."""
    primary.kill()


def stopped(_site: SentinelSetup, primary: EmbeddedServer) -> None:
    """It stands still: connections to it stay open, and mute."""
    primary.pause()


def replaced(site: SentinelSetup, _primary: EmbeddedServer) -> None:
    """An operator asks for it: it lives on, and takes writes until the sentinels get to it, ten seconds later."""
    site.fail_over()


@pytest.mark.parametrize("failover", [killed, stopped, replaced])
async def test_engine_follows_a_failover(site: SentinelSetup, prefix: str, failover: Failover) -> None:
    """It continues at the new primary: each response is applied once and in order."""
    load = Load()
    async with following(site, prefix) as pair:
        await load.say(pair.primary, 3)
        await load.wait_applied_once(pair.primary)
        await pair.replicated()
        await asyncio.to_thread(failover, site, pair.old)
        await pair.promoted()
        await load.say(pair.engine, 3)
        await load.wait_applied_once(pair.engine)
        await eventually(lambda: pair.engine.outage is None)


async def test_what_a_failover_takes_back_is_applied_when_it_is_said_again(site: SentinelSetup, prefix: str) -> None:
    """The replica has not had it, effects and all. Lease and token are the same there: the chain alone tells that the
    server went back in time, and the engine must not know the messages for ones that it has seen.
    """
    load = Load()
    async with following(site, prefix, lease__ttl=60.0) as pair:
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


async def test_who_is_no_primary_is_not_spoken_to(site: SentinelSetup) -> None:
    """Sentinels that still name a demoted server are not believed: it answers PING, but its role is another."""
    primary, replica = site.servers
    settings = RedisSettings(sentinels=(site.addresses[0],), sentinel_master=MASTER)
    with Cli("127.0.0.1", primary.port) as ask:
        ask("REPLICAOF", "127.0.0.1", replica.port)
    client = connect(settings, "test")
    with pytest.raises(ServerUnavailableError, match="not a primary"), naming_outages():
        await client.ping()
    await client.aclose()


async def test_no_sentinel_at_all_is_an_outage_with_a_name() -> None:
    """None of them answers: the engine would wait, and say for whom."""
    client = connect(RedisSettings(sentinels=("127.0.0.1:1",), sentinel_master=MASTER), "test")
    with pytest.raises(ServerUnavailableError) as caught, naming_outages():
        await client.ping()
    assert caught.value.outage == "no_primary"
    await client.aclose()
