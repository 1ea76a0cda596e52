"""One trial: one or two servers, two engines, a load, a plan of faults, and the verdict."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from redis.exceptions import RedisError

from aism_engine.store.keys import Keys
from tests.chaos import observations
from tests.chaos.engines import EngineProcess
from tests.chaos.environment import Environment, start_environment
from tests.chaos.faults import System
from tests.chaos.load import LARGEST_MESSAGE, Load
from tests.chaos.schedule import FAILOVERS, SPAN_S, Fault, Plan
from tests.chaos.verdict import violations_of
from tests.chaos.violations import Violation

_GUARD_S: Final = 300.0
"""Only guards against hanging: a trial ends when the engines have applied everything."""


@dataclass
class Report:
    """The result of a trial."""

    seed: int
    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    rollbacks: int = 0
    responses: int = 0
    commands: int = 0
    start_s: float = 0.0
    """From the start of the engine processes to the first commit: how fast this machine is."""
    recovery_s: float = 0.0
    """From the end of the last fault to the next commit."""
    violations: list[Violation] = field(default_factory=list)

    @property
    def failovers(self) -> int:
        return sum(self.faults[kind] for kind in FAILOVERS)


async def run(plan: Plan) -> Report:
    """Run a trial from beginning to end."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes to connections that the trial has cut
    with TemporaryDirectory(prefix="aism-chaos-") as folder:
        async with asyncio.timeout(_GUARD_S), start_environment(plan, Path(folder)) as environment:
            return await _run(plan, environment)


async def _run(plan: Plan, environment: Environment) -> Report:
    keys = Keys("chaos")
    environ = _environ(plan, keys)
    engines = [EngineProcess(f"engine-{n}", each, environ) for n, each in enumerate(environment.arguments)]
    system, load, report = System(environment, keys, engines), Load(plan, environment.client, keys), Report(plan.seed)
    async with AsyncExitStack() as stack:
        began = time.monotonic()
        for engine in engines:
            await engine.start()
            stack.push_async_callback(engine.kill)
        setting_up = asyncio.create_task(load.set_up())
        await _wait_commit(environment.client.client, keys)
        report.start_s = time.monotonic() - began
        await setting_up
        await _inject_faults(plan, system, load, report)
        observed = load.observations()
        last = await asyncio.to_thread(environment.last)
        for engine in engines:
            await engine.terminate()
        await observations.collect(last.client, keys, observed)
        for node in environment.nodes:
            node.server.kill()
        observed.commits = list(observations.commits(last.folder, keys))
        observed.has_all_commits = not plan.sentinels
        observed.complaints = [complaint for engine in engines for complaint in engine.complaints()]
    report.kills = sum(engine.kills for engine in engines)
    report.rollbacks = system.rollbacks
    report.responses = sum(len(agent.messages) for agent in observed.agents) + len(observed.invalid)
    report.commands = len(observed.commands)
    report.violations = violations_of(observed)
    return report


async def _inject_faults(plan: Plan, system: System, load: Load, report: Report) -> None:
    """Run the load and the faults side by side; then restart everything, and wait until all is answered."""

    async def inject(fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        report.faults[fault.kind] += await system.inject(fault)

    async with asyncio.TaskGroup() as group:
        loading = group.create_task(load.run())
        await asyncio.gather(asyncio.sleep(SPAN_S), *map(inject, plan.faults))
        for proxy in system.proxies.values():
            proxy.heal()
        for engine in system.engines:
            await engine.start()
        began = time.monotonic()
        primary = await asyncio.to_thread(system.environment.last)
        await _wait_commit(primary.client, system.keys)
        report.recovery_s = time.monotonic() - began
        load.stopping.set()
        await load.wait_answered()
        load.drained.set()
        await loading


async def _wait_commit(client: Any, keys: Keys) -> None:  # noqa: ANN401
    """Wait until the ledger changes, as every commit makes it do."""
    before = await _persist(lambda: client.get(keys.ledger))
    while await _persist(lambda: client.get(keys.ledger)) == before:  # noqa: ASYNC110 - another process changes it
        await asyncio.sleep(0.01)


async def _persist(call: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
    while True:
        with suppress(RedisError, OSError):
            return await call()
        await asyncio.sleep(0.01)


def _environ(plan: Plan, keys: Keys) -> dict[str, str]:
    """Return the settings of the engines. Everything happens soon, except what would depend on the machine's speed."""
    return {
        "AISM_REDIS__PREFIX": keys.prefix,
        "AISM_REDIS__PROTOCOL": str(plan.protocol),
        "AISM_REDIS__SOCKET_TIMEOUT": "0.5",
        "AISM_REDIS__CONNECT_TIMEOUT": "0.5",
        "AISM_REDIS__RETRY_BACKOFF_MAX": "0.2",
        "AISM_HTTP__ENABLED": "false",
        "AISM_LEASE__TTL": str(plan.lease_s),
        "AISM_LEASE__RENEW_INTERVAL": "0.2",
        "AISM_RESPONSE_CONSUMER__BATCH_MESSAGES": str(plan.batch_messages),
        "AISM_PROTOCOL__MAX_MESSAGE_BYTES": str(LARGEST_MESSAGE),
        "AISM_MAIL__MAX_UNREAD": "100000",
        "AISM_MEASUREMENTS__MAX_NAMES": "100000",
        "AISM_MAIL__PAIR_BURST": "100000",
        "AISM_REGISTRAR__METADATA_INTERVAL": "0.5",
        "AISM_LIVENESS__SCAN_INTERVAL": "0.2",
        "AISM_LIVENESS__SILENT_AFTER": "20",
        "AISM_LIVENESS__LOST_AFTER": "40",
        "AISM_TIMEKEEPER__POLL_INTERVAL": "0.1",
        "AISM_TIMEKEEPER__GRACE": "0.2",
        "AISM_DISPATCHER__POLL_INTERVAL": "0.1",
        "AISM_COMMANDS__BACKOFF_INITIAL": "0.1",
        "AISM_COMMANDS__BACKOFF_MAX": "0.5",
        "AISM_SAMPLER__POLL_INTERVAL": "0.5",
        "AISM_SUPERVISOR__RESTARTS": "0",
        "AISM_SUPERVISOR__SHUTDOWN_TIMEOUT": "3600",
    }
