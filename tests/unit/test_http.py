"""Laws of the HTTP endpoints, tested over real sockets."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http.client import HTTPConnection, HTTPResponse

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from aism_engine.http.replies import HealthCheck
from aism_engine.http.routes import create_app
from aism_engine.http.server import HttpServer
from aism_engine.settings import HttpSettings

ALL_CHECKS = {"status": "ok", "role": "leader", "checks": {"redis": {"ok": True, "detail": "3 ms"}}}


class FakeHealth:
    """A health that the test sets."""

    def __init__(self) -> None:
        self.is_live = True
        self.found_checks = {"redis": HealthCheck(ok=True, detail="3 ms")}

    def live(self) -> bool:
        return self.is_live

    def role(self) -> str:
        return "leader"

    def checks(self) -> Mapping[str, HealthCheck]:
        return self.found_checks


class Reply:
    """A response that was read to its end."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.type = response.headers["content-type"]
        self.text = response.read().decode()


class Client:
    """An HTTP client with one connection per request."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    async def request(self, path: str, accept: str | None = None, method: str = "GET") -> Reply:
        return await asyncio.to_thread(self._request, method, path, {} if accept is None else {"Accept": accept})

    def _request(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        connection = HTTPConnection(*self.address, timeout=300)
        try:
            connection.request(method, path, headers=headers)
            return Reply(connection.getresponse())
        finally:
            connection.close()


@asynccontextmanager
async def serving(server: HttpServer) -> AsyncIterator[asyncio.Task[None]]:
    server.bind()
    task = asyncio.create_task(server.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def health() -> FakeHealth:
    return FakeHealth()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("responses", "Responses applied.", registry=registry).inc(3)
    return registry


@pytest.fixture
def server(registry: CollectorRegistry, health: FakeHealth) -> HttpServer:
    return HttpServer(create_app(registry, health), HttpSettings(port=0))


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[Client]:
    async with serving(server):
        yield Client(server.address)


async def test_index_lists_every_endpoint(client: Client) -> None:
    reply = await client.request("/")
    assert reply.status == 200
    for path in ("/metrics", "/livez", "/healthz", "/readyz"):
        assert path in reply.text
        assert (await client.request(path)).status == 200


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "text/plain;version=nonsense"])
async def test_metrics_are_in_the_text_format_by_default(client: Client, accept: str | None) -> None:
    """Without an Accept header, or with one that makes no sense, the format is text 0.0.4."""
    reply = await client.request("/metrics", accept)
    assert (reply.status, reply.type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "responses_total 3.0\n" in reply.text


async def test_metrics_are_openmetrics_if_the_client_prefers_it(client: Client) -> None:
    reply = await client.request("/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert reply.type.startswith("application/openmetrics-text; version=1.0.0;")
    assert reply.text.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/livez", "/healthz"])
async def test_livez_replies_503_if_the_engine_makes_no_progress(client: Client, health: FakeHealth, path: str) -> None:
    """Readiness does not matter."""
    health.found_checks["redis"] = HealthCheck(ok=False, detail="refused")
    assert ((await client.request(path)).status, (await client.request(path)).text) == (200, "ok\n")
    health.is_live = False
    assert ((await client.request(path)).status, (await client.request(path)).text) == (503, "failed\n")


async def test_readyz_lists_the_failed_checks_in_one_line(client: Client, health: FakeHealth) -> None:
    """The status is 200 if no check failed, else 503."""
    ready = await client.request("/readyz")
    assert (ready.status, ready.text) == (200, "ok\n")
    health.found_checks |= {
        "redis": HealthCheck(ok=False, detail="refused"),
        "response_consumer": HealthCheck(ok=False, detail="behind"),
    }
    unready = await client.request("/readyz")
    assert (unready.status, unready.text) == (503, "failed: redis (refused), response_consumer (behind)\n")


@pytest.mark.parametrize(("path", "accept"), [("/readyz?verbose", None), ("/readyz", "application/json")])
async def test_verbose_readyz_lists_every_check(
    client: Client, health: FakeHealth, path: str, accept: str | None
) -> None:
    """With the status, the role and the detail of each check, as JSON."""
    ready = await client.request(path, accept)
    assert (ready.status, ready.type) == (200, "application/json")
    assert json.loads(ready.text) == ALL_CHECKS
    health.found_checks["lease"] = HealthCheck(ok=False, detail="lost")
    unready = await client.request(path, accept)
    assert unready.status == 503
    assert json.loads(unready.text) == {
        "status": "failed",
        "role": "leader",
        "checks": {"redis": {"ok": True, "detail": "3 ms"}, "lease": {"ok": False, "detail": "lost"}},
    }


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz"])
async def test_head_is_get_without_a_body(client: Client, path: str) -> None:
    head, get = await client.request(path, method="HEAD"), await client.request(path)
    assert (head.status, head.type, head.text) == (get.status, get.type, "")


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "//", "/%00"])
async def test_unknown_path_is_not_found(client: Client, path: str) -> None:
    """A trailing slash is not redirected."""
    reply = await client.request(path)
    assert (reply.status, reply.type) == (404, "text/plain; charset=utf-8")


async def test_other_methods_are_refused(client: Client) -> None:
    assert (await client.request("/livez", method="POST")).status == 405


async def test_no_header_names_the_server_software(client: Client) -> None:
    assert "server" not in (await client.request("/")).headers


async def test_bind_names_an_address_in_use() -> None:
    """The error of bind() is one line with the address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        host, port = holder.getsockname()
        server = HttpServer(create_app(CollectorRegistry(), FakeHealth()), HttpSettings(host=host, port=port))
        with pytest.raises(OSError, match=f"cannot serve HTTP at 127.0.0.1:{port}: Address already in use$"):
            server.bind()


