"""A real Prometheus scrapes a real engine: an alert fires and clears, and every query of the dashboard returns data."""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine
from tests.support.server import OwnServer

DEPLOY = Path(__file__).parents[2] / "deploy"
LIMIT_S = 300.0

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing: apt-get install prometheus"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    with OwnServer() as server:
        yield server


class Prometheus:
    """Client of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    async def get(self, path: str, **query: str) -> Any:  # noqa: ANN401  the data depend on the query
        def read() -> Any:  # noqa: ANN401
            try:
                with urlopen(f"{self._url}{path}?{urlencode(query)}", timeout=300) as response:  # noqa: S310  on this machine
                    return json.load(response)["data"]
            except (URLError, ConnectionError):  # it does not listen yet
                return None

        return await asyncio.to_thread(read)

    async def firing(self) -> set[str]:
        found = await self.get("/api/v1/alerts")
        return (
            {each["labels"]["alertname"] for each in found["alerts"] if each["state"] == "firing"} if found else set()
        )

    async def values(self, expression: str) -> list[Any]:
        found = await self.get("/api/v1/query", query=expression)
        return found["result"] if found else []


@asynccontextmanager
async def scraping(running: Running, folder: Path) -> AsyncIterator[Prometheus]:
    """Run a Prometheus with the shipped rules, with seconds in place of minutes."""
    host, port = running.engine.http.address
    for file in (DEPLOY / "prometheus").glob("*.yml"):
        text = file.read_text(encoding="utf-8").replace("localhost:9464", f"{host}:{port}")
        text = text.replace("scrape_interval: 15s", "scrape_interval: 500ms").replace("for: 1m", "for: 1s")
        text = text.replace("evaluation_interval: 15s", "evaluation_interval: 500ms").replace("[5m]", "[30s]")
        (folder / file.name).write_text(text, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        prometheus_port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *("prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        *(f"--web.listen-address=127.0.0.1:{prometheus_port}", "--log.level=error"),
    )
    try:
        yield Prometheus(prometheus_port)
    finally:
        process.terminate()
        await process.wait()


async def test_an_alert_fires_and_clears_and_the_dashboard_has_data(
    own_server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    """The queries run while the fleet works. Then Redis is stopped, and started again."""
    served = {"http__enabled": True, "http__port": 0, "archive__directory": str(tmp_path / "archive")}
    async with running_engine(own_server, prefix, **served) as running, scraping(running, tmp_path) as prometheus:
        working = asyncio.create_task(work(running))
        queries = expressions()
        assert len(queries) > 10
        for query in queries:
            await eventually(partial(prometheus.values, query), LIMIT_S)
        assert "AismRedisUnavailable" not in await prometheus.firing()
        working.cancel()
        own_server.kill()

        async def fires(*, expected: bool) -> bool:
            return ("AismRedisUnavailable" in await prometheus.firing()) is expected

        await eventually(partial(fires, expected=True), LIMIT_S)
        own_server.start()
        await eventually(partial(fires, expected=False), LIMIT_S)


async def work(running: Running) -> None:
    """Send commands to one agent, and their results, until cancelled."""
    await running.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
    await eventually(partial(running.record, "a"))
    number = 0
    while True:
        number += 1
        await running.ask(
            {"id": f"c{number}", "type": "send", "payload": {"agent_id": "a", "command": {"type": "work"}}}
        )
        await running.say({"type": "result", "agent_id": "a", "command_id": f"c{number - 1}"})
        await running.say({"type": "measurement", "agent_id": "a", "payload": {"tokens": number}})
        await running.say(b"no message")
        await asyncio.sleep(0.2)


def expressions() -> list[str]:
    """Return the queries of all panels, for all fleets."""
    dashboard = json.loads((DEPLOY / "grafana/aism-fleet.json").read_text(encoding="utf-8"))
    return [target["expr"].replace("$fleet", ".*") for panel in dashboard["panels"] for target in panel["targets"]]
