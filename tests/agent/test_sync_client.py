"""Laws of `SyncAgentClient` and `SyncRedis`: quick to import, and persistent across outages."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aism_engine.agent.sync_client import SyncAgentClient
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.sync_redis import SyncRedis
from tests.support.engine import eventually, plain_client, running_engine
from tests.support.server import OwnServer

HEAVY = ("redis", "msgspec", "asyncio", "structlog", "typer", "ssl", "prometheus_client", "importlib.metadata")


def test_aism_imports_no_slow_module() -> None:
    """Every call from a shell pays for the imports."""
    found = "import sys, aism_engine.agent.tool; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout.split()
    assert set(HEAVY) & set(modules) == set()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with a Unix socket that the test may kill."""
    extra = ("--unixsocket", str(tmp_path / "socket"))
    with OwnServer(extra=extra) as server:
        yield server


def test_every_form_of_a_url_is_accepted(own: EmbeddedServer, tmp_path: Path) -> None:
    """With a Unix socket, a database, a password, a user; anything else is a ValueError."""
    address = f"127.0.0.1:{own.port}"
    redis = SyncRedis(f"redis://{address}/3")
    redis.call("ACL", "SETUSER", "ann", "on", ">s%c@t", "allkeys", "allcommands", "allchannels")
    redis.call("SET", "here", "3")
    redis.close()
    for url in (f"redis://ann:s%25c%40t@{address}/3", f"unix://{tmp_path}/socket?db=3"):
        redis = SyncRedis(url)
        assert redis.call("GET", "here") == b"3"
        redis.close()
    with pytest.raises(ServerUnavailableError, match="noauth"):
        SyncRedis(f"redis://ann:wrong@{address}/0")
    for url in ("http://localhost", "unix://", "localhost:6379", ""):
        with pytest.raises(ValueError, match="expected redis://HOST"):
            SyncRedis(url)


def test_large_replies_are_read_completely_and_in_order(own: EmbeddedServer) -> None:
    redis, value = SyncRedis(own.url), b"x" * 3_000_000
    assert redis.calls([("SET", "k", value), ("GET", "k"), ("PING",)]) == [b"OK", value, b"PONG"]
    redis.close()


async def test_the_wait_for_a_reply_survives_a_restart_of_the_server(own: EmbeddedServer, prefix: str) -> None:
    """The message is in the queue; the client connects again."""
    client = SyncAgentClient("a", own.url, prefix)
    waiting = asyncio.ensure_future(asyncio.to_thread(client.send, "register", {"type": "scribe"}, None, 100.0))
    async with plain_client(own) as plain:
        await eventually(lambda: plain.llen(f"{prefix}:engine:response_queue"))
    own.kill()
    own.start()
    async with running_engine(own, prefix) as running:
        assert (await waiting)["ok"]
        assert len(await running.audit("agent_registered")) == 1
    client.close()


async def test_a_message_is_pushed_and_then_the_agent_published(own: EmbeddedServer, prefix: str) -> None:
    """As `AgentClient` does."""
    client = SyncAgentClient("a", own.url, prefix)
    async with plain_client(own) as plain, plain.pubsub() as pubsub:
        await pubsub.subscribe(client.keys.responses)
        await pubsub.get_message(timeout=300)
        await plain.lpush(client.keys.commands("a"), b"no json")
        assert await asyncio.to_thread(client.pop, client.keys.commands("a"), 0.0, "malformed_command") is None
        event = await pubsub.get_message(timeout=300)
        assert await plain.llen(client.keys.response_queue) == 1
    assert event["data"] == b"a"
    client.close()


async def test_malformed_entries_are_reported_and_skipped(own: EmbeddedServer, prefix: str) -> None:
    """MessagePack is decoded: the agent may have registered with that codec elsewhere."""
    client = SyncAgentClient("a", own.url, prefix)
    key = client.keys.commands("a")
    async with plain_client(own) as plain:
        too_deep = b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"
        await plain.lpush(key, b"no json", b"[1]", b'{"id": "\xff"}', too_deep, b"\x81\xa2id\xa2c1")
        assert await asyncio.to_thread(client.pop, key, 0.0, "malformed_command") == {"id": "c1"}
        assert await asyncio.to_thread(client.pop, key, 0.05, "malformed_command") is None
        reports = [json.loads(each) for each in await plain.lrange(client.keys.response_queue, 0, -1)]
        assert [(each["type"], each["payload"]["code"]) for each in reports] == [("error", "malformed_command")] * 4
    client.close()


async def test_no_reply_is_a_timeout_and_the_message_stays_queued(own: EmbeddedServer, prefix: str) -> None:
    """An engine that starts later applies it."""
    client = SyncAgentClient("a", own.url, prefix)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(client.send, "register", {"type": "scribe"}, None, 0.05)
    client.close()
    async with running_engine(own, prefix) as running:
        await eventually(lambda: running.audit("agent_registered"))


async def test_a_push_without_confirmation_is_applied_once(own: EmbeddedServer, prefix: str) -> None:
    """It is pushed again under the same id, which the engine ignores."""
    client = SyncAgentClient("a", own.url, prefix)
    calls = SyncRedis.calls

    def lost(self: SyncRedis, *arguments: object, **options: object) -> object:
        SyncRedis.calls = calls  # type: ignore[method-assign]
        calls(self, *arguments, **options)  # type: ignore[arg-type]
        raise ServerUnavailableError("connection", "the reply was lost")

    SyncRedis.calls = lost  # type: ignore[method-assign, assignment]
    try:
        async with running_engine(own, prefix) as running:
            assert (await asyncio.to_thread(client.send, "error", {"code": "oops"}, None, 100.0))["ok"]
            await eventually(running.is_drained)
            assert len(await running.audit("agent_error")) == 1
    finally:
        SyncRedis.calls = calls  # type: ignore[method-assign]
        client.close()
