"""Laws of the HTTP face, asked over real sockets."""

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
from aism_engine.http.server import STOP_S, HttpServer
from aism_engine.settings import HttpSettings

NAMED = {"status": "ok", "role": "leader", "checks": {"redis": {"ok": True, "detail": "3 ms"}}}


class Engine:
    """The health of an engine, as a test wants it."""

    def __init__(self) -> None:
        self.alive = True
        self.found = {"redis": HealthCheck(ok=True, detail="3 ms")}

    def live(self) -> bool:
        return self.alive

    def role(self) -> str:
        return "leader"

    def checks(self) -> Mapping[str, HealthCheck]:
        return self.found


class Answer:
    """A response, read to its end."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.type = response.headers["content-type"]
        self.text = response.read().decode()


class Client:
    """Asks the server, one connection a question."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    async def ask(self, path: str, accept: str | None = None, method: str = "GET") -> Answer:
        return await asyncio.to_thread(self._ask, method, path, {} if accept is None else {"Accept": accept})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        connection = HTTPConnection(*self.address, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            return Answer(connection.getresponse())
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
def engine() -> Engine:
    return Engine()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("responses", "Responses applied.", registry=registry).inc(3)
    return registry


@pytest.fixture
def server(registry: CollectorRegistry, engine: Engine) -> HttpServer:
    return HttpServer(create_app(registry, engine), HttpSettings(port=0))


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[Client]:
    async with serving(server):
        yield Client(server.address)


async def test_the_index_names_every_endpoint(client: Client) -> None:
    """Whoever finds the port finds out what to ask it."""
    answer = await client.ask("/")
    assert answer.status == 200
    for path in ("/metrics", "/livez", "/healthz", "/readyz"):
        assert path in answer.text
        assert (await client.ask(path)).status == 200


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "text/plain;version=nonsense"])
async def test_metrics_are_text_by_default(client: Client, accept: str | None) -> None:
    """Without a wish, or with one that makes no sense, the metrics are in the text format 0.0.4."""
    answer = await client.ask("/metrics", accept)
    assert (answer.status, answer.type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "responses_total 3.0\n" in answer.text


async def test_metrics_are_openmetrics_where_it_is_asked_for(client: Client) -> None:
    """A scraper that accepts OpenMetrics gets it, down to its last line."""
    answer = await client.ask("/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert answer.type.startswith("application/openmetrics-text; version=1.0.0;")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/livez", "/healthz"])
async def test_liveness_is_told_by_the_status(client: Client, engine: Engine, path: str) -> None:
    """Live is 200, not live is 503; that the engine is not ready changes neither."""
    engine.found["redis"] = HealthCheck(ok=False, detail="refused")
    assert ((await client.ask(path)).status, (await client.ask(path)).text) == (200, "ok\n")
    engine.alive = False
    assert ((await client.ask(path)).status, (await client.ask(path)).text) == (503, "failed\n")


async def test_readiness_is_short_unless_more_is_asked_for(client: Client, engine: Engine) -> None:
    """Ready is 200; otherwise it is 503, and the line names the checks that failed."""
    ready = await client.ask("/readyz")
    assert (ready.status, ready.text) == (200, "ok\n")
    engine.found |= {
        "redis": HealthCheck(ok=False, detail="refused"),
        "response_consumer": HealthCheck(ok=False, detail="behind"),
    }
    unready = await client.ask("/readyz")
    assert (unready.status, unready.text) == (503, "failed: redis (refused), response_consumer (behind)\n")


@pytest.mark.parametrize(("path", "accept"), [("/readyz?verbose", None), ("/readyz", "application/json")])
async def test_readiness_in_full_names_each_check(
    client: Client, engine: Engine, path: str, accept: str | None
) -> None:
    """Asked for more, it gives status, role and every check with its detail, as JSON."""
    ready = await client.ask(path, accept)
    assert (ready.status, ready.type) == (200, "application/json")
    assert json.loads(ready.text) == NAMED
    engine.found["lease"] = HealthCheck(ok=False, detail="lost")
    unready = await client.ask(path, accept)
    assert unready.status == 503
    assert json.loads(unready.text) == {
        "status": "failed",
        "role": "leader",
        "checks": {"redis": {"ok": True, "detail": "3 ms"}, "lease": {"ok": False, "detail": "lost"}},
    }


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz"])
async def test_head_is_get_without_the_body(client: Client, path: str) -> None:
    """HEAD gives the status and headers of GET, and nothing after them."""
    head, get = await client.ask(path, method="HEAD"), await client.ask(path)
    assert (head.status, head.type, head.text) == (get.status, get.type, "")


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "//", "/%00"])
async def test_an_unknown_path_is_not_found(client: Client, path: str) -> None:
    """There is nothing else here, also not one slash away."""
    answer = await client.ask(path)
    assert (answer.status, answer.type) == (404, "text/plain; charset=utf-8")


