"""Laws of `aism-engine health`."""

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
    """What the engine logs is none of what the command prints."""
    with capture_logs():
        yield


async def test_a_leader_is_ready_and_says_what_it_is(cli: Call, server: EmbeddedServer, prefix: str) -> None:
    """Each check by name, for people and for programs."""
    async with running_engine(server, prefix, **SERVING) as running:
        host, port = running.engine.http.address
        done = await cli("health", "--http", f"{host}:{port}", "--json")
        assert (done.code, done.json["status"], done.json["role"]) == (0, "ok", "leader")
        assert {"redis", "role", "consuming", "machines"} <= set(done.json["checks"])
        assert "leader" in (await cli("health", "--http", f"{host}:{port}")).out
        assert (await cli("health", "--live", "--http", f"{host}:{port}")).out == "ok\n"


async def test_one_without_redis_is_not_ready_and_worth_keeping(cli: Call, prefix: str) -> None:
    """So that a container is taken out of service, and not restarted for nothing."""
    with EmbeddedServer() as own:
        async with launched(own, prefix, **SERVING) as running:
            await eventually(lambda: running.engine.http.address)
            own.kill()
            await eventually(lambda: running.outage == "refused")
            host, port = running.engine.http.address
            done = await cli("health", "--http", f"{host}:{port}", "--json")
            assert (done.code, done.json["checks"]["redis"]) == (1, {"ok": False, "detail": "refused"})
            assert (await cli("health", "--live", "--http", f"{host}:{port}", "--json")).json == {"status": "ok"}


async def test_a_standby_is_ready_and_says_what_it_is(cli: Call, server: EmbeddedServer, prefix: str) -> None:
    """It serves by waiting: whoever counts replicas counts it in."""
    async with running_engine(server, prefix), launched(server, prefix, **SERVING) as standby:
        await eventually(lambda: standby.engine.outages.current is None)
        host, port = standby.engine.http.address
        done = await cli("health", "--http", f"{host}:{port}", "--json")
        assert (done.code, done.json["role"]) == (0, "standby")
        assert done.json["checks"]["consuming"] == {"ok": True, "detail": "on standby"}


@pytest.mark.parametrize(("listens", "asked"), [("::1", "::1"), ("::", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])  # noqa: S104
async def test_an_engine_is_found_wherever_it_listens(
    cli: Call, server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch, listens: str, asked: str
) -> None:
    """By the settings, and by an address of either family."""
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
        pytest.skip("there is no IPv6 here")


async def test_nobody_there_is_1_and_says_what_to_do(cli: Call) -> None:
    """One line, no traceback."""
    done = await cli("health", "--http", "[::1]:1")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "at [::1]:1: " in done.err
    assert "--http" in done.err


@pytest.mark.parametrize(
    ("name", "value", "reason"), [("ENABLED", "false", "http.enabled is off"), ("PORT", "0", "http.port is 0")]
)
async def test_where_nobody_can_be_found_that_is_the_reason(
    cli: Call, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """By the settings there is nobody to ask: no other process on the usual port is taken for our engine."""
    monkeypatch.setenv(f"AISM_HTTP__{name}", value)
    done = await cli("health")
    assert (done.code, done.out) == (1, "")
    assert reason in done.err


@pytest.mark.parametrize("option", [(), ("--live",)])
@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"state":"ok"}'])
async def test_what_is_no_engine_is_not_taken_for_one(cli: Call, option: tuple[str, ...], body: bytes) -> None:
    """That something answers 200 there does not make it well."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        done = await cli("health", "--http", f"127.0.0.1:{port}", *option)
    assert (done.code, done.out) == (1, "")
    assert "no engine of ours" in done.err
