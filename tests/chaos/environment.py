"""The servers of a trial: one behind proxies, or a primary and its replica under sentinels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from aism_engine.store.embedded import EmbeddedServer
from tests.chaos.retrying_client import RetryingClient, following_client, load_client
from tests.chaos.schedule import Plan
from tests.support.proxy import FaultProxy
from tests.support.sentinels import MASTER, SentinelSetup
from tests.support.server import test_server_binary

ENGINES: Final = 2
_FSYNC: Final = "always"
"""`appendfsync`: what a server has accepted survives a kill."""
_OPTIONS: Final = ("--auto-aof-rewrite-percentage", "0")


class Node(NamedTuple):
    server: EmbeddedServer
    folder: Path
    client: Any
    """Connects to this server only."""


@dataclass(frozen=True)
class Environment:
    nodes: tuple[Node, ...]
    """The first is the primary in the beginning."""
    client: RetryingClient
    """Follows the primary."""
    arguments: tuple[tuple[str, str], ...]
    """The arguments of each engine that tell it where the server is."""
    proxies: tuple[FaultProxy, ...] = ()
    """One for each engine, or none."""
    sentinels: SentinelSetup | None = None

    def node(self, server: EmbeddedServer) -> Node:
        return next(node for node in self.nodes if node.server is server)

    def last(self) -> Node:
        """Wait until all agree on the primary, and return it. Blocks."""
        return self.nodes[0] if self.sentinels is None else self.node(self.sentinels.wait_whole())


@asynccontextmanager
async def start_environment(plan: Plan, folder: Path) -> AsyncIterator[Environment]:
    """Run the servers of a trial."""
    async with _with_sentinels(folder) if plan.sentinels else _with_proxies(plan, folder) as environment:
        yield environment


@asynccontextmanager
async def _with_proxies(plan: Plan, folder: Path) -> AsyncIterator[Environment]:
    with EmbeddedServer(test_server_binary(), data_dir=folder, append_fsync=_FSYNC, extra=_OPTIONS) as server:
        proxies = tuple(FaultProxy(server.port, seed=plan.seed + number) for number in range(ENGINES))
        async with load_client(server.url) as client, load_client(server.url) as watcher, proxies[0], proxies[1]:
            arguments = tuple(("--redis", proxy.url) for proxy in proxies)
            yield Environment((Node(server, folder, watcher),), RetryingClient(client), arguments, proxies)


@asynccontextmanager
async def _with_sentinels(folder: Path) -> AsyncIterator[Environment]:
    timing = {"down_after_s": 0.7, "failover_timeout_s": 2.0}  # short: failovers are what the trial is about
    with SentinelSetup(test_server_binary(), folder, append_fsync=_FSYNC, options=_OPTIONS, **timing) as sentinels:
        client, asking = following_client(sentinels)
        first, second = sentinels.servers
        config = folder / "engine.toml"
        config.write_text(f'[redis]\nsentinels = {sentinels.addresses}\nsentinel_master = "{MASTER}"\n')
        async with client, load_client(first.url) as to_first, load_client(second.url) as to_second:
            nodes = zip(sentinels.servers, sentinels.folders, (to_first, to_second), strict=True)
            try:
                yield Environment(
                    nodes=tuple(Node(*node) for node in nodes),
                    client=RetryingClient(client, replicas=1),
                    arguments=(("--config", str(config)),) * ENGINES,
                    sentinels=sentinels,
                )
            finally:
                for each in asking:
                    await each.aclose()
