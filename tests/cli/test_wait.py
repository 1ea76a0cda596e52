"""Laws of waiting for an outcome: `commands wait`, `send --wait` and `Operator.wait`."""

import asyncio
import os
import pty
import re
import signal
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

import pytest
from redis.asyncio import Redis

from aism_engine.cli.admin import format_progress
from aism_engine.clock import iso
from aism_engine.ops.admin_client import AdminClient
from aism_engine.settings import RedisSettings
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.cli.conftest import Call, Start, has_status, response
from tests.support.engine import Client, Running, eventually, plain_client
from tests.support.server import OwnServer

QUEUED = {"agent_id": "w-0", "type": "work", "status": "queued", "attempt": "1", "max_attempts": "5"}

_INTERRUPTED: Final = """
import asyncio, signal, sys
from contextlib import suppress
from aism_engine.cli.admin import call_fleet
from aism_engine.settings import RedisSettings

async def act(_admin):
    signal.raise_signal(signal.SIGINT)
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    for _ in range(100):
        await asyncio.sleep(0)
    print("goes on")

try:
    call_fleet(RedisSettings(url=sys.argv[1]), act)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """A server that the test may restart."""
    with OwnServer() as server:
        yield server


async def _save(client: Client, keys: Keys, command_id: str, expires_at: float, **fields: str) -> None:
    record = {**QUEUED, "accepted_at": iso(expires_at - 60), "expires_at": iso(expires_at), **fields}
    await client.hset(keys.command(command_id), mapping=record)


async def test_a_wait_ends_with_the_command(fleet: Call, engine: Running) -> None:
    """Without a limit of its own."""
    sending = asyncio.create_task(fleet("send", "w-0", "work", "--id", "c-1", "--wait"))
    await eventually(partial(has_status, engine, "c-1", "queued"))
    await engine.say(response("w-0", "result", "c-1"))
    assert (await sending).out == "c-1 succeeded\n"
    sent = await fleet("send", "w-0", "work", "--wait", "--ttl", "0.1")
    assert (sent.code, sent.out.split()[1]) == (1, "expired")
    sent = await fleet("send", "--select", "id=w-0", "work", "--id", "all", "--wait", "--ttl", "0.1")
    assert (sent.code, sent.out) == (1, "all failed (1 expired, of 1)\n")


@pytest.mark.parametrize("kind", ["command", "group"])
async def test_a_wait_for_an_expired_command_ends_if_no_engine_leads(
    fleet: Call, redis_client: Redis, prefix: str, kind: str
) -> None:
    """The engine is given some time to lead again."""
    keys = Keys(prefix)
    await redis_client.set(keys.led_at, int(time.time()) - 5 * 3600)
    await _save(redis_client, keys, "c-1", time.time() - 3600)
    if kind == "group":
        await redis_client.hdel(keys.command("c-1"), "agent_id")
        await redis_client.rename(keys.command("c-1"), keys.group("c-1"))
    waited = await fleet("commands", "wait", "c-1")
    notice, error = waited.err.splitlines()
    assert (waited.code, waited.out) == (2, "")
    assert notice.startswith("warning: no engine has led for 5h: outcomes are recorded when one leads.")
    assert error == (
        "error: c-1 is still queued, and no engine has led for 5h. To wait longer: aism-engine commands wait c-1"
    )


async def test_a_wait_goes_on_while_an_engine_can_end_what_has_expired(redis_client: Redis, prefix: str) -> None:
    """An engine leads, or the command has not expired yet."""
    keys = Keys(prefix)
    looked = asyncio.Event()
    looks = 0

    def report(_record: Mapping[str, str], _problem: str) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            looked.set()

    url = f"redis://127.0.0.1:{redis_client.connection_pool.connection_kwargs['port']}/0"
    for command_id, expires_at, token in (("c-1", time.time() - 3600, "1:me"), ("c-2", time.time() + 3600, "")):
        await _save(redis_client, keys, command_id, expires_at)
        await redis_client.set(keys.lease, token)
        looks = 0
        looked.clear()
        async with AdminClient.connect(RedisSettings(url=url, prefix=prefix)) as admin:
            waiting = asyncio.create_task(admin.wait(command_id, report=report))
            await looked.wait()
            await redis_client.hset(keys.command(command_id), "status", "expired")
            assert (await waiting)["status"] == "expired"


async def test_a_wait_survives_a_restart_of_the_server(own_server: OwnServer, prefix: str) -> None:
    keys = Keys(prefix)
    problems: list[str] = []
    settings = RedisSettings(url=own_server.url, prefix=prefix)
    async with plain_client(own_server) as client, AdminClient.connect(settings) as admin:
        await client.set(keys.lease, "1:me")
        await _save(client, keys, "c-1", time.time() + 3600)
        waiting = asyncio.create_task(admin.wait("c-1", report=lambda _record, problem: problems.append(problem)))
        await eventually(lambda: "" in problems)
        own_server.kill()
        await eventually(lambda: problems[-1].startswith("Redis is not available: "))
        own_server.start()
        await eventually(lambda: problems[-1] == "")
        await client.hset(keys.command("c-1"), "status", "succeeded")
        assert (await waiting)["status"] == "succeeded"


async def test_a_request_survives_a_restart_of_the_server(own_server: OwnServer, prefix: str) -> None:
    """Its reply is still read."""
    keys, settings = Keys(prefix), RedisSettings(url=own_server.url, prefix=prefix)
    async with plain_client(own_server) as client, AdminClient.connect(settings) as admin:
        asking = asyncio.create_task(admin.request("pause", {"all": True}, request_id="r-1", timeout_s=300))
        await eventually(lambda: client.llen(keys.request_queue))
        own_server.restart()
        async with plain_client(own_server) as again:
            await again.lpush(keys.request_reply("r-1"), '{"ok":true}')
        assert await asking == {"ok": True}


async def test_interrupting_a_request_says_that_it_stays_queued(
    start: Start, server: EmbeddedServer, redis_client: Client, prefix: str
) -> None:
    process = start("send", "w-0", "work", "--id", "c-1", "--redis", server.url, "--prefix", prefix)
    await eventually(lambda: redis_client.llen(Keys(prefix).request_queue))
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.to_thread(process.communicate)
    assert (process.returncode, err.splitlines()[-1]) == (130, "request c-1 stays queued and may still be accepted")


async def test_interrupting_a_wait_says_how_to_go_on(
    start: Start, server: EmbeddedServer, redis_client: Redis, prefix: str
) -> None:
    """On a terminal a line shows how far the command is."""
    keys = Keys(prefix)
    await redis_client.set(keys.lease, "1:me")
    progress = {"status": "acked", "attempt": "2", "percent": "40", "note": "compiling"}
    await _save(redis_client, keys, "c-1", time.time() + 3600, **progress)
    ours, theirs = pty.openpty()
    process = start("commands", "wait", "c-1", "--redis", server.url, "--prefix", prefix, stderr=theirs)
    os.close(theirs)
    shown = await _read_until(ours, b"compiling")
    assert re.search(rb"c-1: acked, [0-9.]+s, attempt 2 of 5, 40%, compiling", shown)
    process.send_signal(signal.SIGINT)
    assert b"To wait longer: aism-engine commands wait c-1" in await _read_until(ours, b"wait c-1")
    assert await asyncio.to_thread(process.wait) == 130
    os.close(ours)


async def test_an_interrupt_is_not_taken_for_the_end_of_a_timeout(start: Start, server: EmbeddedServer) -> None:
    """Such a timeout begins in a read of published messages: `tail` did not end at Ctrl-C."""
    process = start(server.url, program=_INTERRUPTED)
    out, _ = await asyncio.to_thread(process.communicate)
    assert out == "interrupted\n"


async def _read_until(terminal: int, expected: bytes) -> bytes:
    """Read what is shown on a terminal until it has this text."""
    shown = b""
    while expected not in shown:
        shown += await asyncio.to_thread(os.read, terminal, 4096)
    return shown


@pytest.mark.parametrize(
    ("fields", "problem", "expected"),
    [
        ({"status": "waiting", "attempt": "0"}, "", "waiting, 3.0s"),
        ({"status": "acked"}, "", "acked, 3.0s, attempt 1 of 5"),
        ({"status": "acked", "percent": "7", "note": "\x1b[2J"}, "", r"acked, 3.0s, attempt 1 of 5, 7%, \x1b[2J"),
        ({"status": "acked", "percent": "7"}, "no engine has led for 4m", "acked, 3.0s, no engine has led for 4m"),
    ],
)
def test_progress_is_what_is_known_or_the_reason_that_nothing_goes_on(
    fields: dict[str, str], problem: str, expected: str
) -> None:
    assert format_progress({"command_id": "c-1", **QUEUED, **fields}, 3.0, problem) == expected


async def test_a_request_without_a_reply_names_the_request_and_the_missing_leader(
    redis_client: Redis, server: EmbeddedServer, prefix: str
) -> None:
    await redis_client.set(Keys(prefix).led_at, int(time.time()) - 5 * 3600)
    async with AdminClient.connect(RedisSettings(url=server.url, prefix=prefix)) as admin:
        with pytest.raises(
            TimeoutError, match=r"within 100ms, and no engine has led for 5h\. Request r-1 stays queued"
        ):
            await admin.request("pause", {"all": True}, request_id="r-1", timeout_s=0.1)
