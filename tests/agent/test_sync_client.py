"""Laws of what `aism` stands on: quick to import, and hard to shake off."""

import asyncio
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
from tests.support.server import test_server_binary

HEAVY = ("redis", "msgspec", "asyncio", "structlog", "typer", "ssl", "prometheus_client", "importlib.metadata")


def test_it_imports_nothing_that_takes_its_time() -> None:
    """Every call of an agent from its shell pays for what is imported here."""
    found = "import sys, aism_engine.agent.tool; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout.split()
    assert set(HEAVY) & set(modules) == set()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with a socket in the file system, that may be treated badly."""
    extra = ("--unixsocket", str(tmp_path / "socket"))
    with EmbeddedServer(test_server_binary(), append_fsync="always", extra=extra) as server:
        yield server


def test_every_form_of_a_url_is_understood(own: EmbeddedServer, tmp_path: Path) -> None:
    """With a socket, a database, a password, a user; what is none of them is a wrong usage."""
    place = f"127.0.0.1:{own.port}"
    wire = SyncRedis.open(f"redis://{place}/3")
    wire.call("ACL", "SETUSER", "ann", "on", ">s%c@t", "allkeys", "allcommands", "allchannels")
    wire.call("SET", "here", "3")
    wire.close()
    for url in (f"redis://ann:s%25c%40t@{place}/3", f"unix://{tmp_path}/socket?db=3"):
        wire = SyncRedis.open(url)
        assert wire.call("GET", "here") == b"3"
        wire.close()
    with pytest.raises(ServerUnavailableError, match="noauth"):
        SyncRedis.open(f"redis://ann:wrong@{place}/0")
    for url in ("http://localhost", "unix://", "localhost:6379", ""):
        with pytest.raises(ValueError, match="expected redis://HOST"):
            SyncRedis.open(url)


def test_a_reply_of_any_size_is_read_whole(own: EmbeddedServer) -> None:
    """However many pieces it comes in, and several of them in order."""
    wire, value = SyncRedis.open(own.url), b"x" * 3_000_000
    assert wire.calls([("SET", "k", value), ("GET", "k"), ("PING",)]) == [b"OK", value, b"PONG"]
    wire.close()


async def test_an_answer_is_waited_for_across_a_restart_of_the_server(own: EmbeddedServer, prefix: str) -> None:
    """The message lies in the queue; who asked connects again, and hears what became of it."""
    client = SyncAgentClient("a", own.url, prefix)
    waiting = asyncio.ensure_future(asyncio.to_thread(client.say, "register", {"type": "scribe"}, None, 30.0))
    async with plain_client(own) as plain:
        await eventually(lambda: plain.llen(f"{prefix}:engine:response_queue"))
    own.kill()
    own.start()
    async with running_engine(own, prefix) as running:
        assert (await waiting)["ok"]
        assert len(await running.audit("agent_registered")) == 1
    client.close()


async def test_what_is_no_message_is_passed_over(own: EmbeddedServer, prefix: str) -> None:
    """Anyone may have pushed anything; an agent that registered for MessagePack elsewhere is understood."""
    client = SyncAgentClient("a", own.url, prefix)
    key = client.keys.commands("a")
    async with plain_client(own) as plain:
        await plain.lpush(key, b"no json", b"[1]", b"\x81\xa2id\xa2c1")
        assert await asyncio.to_thread(client.pop, key, 0.0) == {"id": "c1"}
        assert await asyncio.to_thread(client.pop, key, 0.05) is None
    client.close()


async def test_an_answer_that_never_comes_is_a_timeout_and_the_message_stays(own: EmbeddedServer, prefix: str) -> None:
    """No engine is there; when one comes, what was said is applied."""
    client = SyncAgentClient("a", own.url, prefix)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(client.say, "register", {"type": "scribe"}, None, 0.05)
    client.close()
    async with running_engine(own, prefix) as running:
        await eventually(lambda: running.audit("agent_registered"))


async def test_a_push_whose_reply_is_lost_is_applied_once(own: EmbeddedServer, prefix: str) -> None:
    """It is pushed again under the same id, and the engine takes the second copy for none."""
    client = SyncAgentClient("a", own.url, prefix)
    calls = SyncRedis.calls

    def lost(self: SyncRedis, *arguments: object, **options: object) -> object:
        SyncRedis.calls = calls  # type: ignore[method-assign]
        calls(self, *arguments, **options)  # type: ignore[arg-type]
        raise ServerUnavailableError("connection", "the reply was lost")

    SyncRedis.calls = lost  # type: ignore[method-assign, assignment]
    try:
        async with running_engine(own, prefix) as running:
            assert (await asyncio.to_thread(client.say, "error", {"code": "oops"}, None, 5.0))["ok"]
            await eventually(running.is_drained)
            assert len(await running.audit("agent_error")) == 1
    finally:
        SyncRedis.calls = calls  # type: ignore[method-assign]
        client.close()
