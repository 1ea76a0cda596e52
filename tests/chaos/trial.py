"""One trial: a server, or two under sentinels, two engines, a load, a plan of faults, and the verdict."""

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from aism_engine.store.keys import Keys
from tests.chaos import evidence as found
from tests.chaos.charges import LEFT_OVER, Violation
from tests.chaos.engines import EngineProcess
from tests.chaos.failovers import fail_over
from tests.chaos.faults import World
from tests.chaos.ground import prepared
from tests.chaos.line import Line
from tests.chaos.load import OVERSIZED, PATIENCE_S, Load
from tests.chaos.recovery import Recovery
from tests.chaos.schedule import FAILOVERS, SPAN_S, Fault, Plan, plan
from tests.chaos.verdict import judge

LIMIT_S: Final = 60.0
"""For a whole trial."""


@dataclass
class Report:
    """What a trial came to."""

    seed: int
    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    rollbacks: int = 0
    responses: int = 0
    commands: int = 0
    recovery_s: float = 0.0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)

    @property
    def failovers(self) -> int:
        """How many of the faults were failovers."""
        return sum(self.faults[kind] for kind in FAILOVERS)


def run(seed: int, keep: Path | None = None) -> Report:
    """Run the trial of this seed from beginning to end. `keep`: a folder for the server's files and the logs."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes to connections that we have cut
    with TemporaryDirectory(prefix="aism-chaos-") as folder:
        return asyncio.run(_bounded(plan(seed), keep or Path(folder)))


async def _bounded(made: Plan, folder: Path) -> Report:
    """A trial that does not end is a violation, too: it says where everybody stands."""
    trial = asyncio.create_task(_run(made, folder))
    done, _ = await asyncio.wait([trial], timeout=LIMIT_S)
    if done:
        return trial.result()
    for task in asyncio.all_tasks():
        task.print_stack()
    trial.cancel()
    await asyncio.wait([trial], timeout=5)
    return Report(seed=made.seed, violations=[Violation(LEFT_OVER, "the trial", f"it did not end in {LIMIT_S} s")])


async def _run(made: Plan, folder: Path) -> Report:
    began = time.monotonic()
    keys = Keys("chaos")
    async with AsyncExitStack() as stack:
        ground = await stack.enter_async_context(prepared(made, folder))
        environ = _environ(made, keys)
        engines = [EngineProcess(f"engine-{n}", told, environ) for n, told in enumerate(ground.arguments)]
        world = World(ground, keys, engines, Recovery(ground.nodes[0].client, keys.ledger))
        for engine in engines:
            stack.push_async_callback(engine.kill)
            await engine.start()
        load = Load(made, ground.line, keys)
        await load.set_up()
        happened = await _storm(made, world, load)
        evidence = load.evidence()
        last = await asyncio.to_thread(ground.last)
        evidence.left = await _wait_done(Line(last.client), keys)
        for engine in engines:
            await engine.terminate()
        await found.collect(last.client, keys, evidence)
        for node in ground.nodes:
            node.server.kill()
        evidence.commits = list(found.commits(last.folder, keys))
        evidence.from_the_start = not made.sentinels
        evidence.complaints = [str(complaint) for engine in engines for complaint in engine.complaints]
    return Report(
        seed=made.seed,
        kills=sum(engine.kills for engine in engines),
        faults=happened,
        rollbacks=world.rollbacks,
        responses=sum(len(journal.said) for journal in evidence.journals) + len(evidence.garbage),
        commands=len(evidence.commands),
        recovery_s=world.recovery.longest_s,
        seconds=time.monotonic() - began,
        violations=judge(evidence),
    )


async def _storm(made: Plan, world: World, load: Load) -> Counter[str]:
    """Let the load and the faults go on side by side; afterwards everybody is there again, and all is answered. Gives
    what happened.
    """
    happened = Counter[str]()
    async with asyncio.TaskGroup() as group:
        group.create_task(world.recovery.run())
        speaking = group.create_task(load.run())
        began = time.monotonic()

        async def befall(fault: Fault) -> None:
            await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
            if fault.kind not in FAILOVERS:
                await world.befall(fault)
            elif not await fail_over(world, fault):
                return
            happened[fault.kind] += 1

        await asyncio.gather(*map(befall, made.faults))
        await asyncio.sleep(max(0.0, began + SPAN_S - time.monotonic()))
        for wire in world.wires.values():
            wire.heal()
        for engine in world.engines:
            engine.resume()
            await engine.start()
        async with asyncio.timeout(PATIENCE_S):
            while world.recovery.recovering:  # noqa: ASYNC110 - it is watched from outside
                await asyncio.sleep(0.01)
        load.stopping.set()
        world.recovery.over = True
        await load.wait_answered()
        load.drained.set()
        await speaking
    return happened


async def _wait_done(line: Line, keys: Keys) -> dict[str, int]:
    """Wait until nothing is left to do; gives what is left when patience is."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        left = {
            "responses": await line.read("LLEN", keys.response_queue),
            "requests": await line.read("LLEN", keys.request_queue),
            "fanout": await line.read("LLEN", keys.fanout),
            "open commands": await line.read("ZCARD", keys.deadlines),
        }
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.02)


def _environ(made: Plan, keys: Keys) -> dict[str, str]:
    """The settings of the engines: everything happens soon."""
    return {
        "AISM_REDIS__PREFIX": keys.prefix,
        "AISM_REDIS__PROTOCOL": str(made.protocol),
        "AISM_REDIS__SOCKET_TIMEOUT": "0.5",
        "AISM_REDIS__CONNECT_TIMEOUT": "0.5",
        "AISM_REDIS__RETRY_BACKOFF_MAX": "0.2",
        "AISM_HTTP__ENABLED": "false",
        "AISM_LEASE__TTL": str(made.lease_s),
        "AISM_LEASE__RENEW_INTERVAL": "0.2",
        "AISM_RESPONSE_CONSUMER__BATCH_MESSAGES": str(made.batch_messages),
        "AISM_PROTOCOL__MAX_MESSAGE_BYTES": str(OVERSIZED),
        "AISM_MAIL__MAX_UNREAD": "100000",
        "AISM_MEASUREMENTS__MAX_NAMES": "100000",
        "AISM_MAIL__PAIR_BURST": "100000",
        "AISM_REGISTRAR__METADATA_INTERVAL": "0.5",
        "AISM_LIVENESS__SCAN_INTERVAL": "0.2",
        "AISM_LIVENESS__SILENT_AFTER": "2",
        "AISM_LIVENESS__LOST_AFTER": "4",
        "AISM_TIMEKEEPER__POLL_INTERVAL": "0.1",
        "AISM_TIMEKEEPER__GRACE": "0.2",
        "AISM_DISPATCHER__POLL_INTERVAL": "0.1",
        "AISM_COMMANDS__BACKOFF_INITIAL": "0.1",
        "AISM_COMMANDS__BACKOFF_MAX": "0.5",
        "AISM_SAMPLER__POLL_INTERVAL": "0.5",
        "AISM_SUPERVISOR__RESTARTS": "0",
        "AISM_LOGS__FORMAT": "json",
    }