async def test_nothing_is_to_be_changed_here(client: Client) -> None:
    """The face only shows: any other method is refused."""
    assert (await client.ask("/livez", method="POST")).status == 405


async def test_the_server_does_not_say_what_it_is(client: Client) -> None:
    """No header names the software."""
    assert "server" not in (await client.ask("/")).headers


async def test_an_address_in_use_is_named() -> None:
    """bind() says at once, and in one line, which address can't be had and why."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        host, port = holder.getsockname()
        server = HttpServer(create_app(CollectorRegistry(), Engine()), HttpSettings(host=host, port=port))
        with pytest.raises(OSError, match=f"cannot serve HTTP: Address already in use .*{port}"):
            server.bind()


async def test_a_restart_takes_the_same_address_again(server: HttpServer) -> None:
    """Where port 0 was asked for, the port is known after bind(), and stays the same."""
    addresses = []
    for _ in range(2):
        async with serving(server):
            addresses.append(server.address)
            assert (await Client(server.address).ask("/livez")).status == 200
    assert addresses[0] == addresses[1] != ("127.0.0.1", 0)


async def test_signals_stay_with_the_engine(server: HttpServer) -> None:
    """While uvicorn runs, the handlers of SIGTERM and SIGINT are those from before."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with serving(server):
        await Client(server.address).ask("/livez")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_a_stop_closes_idle_connections(server: HttpServer) -> None:
    """A client that keeps its connection open does not hold up the stop: it reads the end of the stream."""
    async with serving(server):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"ok\n")
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*server.address)


async def test_a_stop_cuts_off_who_does_not_read(server: HttpServer, registry: CollectorRegistry) -> None:
    """A client that never reads its answer holds up the stop for no longer than its bound, and is cut off."""
    size = 50_000_000
    Gauge("large", "x" * size, registry=registry)
    loop = asyncio.get_running_loop()
    async with serving(server) as task:
        with socket.create_connection(server.address) as client:
            await loop.run_in_executor(None, client.sendall, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await loop.run_in_executor(None, client.recv, 1)
            began = loop.time()
            task.cancel()
            await asyncio.wait([task])
            assert loop.time() - began < STOP_S
            client.settimeout(10)
            assert await loop.run_in_executor(None, count_to_the_end, client) < size


def count_to_the_end(client: socket.socket) -> int:
    """Return how many bytes there are until the other side has closed."""
    return sum(iter(lambda: len(client.recv(1 << 20)), 0))


async def test_the_checks_come_in_text_where_that_is_asked_for(client: Client, engine: Engine) -> None:
    """For people who have nothing but curl: each check on a line, in the same words."""
    engine.found = {"redis": HealthCheck(ok=False, detail="refused"), "role": HealthCheck(ok=True, detail="standby")}
    answer = await client.ask("/readyz?verbose", "text/plain")
    assert (answer.status, answer.type) == (503, "text/plain; charset=utf-8")
    assert answer.text == "failed redis: refused\nok     role: standby\n"


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
async def test_what_is_preferred_is_given(client: Client, path: str, accept: str, expected: str) -> None:
    """JSON or text by Accept, as RFC 9110 weighs it, wherever there are both."""
    answer = await client.ask(path, accept)
    assert (answer.status, expected in answer.type) == (200, True)


@pytest.mark.parametrize("accept", [None, "*/*", "text/html", "image/*", "text/plain, application/json"])
async def test_who_prefers_nothing_gets_what_is_usual(client: Client, accept: str | None) -> None:
    """A line of text, and of ?verbose JSON."""
    types = [
        (await client.ask(path, accept)).type.partition(";")[0] for path in ("/livez", "/readyz", "/readyz?verbose")
    ]
    assert types == ["text/plain", "text/plain", "application/json"]


async def test_liveness_in_json_has_a_status(client: Client, engine: Engine) -> None:
    """Like readiness, without what does not matter to it."""
    assert json.loads((await client.ask("/livez", "application/json")).text) == {"status": "ok"}
    engine.alive = False
    dead = await client.ask("/livez", "application/json")
    assert (dead.status, json.loads(dead.text)) == (503, {"status": "failed"})
