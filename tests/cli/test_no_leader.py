"""Laws of commands while no engine leads: they say so on standard error, and their output stays clean."""

import signal
import time
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from aism_engine.clock import iso
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.cli.conftest import Call, Start
from tests.support.engine import Client, eventually, running_engine

STALE = "warning: no engine has led for 5h: this data was written by the last leader. Start one: aism-engine run\n"
READS = ("agents list", "commands list", "commands list --ended", "dead-letters list", "divergences", "top --once")


@pytest.fixture
async def keys(redis_client: Redis, prefix: str) -> Keys:
    """A fleet that an engine led until five hours ago."""
    keys = Keys(prefix)
    await redis_client.set(keys.led_at, int(time.time()) - 5 * 3600)
    return keys


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("words", READS)
async def test_every_command_that_reads_says_that_no_engine_leads(fleet: Call, words: str) -> None:
    done = await fleet(*words.split(), "--json")
    assert (done.code, done.err) == (0, STALE)
    assert done.json is not None


@pytest.mark.parametrize("words", READS)
@pytest.mark.usefixtures("engine")
async def test_nothing_is_said_while_an_engine_leads(fleet: Call, words: str) -> None:
    done = await fleet(*words.split())
    assert (done.code, done.err) == (0, "")


async def test_an_engine_that_stops_is_missed_at_once(fleet: Call, server: EmbeddedServer, prefix: str) -> None:
    with capture_logs():
        async with running_engine(server, prefix):
            pass
    assert "warning: no engine has led for " in (await fleet("agents", "list")).err


async def test_a_fleet_that_no_engine_has_led_may_have_another_name(fleet: Call) -> None:
    done = await fleet("agents", "list")
    expected = "warning: no engine is known to have led this fleet: check the server and the prefix. "
    assert (done.code, done.err) == (0, f"{expected}Start one: aism-engine run\n")


async def test_top_has_the_leader_in_its_json(fleet: Call, keys: Keys, redis_client: Redis) -> None:
    led_at = float(await redis_client.get(keys.led_at) or 0)
    found = (await fleet("top", "--once", "--json")).json
    assert (found["leader"], found["led_at"]) == (None, iso(led_at))


@pytest.mark.parametrize("words", ["pause --all", "dead-letters replay 1-0", "dead-letters purge 1-0"])
async def test_a_request_without_a_leader_says_so_at_once_and_at_the_end(
    fleet: Call, keys: Keys, redis_client: Redis, words: str
) -> None:
    fields: dict[Any, Any] = {"code": "x", "reason": "x", "source": "commands", "raw": "", "digest": "", "size": 0}
    await redis_client.xadd(keys.dead_letters, fields, "1-0")
    done = await fleet(*words.split(), "--timeout", "0.1")
    notice, error = done.err.splitlines()
    assert done.code == 2
    assert notice.startswith("warning: no engine has led for 5h: the request waits until one leads.")
    assert error.startswith("error: no engine has replied within 100ms, and no engine has led for 5h. Request ")


async def test_a_command_that_runs_says_when_that_changes(
    start: Start, server: EmbeddedServer, keys: Keys, redis_client: Redis
) -> None:
    await redis_client.set(keys.lease, "1:me")
    tail = start("tail", "--redis", server.url, "--prefix", keys.prefix)
    assert tail.stderr is not None
    await eventually(partial(_is_subscribed, redis_client, keys))
    await redis_client.delete(keys.lease)
    assert tail.stderr.readline().startswith("warning: no engine has led for 5h: new facts are printed when one leads.")
    await redis_client.set(keys.lease, "2:me")
    assert tail.stderr.readline() == "an engine leads again\n"
    tail.send_signal(signal.SIGINT)
    assert (tail.wait(), tail.stderr.read()) == (0, "")


async def test_a_user_who_may_not_read_the_lease_is_told_nothing(
    cli: Call, server: EmbeddedServer, keys: Keys, redis_client: Client
) -> None:
    """The command does its work."""
    user = f"{keys.prefix}-operator"
    rules = ("on", ">secret", "resetchannels", f"~{keys.prefix}:agents:*", f"~{keys.deadlines}", "+@all")
    await redis_client.execute_command("ACL", "SETUSER", user, *rules, f"~{keys.silent}")
    try:
        done = await cli(
            "agents", "list", "--redis", server.url.replace("//", f"//{user}:secret@"), "--prefix", keys.prefix
        )
        assert (done.code, done.err) == (0, "")
    finally:
        await redis_client.execute_command("ACL", "DELUSER", user)


async def _is_subscribed(client: Redis, keys: Keys) -> bool:
    ((_, count),) = await client.pubsub_numsub(keys.measurements)
    return bool(count)
