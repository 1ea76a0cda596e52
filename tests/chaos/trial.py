"""One trial: one or two servers, two engines, a load, a plan of faults, and the verdict."""

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.chaos import faults
from tests.chaos.agents import LARGEST_MESSAGE
from tests.chaos.load import Load
from tests.chaos.observations import collect
from tests.chaos.retrying_client import RetryingClient
from tests.chaos.schedule import SPAN_S, Fault, Plan
from tests.chaos.system import KEYS, System, with_proxies, with_sentinels
from tests.chaos.verdict import Violation, violations_of
from tests.support.engine import eventually

_GUARD_S: Final = 3600.0
"""Only guards against hanging: a trial ends when the engines have applied everything."""
_SETTINGS: Final = {
    "AISM_REDIS__SOCKET_TIMEOUT": "0.5",
    "AISM_REDIS__CONNECT_TIMEOUT": "0.5",
    "AISM_REDIS__RETRY_BACKOFF_MAX": "0.2",
    "AISM_HTTP__ENABLED": "false",
    "AISM_LEASE__RENEW_INTERVAL": "0.2",
    "AISM_PROTOCOL__MAX_MESSAGE_BYTES": str(LARGEST_MESSAGE),
    "AISM_MAIL__MAX_UNREAD": "100000",
    "AISM_MEASUREMENTS__MAX_NAMES": "100000",
    "AISM_MAIL__PAIR_BURST": "100000",
    "AISM_REGISTRAR__METADATA_INTERVAL": "0.5",
    "AISM_LIVENESS__SCAN_INTERVAL": "0.2",
    "AISM_LIVENESS__SILENT_AFTER": "300",
    "AISM_LIVENESS__LOST_AFTER": "600",
    "AISM_TIMEKEEPER__POLL_INTERVAL": "0.1",
    "AISM_TIMEKEEPER__GRACE": "0.2",
    "AISM_DISPATCHER__POLL_INTERVAL": "0.1",
    "AISM_COMMANDS__BACKOFF_INITIAL": "0.1",
    "AISM_COMMANDS__BACKOFF_MAX": "0.5",
    "AISM_SUPERVISOR__RESTARTS": "0",
    "AISM_SUPERVISOR__SHUTDOWN_TIMEOUT": "3600",
}
"""The settings of the engines. Everything happens soon, except what would depend on the machine's speed."""


@dataclass
class Report:
    """The result of a trial."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    figures: Counter[str] = field(default_factory=Counter)
    """What is added up over all trials."""
    start_s: float = 0.0
    """From the start of the engine processes to the first commit: how fast this machine is."""
    recovery_s: float = 0.0
    """From the end of the last fault to the next commit."""
    violations: list[Violation] = field(default_factory=list)


async def run(plan: Plan) -> Report:
    """Run a trial from beginning to end."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes to connections that the trial has cut
    environ = _SETTINGS | {
        "AISM_REDIS__PREFIX": KEYS.prefix,
        "AISM_REDIS__PROTOCOL": str(plan.protocol),
        "AISM_LEASE__TTL": str(plan.lease_s),
        "AISM_RESPONSE_CONSUMER__BATCH_MESSAGES": str(plan.batch_messages),
    }
    start = with_sentinels if plan.sentinels else with_proxies
    with TemporaryDirectory(prefix="aism-chaos-") as folder:
        async with (
            asyncio.timeout(_GUARD_S),
            start(Path(folder), environ) as system,
            AsyncExitStack() as stack,
        ):
            for engine in system.engines:
                stack.push_async_callback(engine.kill)
            return await _run(plan, system)


async def _run(plan: Plan, system: System) -> Report:
    load, report = Load(plan, system.client), Report(plan.seed)
    began = time.monotonic()
    for engine in system.engines:
        await engine.start()
    setting_up = asyncio.create_task(load.set_up())
    await _wait_commit(system.client)
    report.start_s = time.monotonic() - began
    await setting_up
    await _inject_faults(plan, system, load, report)
    observed = load.observations()
    last = await system.primary()
    for engine in system.engines:
        await engine.terminate()
    await collect(last, observed)
    observed.complaints = [complaint for engine in system.engines for complaint in engine.complaints()]
    report.figures = Counter(
        kills=sum(engine.kills for engine in system.engines),
        rollbacks=system.rollbacks,
        responses=sum(len(agent.messages) for agent in observed.agents),
        commands=len(observed.commands),
    )
    report.violations = violations_of(observed)
    return report


async def _inject_faults(plan: Plan, system: System, load: Load, report: Report) -> None:
    """Run the load and the faults side by side; then restart everything, and wait until all is answered."""

    async def inject(fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        await faults.inject(system, fault)
        report.faults[fault.kind] += 1

    async with asyncio.TaskGroup() as group:
        loading = group.create_task(load.run())
        await asyncio.gather(asyncio.sleep(SPAN_S), *map(inject, plan.faults))
        for proxy in system.proxies.values():
            proxy.heal()
        for engine in system.engines:
            await engine.start()
        began = time.monotonic()
        await _wait_commit((await system.primary()).client)
        report.recovery_s = time.monotonic() - began
        load.stopping.set()
        await load.wait_answered()
        load.drained.set()
        await loading


async def _wait_commit(client: RetryingClient) -> None:
    """Wait until the ledger changes, as every commit makes it do."""
    before = await client.read("GET", KEYS.ledger)

    async def has_changed() -> bool:
        return bool(await client.read("GET", KEYS.ledger) != before)

    await eventually(has_changed, _GUARD_S)
