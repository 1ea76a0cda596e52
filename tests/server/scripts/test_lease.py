"""Laws of acquire_lease.lua, release_lease.lua and push_published.lua."""

import pytest

from aism_engine.clock import SystemClock
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import LeaseCode
from aism_engine.store.store import Store
from tests.server.scripts.conftest import Leader
from tests.support.server import test_server_binary


@pytest.fixture
async def candidate(leader: Leader) -> Leader:
    """A fleet that has had no leader yet."""
    await leader.call("DEL", leader.keys.epoch, leader.keys.ledger)
    return leader


async def test_a_free_lease_is_taken_under_a_new_epoch(candidate: Leader) -> None:
    """The epoch outlives the lease, and only grows."""
    assert await candidate.store.acquire_lease("me", 5.0, None) == (LeaseCode.TAKEN, "1:me")
    assert 4000 < await candidate.call("PTTL", candidate.keys.lease) <= 5000
    assert await candidate.call("PTTL", candidate.keys.epoch) == -1
    await candidate.call("DEL", candidate.keys.lease)
    assert await candidate.store.acquire_lease("you", 5.0, None) == (LeaseCode.TAKEN, "2:you")


async def test_only_the_holder_renews_a_lease(candidate: Leader) -> None:
    """The token stays the same. Any other engine gets the token of the holder."""
    await candidate.store.acquire_lease("me", 0.5, None)
    assert await candidate.store.acquire_lease("me", 60.0, "1:me") == (LeaseCode.RENEWED, "1:me")
    assert await candidate.call("PTTL", candidate.keys.lease) > 5000
    for holder, token in (("you", None), ("you", "1:you"), ("you", "0:me"), ("me", None)):
        assert await candidate.store.acquire_lease(holder, 60.0, token) == (LeaseCode.HELD, "1:me")


async def test_an_expired_lease_is_taken_under_a_new_epoch(candidate: Leader) -> None:
    """Also by its last holder: another engine may have led in between."""
    await candidate.store.acquire_lease("me", 5.0, None)
    await candidate.call("DEL", candidate.keys.lease)
    assert await candidate.store.acquire_lease("me", 5.0, "1:me") == (LeaseCode.TAKEN, "2:me")


async def test_a_lease_without_its_epoch_is_not_renewed(candidate: Leader) -> None:
    """A server that lost its latest writes may have a lease and an older epoch."""
    await candidate.store.acquire_lease("me", 5.0, None)
    await candidate.call("SET", candidate.keys.epoch, "1:another")
    assert await candidate.store.acquire_lease("me", 5.0, "1:me") == (LeaseCode.TAKEN, "2:me")


@pytest.mark.parametrize(
    ("epoch", "token"),
    [
        *((damaged, "1:me") for damaged in ("", "nonsense", "x:y", ":me", "-5:me")),
        (f"{10**15}:you", f"{10**15 + 1}:me"),
    ],
)
async def test_a_damaged_epoch_restarts_at_one_and_a_large_one_goes_on(
    candidate: Leader, epoch: str, token: str
) -> None:
    await candidate.call("SET", candidate.keys.epoch, epoch)
    assert await candidate.store.acquire_lease("me", 5.0, None) == (LeaseCode.TAKEN, token)


async def test_the_lease_leaves_when_an_engine_last_led(candidate: Leader) -> None:
    """It is written at each renewal by the holder, and outlives the lease. A damaged key costs nobody the lease."""
    keys = candidate.keys
    await candidate.store.acquire_lease("me", 5.0, None)
    taken_at = int(await candidate.call("GET", keys.led_at))
    assert taken_at <= (await candidate.call("TIME"))[0]
    for holder, token, written in (("you", None, False), ("me", "1:me", True)):
        await candidate.call("SET", keys.led_at, "0")
        await candidate.store.acquire_lease(holder, 5.0, token)
        assert (int(await candidate.call("GET", keys.led_at)) >= taken_at) is written
    await candidate.store.release_lease("1:me")
    assert await candidate.call("PTTL", keys.led_at) == -1


async def test_a_full_server_costs_no_engine_its_lease() -> None:
    """A renewal needs no memory."""
    with EmbeddedServer(test_server_binary(), append_only=False) as server:
        async with connect(RedisSettings(url=server.url), "test") as client:
            store = Store(client, Keys("full"), SystemClock())
            await store.acquire_lease("me", 60.0, None)
            await client.config_set("maxmemory", 1)
            await client.delete(store.keys.led_at)
            assert await store.acquire_lease("me", 60.0, "1:me") == (LeaseCode.RENEWED, "1:me")


async def test_only_the_holder_releases_a_lease(candidate: Leader) -> None:
    """A standby then takes it at once, under the next epoch."""
    await candidate.store.acquire_lease("me", 5.0, None)
    assert await candidate.store.release_lease("1:you") is False
    assert await candidate.store.release_lease("1:me") is True
    assert await candidate.store.release_lease("1:me") is False
    assert await candidate.store.acquire_lease("you", 5.0, None) == (LeaseCode.TAKEN, "2:you")


async def test_published_messages_are_queued_in_order_or_not_at_all(leader: Leader) -> None:
    """A push may arrive after a later one of the same epoch, or from a former leader."""
    for token, number, message in (
        ("1:me", 1, b"a"),
        ("1:me", 3, b"c"),
        ("1:me", 2, b"late"),
        ("1:me", 3, b"again"),
        ("2:you", 1, b"d"),
        ("1:me", 4, b"stale"),
    ):
        await leader.store.push_published(token, number, [message, message + b"'"])
    queued = await leader.call("LRANGE", leader.keys.response_queue, 0, -1)
    assert queued[::-1] == [b"a", b"a'", b"c", b"c'", b"d", b"d'"]
    assert await leader.call("GET", leader.keys.publication_cursor) == b"2:1"
