"""Counts what one step of a consumer costs: calls of functions, commands of the server, and the size of the commit."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

from hiredis import pack_command

from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.services.queue_consumer import QueueConsumer
from aism_engine.store import scripts
from aism_engine.store.batch import Argument
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.store import CommitReply
from tests.costs.calls import Calls
from tests.costs.table import Figures
from tests.costs.workloads import AGENTS, RECENT_IDS, WORKLOADS, Batch
from tests.support.clock import FakeClock
from tests.support.engine import Client, Reader, plain_client

_TOKEN: Final = "1:costs"  # noqa: S105 - a fencing token is not a secret
_NOW: Final = 1_800_000_000.123456
_Commit: TypeAlias = tuple[Sequence[str], Sequence[Argument]]
"""Keys and arguments."""
_OWN_COMMANDS: Final = frozenset({"config", "config|resetstat", "info"})


class _SteppedEngine(Reader):
    """An engine that runs only the consumer steps that a test asks for, with a clock that stands still.

    Therefore equal batches have equal costs.
    """

    def __init__(self, server: EmbeddedServer, client: Client, prefix: str) -> None:
        super().__init__(client, prefix)
        overrides = {
            "redis.url": server.url,
            "redis.prefix": prefix,
            "protocol.recent_ids": RECENT_IDS,
            "response_consumer.batch_messages": AGENTS,
            "request_consumer.batch_messages": AGENTS,
        }
        clock = FakeClock(_NOW)
        self.engine = Engine(load_settings(environ={}, overrides=overrides).settings, clock=clock, environ={})
        self.engine.store.time.observe = lambda *_: None  # type: ignore[method-assign]
        self.engine.leadership.hold(_TOKEN, clock.now + 1)
        consumers = [each for each in self.engine.components if isinstance(each, QueueConsumer)]
        self._consumers: dict[str, QueueConsumer[Any]] = {each._queue: each for each in consumers}

    async def prepare(self) -> None:
        await self.call("SET", self.keys.epoch, _TOKEN)
        for each in vars(scripts).values():
            if isinstance(each, scripts.Script):  # otherwise the first call of a script is sent twice
                await self.call("SCRIPT", "LOAD", each.text)

    async def push(self, batch: Batch) -> None:
        await self.call("LPUSH", getattr(self.keys, batch.queue), *batch.messages)

    async def step(self, batch: Batch) -> None:
        """Apply a batch that was pushed."""
        await self._consumers[getattr(self.keys, batch.queue)].run_once()

    def outcomes(self) -> Counter[str]:
        """Return how many messages had each outcome."""
        samples = [sample for metric in self.engine.metrics.decisions.collect() for sample in metric.samples]
        counts: Counter[str] = Counter()
        for sample in samples:
            if sample.name.endswith("_total"):
                counts[sample.labels["outcome"]] += int(sample.value)
        return counts


async def measure(server: EmbeddedServer, name: str) -> Figures:
    """Let an engine apply a workload, and return the figures of its last batch.

    The server must have no keys of an earlier call for this workload, and no other client.
    """
    workload = WORKLOADS[name]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(plain_client(server))
        stepped, measured = _SteppedEngine(server, client, name), workload.measured
        for each in stepped.engine._clients:
            stack.push_async_callback(each.aclose)
        await stepped.prepare()
        for batch in workload.before:
            await stepped.push(batch)
            await stepped.step(batch)
        await stepped.push(measured)
        before, calls, commits = stepped.outcomes(), Calls(), _record_commits(stepped.engine)
        await stepped.call("CONFIG", "RESETSTAT")
        with calls.counting():
            await stepped.step(measured)
        stats = await client.info("commandstats")
        outcomes = stepped.outcomes() - before
        assert outcomes == {workload.outcome: len(measured.messages)}, outcomes
    used = {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}
    return {
        "functions": calls.frequent(),
        "server": {name: [count] for name, count in used.items() if name not in _OWN_COMMANDS},
        "commit": {
            "keys": [sum(len(keys) for keys, _ in commits)],
            "arguments": [sum(len(arguments) for _, arguments in commits)],
            "bytes": [sum(map(_size, commits))],
        },
    }


def _size(commit: _Commit) -> int:
    words: Any = (*commit[0], *commit[1])  # hiredis annotates only short commands
    return len(pack_command(words))


def _record_commits(engine: Engine) -> list[_Commit]:
    """Return a list to which each later commit adds its keys and arguments."""
    commits: list[_Commit] = []
    commit = engine.store.commit

    async def record(keys: Sequence[str], arguments: Sequence[Argument]) -> CommitReply:
        commits.append((keys, arguments))
        return await commit(keys, arguments)

    engine.store.commit = record  # type: ignore[method-assign]
    return commits
