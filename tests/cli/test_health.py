"""Laws of `aism-engine health`."""

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


@pytest.mark.parametrize("address", ["127.0.0.1:1"])
async def test_nobody_there_is_1_and_says_what_to_do(cli: Call, address: str) -> None:
    """One line, no traceback."""
    done = await cli("health", "--http", address)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "--http" in done.err
