"""The system under test: two engines, and one server behind proxies or two servers under sentinels."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from aism_engine.store.keys import Keys
from tests.chaos.retrying_client import BROKEN, RetryingClient, load_client
from tests.support.daemon import EngineProcess
from tests.support.proxy import FaultProxy
from tests.support.sentinels import MASTER, SentinelSetup
from tests.support.server import OwnServer

KEYS: Final = Keys("chaos")


class Node(NamedTuple):
    server: OwnServer
    folder: Path
    client: RetryingClient
    """Connects to this server only."""


class System:
    """The servers, and the engines that use them."""

    def __init__(self, nodes: Sequence[Node], client: RetryingClient, engines: list[EngineProcess]) -> None:
        self.nodes = nodes
        """The first is the primary in the beginning."""
        self.client = client
        """Follows the primary."""
        self.engines = engines
        self.proxies: dict[EngineProcess, FaultProxy] = {}
        """Empty under sentinels."""
        self.sentinels: SentinelSetup | None = None
        self.rollbacks = 0
        """The number of failovers that have taken back a confirmed commit."""
        self.server_lock = asyncio.Lock()
        """Held by the fault that stops or restarts a server."""

    async def primary(self) -> Node:
        """Wait until all agree on the primary, and return it."""
        if self.sentinels is None:
            return self.nodes[0]
        server = await asyncio.to_thread(self.sentinels.wait_whole)
        return next(node for node in self.nodes if node.server is server)

    async def leader(self) -> EngineProcess:
        """Return the holder of the lease, or the first engine if nobody holds it."""
        token = b""
        with suppress(*BROKEN):
            token = await self.client.client.get(KEYS.lease) or b""
        return next((engine for engine in self.engines if engine.holds(token.decode())), self.engines[0])


@asynccontextmanager
async def with_proxies(folder: Path, environ: dict[str, str]) -> AsyncIterator[System]:
    with OwnServer(data_dir=folder) as server:
        async with (
            load_client(url=server.url) as client,
            FaultProxy(server.port) as first,
            FaultProxy(server.port) as second,
        ):
            engines = [EngineProcess(proxy.url, ["--redis", proxy.url], environ) for proxy in (first, second)]
            line = RetryingClient(client)
            system = System([Node(server, folder, line)], line, engines)
            system.proxies = dict(zip(engines, (first, second), strict=True))
            yield system


@asynccontextmanager
async def with_sentinels(folder: Path, environ: dict[str, str]) -> AsyncIterator[System]:
    with SentinelSetup(folder, failover_timeout_ms=2000) as sentinels:
        config = folder / "engine.toml"
        config.write_text(f'[redis]\nsentinels = {sentinels.addresses}\nsentinel_master = "{MASTER}"\n')
        engines = [EngineProcess(name, ["--config", str(config)], environ) for name in ("first", "second")]
        primary, replica = sentinels.servers
        async with (
            load_client(sentinels=tuple(sentinels.addresses), sentinel_master=MASTER) as client,
            load_client(url=primary.url) as to_primary,
            load_client(url=replica.url) as to_replica,
        ):
            each = zip(sentinels.servers, sentinels.folders, map(RetryingClient, (to_primary, to_replica)), strict=True)
            system = System([Node(*node) for node in each], RetryingClient(client, replicas=1), engines)
            system.sentinels = sentinels
            yield system
