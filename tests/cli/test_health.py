"""Laws of `health`."""

import asyncio
import errno
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call
from tests.support.engine import eventually, launched, running_engine

SERVING = {"http__enabled": True, "http__port": 0}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep the logs of the engine out of the output of the command."""
    with capture_logs():
        yield


async def test_a_leader_is_ready(cli: Call, server: EmbeddedServer, prefix: str) -> None:
    async with running_engine(server, prefix, **SERVING) as running:
        host, port = running.engine.http.address
        ended = await cli("health", "--http", f"{host}:{port}", "--json")
        assert (ended.code, ended.json["status"], ended.json["role"]) == (0, "ok", "leader")
        assert {"redis", "role", "consuming", "machines"} <= set(ended.json["checks"])
        assert "leader" in (await cli("health", "--http", f"{host}:{port}")).out
        assert (await cli("health", "--live", "--http", f"{host}:{port}")).out == "ok\n"


async def test_an_engine_without_redis_is_live_and_not_ready(cli: Call, prefix: str) -> None:
    """A container is taken out of service, and not restarted."""
    with EmbeddedServer() as own:
        async with launched(own, prefix, **SERVING) as running:
            await eventually(lambda: running.engine.http.address)
            own.kill()
            await eventually(lambda: running.outage == "refused")
            host, port = running.engine.http.address
            ended = await cli("health", "--http", f"{host}:{port}", "--json")
            assert (ended.code, ended.json["checks"]["redis"]) == (1, {"ok": False, "detail": "refused"})
            assert (await cli("health", "--live", "--http", f"{host}:{port}", "--json")).json == {"status": "ok"}


async def test_a_standby_is_ready(cli: Call, server: EmbeddedServer, prefix: str) -> None:
    async with running_engine(server, prefix), launched(server, prefix, **SERVING) as standby:
        await eventually(lambda: standby.engine.outages.current is None)
        host, port = standby.engine.http.address
        ended = await cli("health", "--http", f"{host}:{port}", "--json")
        assert (ended.code, ended.json["role"]) == (0, "standby")
        assert ended.json["checks"]["consuming"] == {"ok": True, "detail": "on standby"}


@pytest.mark.parametrize(("listens", "asked"), [("::1", "::1"), ("::", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])  # noqa: S104
async def test_every_listening_address_is_reached(
    cli: Call, server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch, listens: str, asked: str
) -> None:
    """By the flag and by the settings, for IPv4 and IPv6."""
    try:
        async with running_engine(server, prefix, http__enabled=True, http__port=0, http__host=listens) as running:
            port = running.engine.http.address[1]
            named = f"[{asked}]:{port}" if ":" in asked else f"{asked}:{port}"
            assert (await cli("health", "--http", named)).code == 0
            monkeypatch.setenv("AISM_HTTP__HOST", listens)
            monkeypatch.setenv("AISM_HTTP__PORT", str(port))
            assert (await cli("health")).code == 0
    except OSError as error:
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise
        pytest.skip("this machine has no IPv6")


async def test_no_engine_is_1_and_one_line(cli: Call) -> None:
    ended = await cli("health", "--http", "[::1]:1")
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "at [::1]:1: " in ended.err
    assert "--http" in ended.err


@pytest.mark.parametrize(
    ("name", "value", "reason"), [("ENABLED", "false", "http.enabled is false"), ("PORT", "0", "http.port is 0")]
)
async def test_settings_without_an_address_are_1_with_the_reason(
    cli: Call, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """The command does not ask another process on the default port."""
    monkeypatch.setenv(f"AISM_HTTP__{name}", value)
    ended = await cli("health")
    assert (ended.code, ended.out) == (1, "")
    assert reason in ended.err


@pytest.mark.parametrize("option", [(), ("--live",)])
@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"state":"ok"}'])
async def test_another_server_at_the_address_is_1(cli: Call, option: tuple[str, ...], body: bytes) -> None:
    """A reply with status 200 is not enough."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        ended = await cli("health", "--http", f"127.0.0.1:{port}", *option)
    assert (ended.code, ended.out) == (1, "")
    assert "is not an AISM Engine" in ended.err
