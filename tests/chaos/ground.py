"""What a trial stands on: one server behind wires that can be cut, or a primary and its replica under sentinels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from aism_engine.store.embedded import EmbeddedServer
from tests.chaos.line import Line, following_client, load_client
from tests.chaos.schedule import Plan
from tests.support.proxy import FaultProxy
from tests.support.sentinels import MASTER, Site
from tests.support.server import test_server_binary

ENGINES: Final = 2
_SAFE: Final = "always"
"""`appendfsync`: what a server has accepted survives its end."""
_OPTIONS: Final = ("--auto-aof-rewrite-percentage", "0")


class Node(NamedTuple):
    server: EmbeddedServer
    folder: Path
    client: Any
    """Speaks to this server and no other."""


@dataclass(frozen=True)
class Ground:
    nodes: tuple[Node, ...]
    """The first is the primary to begin with."""
    line: Line
    """To whoever is the primary."""
    arguments: tuple[tuple[str, str], ...]
    """How each engine is told where that is."""
    wires: tuple[FaultProxy, ...] = ()
    """One for each engine, or none."""
    site: Site | None = None

    def node(self, server: EmbeddedServer) -> Node:
        return next(node for node in self.nodes if node.server is server)

    def last(self) -> Node:
        """Wait until all agree on one primary: what it holds is the truth. It blocks."""
        return self.nodes[0] if self.site is None else self.node(self.site.wait_whole())


@asynccontextmanager
async def prepared(made: Plan, folder: Path) -> AsyncIterator[Ground]:
    """Start the servers of a trial; gives the ground."""
    async with _sentinels(folder) if made.sentinels else _lone(made, folder) as ground:
        yield ground


@asynccontextmanager
async def _lone(made: Plan, folder: Path) -> AsyncIterator[Ground]:
    with EmbeddedServer(test_server_binary(), data_dir=folder, append_fsync=_SAFE, extra=_OPTIONS) as server:
        wires = tuple(FaultProxy(server.port, seed=made.seed + number) for number in range(ENGINES))
        async with load_client(server.url) as client, load_client(server.url) as watcher, wires[0], wires[1]:
            found = tuple(("--redis", wire.url) for wire in wires)
            yield Ground((Node(server, folder, watcher),), Line(client), found, wires)


@asynccontextmanager
async def _sentinels(folder: Path) -> AsyncIterator[Ground]:
    """All is hurried. Who is silent for so short a time is down: on a busy machine engines may be, servers are not."""
    site = Site(
        test_server_binary(),
        folder,
        down_after_s=0.7,
        failover_timeout_s=2.0,
        append_fsync=_SAFE,
        options=_OPTIONS,
    )
    with site:
        client, asking = following_client(site)
        first, second = site.servers
        config = folder / "engine.toml"
        config.write_text(f'[redis]\nsentinels = {site.addresses}\nsentinel_master = "{MASTER}"\n')
        async with client, load_client(first.url) as to_first, load_client(second.url) as to_second:
            nodes = zip(site.servers, site.folders, (to_first, to_second), strict=True)
            try:
                found = (("--config", str(config)),) * ENGINES
                yield Ground(tuple(Node(*node) for node in nodes), Line(client, replicas=1), found, site=site)
            finally:
                for sentinel in asking:
                    await sentinel.aclose()