async def test_restart_binds_the_same_port(server: HttpServer) -> None:
    """Also if the settings say port 0: bind() chooses a port once."""
    addresses = []
    for _ in range(2):
        async with serving(server):
            addresses.append(server.address)
            assert (await Client(server.address).request("/livez")).status == 200
    assert addresses[0] == addresses[1] != ("127.0.0.1", 0)


async def test_uvicorn_installs_no_signal_handlers(server: HttpServer) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with serving(server):
        await Client(server.address).request("/livez")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_stop_closes_idle_connections(server: HttpServer) -> None:
    """A client with a kept-alive connection reads the end of the stream."""
    async with serving(server):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"ok\n")
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*server.address)


async def test_stop_aborts_a_client_that_does_not_read_its_reply(
    server: HttpServer, registry: CollectorRegistry
) -> None:
    """The client gets only a part of the reply. Without the abort, the stop would never end."""
    size = 50_000_000
    Gauge("large", "x" * size, registry=registry)
    loop = asyncio.get_running_loop()
    async with serving(server) as task:
        with socket.create_connection(server.address) as client:
            await loop.run_in_executor(None, client.sendall, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await loop.run_in_executor(None, client.recv, 1)
            task.cancel()
            await asyncio.wait([task])
            client.settimeout(60)
            assert await loop.run_in_executor(None, count_to_the_end, client) < size


def count_to_the_end(client: socket.socket) -> int:
    """Return the number of bytes until the server closes the connection."""
    return sum(iter(lambda: len(client.recv(1 << 20)), 0))


async def test_verbose_readyz_is_text_if_the_client_prefers_it(client: Client, health: FakeHealth) -> None:
    """Each check is one line."""
    health.found_checks = {
        "redis": HealthCheck(ok=False, detail="refused"),
        "role": HealthCheck(ok=True, detail="standby"),
    }
    reply = await client.request("/readyz?verbose", "text/plain")
    assert (reply.status, reply.type) == (503, "text/plain; charset=utf-8")
    assert reply.text == "failed redis: refused\nok     role: standby\n"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/json", "json"),
        ("application/*;q=0.9, text/plain;q=0.2", "json"),
        ("application/json, text/plain;q=0.5", "json"),
        ("text/plain, application/json;q=0.5", "plain"),
        ("text/*, application/json;q=nonsense", "plain"),
        ("application/json;q=0, */*", "plain"),
        ("text/plain;q=0, */*", "json"),
    ],
)
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz?verbose"])
async def test_accept_header_chooses_json_or_text(client: Client, path: str, accept: str, expected: str) -> None:
    """By the quality values of RFC 9110, on every endpoint that has both."""
    reply = await client.request(path, accept)
    assert (reply.status, expected in reply.type) == (200, True)


@pytest.mark.parametrize("accept", [None, "*/*", "text/html", "image/*", "text/plain, application/json"])
async def test_without_a_preference_the_reply_is_text_and_of_verbose_json(client: Client, accept: str | None) -> None:
    types = [
        (await client.request(path, accept)).type.partition(";")[0] for path in ("/livez", "/readyz", "/readyz?verbose")
    ]
    assert types == ["text/plain", "text/plain", "application/json"]


async def test_livez_in_json_has_only_a_status(client: Client, health: FakeHealth) -> None:
    assert json.loads((await client.request("/livez", "application/json")).text) == {"status": "ok"}
    health.is_live = False
    dead = await client.request("/livez", "application/json")
    assert (dead.status, json.loads(dead.text)) == (503, {"status": "failed"})
