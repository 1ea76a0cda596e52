"""What each kind of fault does to the system under test. A fault whose target is not there does nothing."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aism_engine.store.scripts import ACQUIRE_LEASE, COMMIT, PEEK
from tests.chaos.retrying_client import BROKEN
from tests.chaos.schedule import FAILOVERS, Fault
from tests.chaos.system import KEYS, System
from tests.support.faults import IS_LEASE, calls
from tests.support.proxy import FaultProxy
from tests.support.proxy_rules import Match, Rule

_SCRIPTS: Final = (COMMIT, COMMIT, COMMIT, ACQUIRE_LEASE, PEEK)
"""The scripts whose requests and replies are lost: most of all commits."""
_CUT_OFF: Final = 0.75
"""How often replication breaks shortly before a failover: on one machine hardly anything would be lost otherwise."""
_CUT_OFF_S: Final = (0.05, 0.4)

_RULES: Final[dict[str, Callable[[FaultProxy, random.Random, Match], Rule]]] = {
    "drop_reply": lambda proxy, rng, match: proxy.drop_reply(match, rng.choice((1, 1, 2, 5)), cut=rng.random() < 0.5),
    "late_request": lambda proxy, rng, match: proxy.hold_request(match, cut=rng.random() < 0.7),
    "late_reply": lambda proxy, _, match: proxy.hold_reply(match),
    # Another engine takes over while the first is fully connected.
    "starve_lease": lambda proxy, *_: proxy.hold_request(IS_LEASE, float("inf")),
}
_CONDITIONS: Final[dict[str, Callable[[FaultProxy, random.Random], None]]] = {
    "black_hole": lambda proxy, _: proxy.black_hole(),
    "black_hole_both": lambda proxy, _: proxy.black_hole(),
    "delay": lambda proxy, _: proxy.delay(0.05),
    "throttle": lambda proxy, _: proxy.throttle(30_000),
    "reset": lambda proxy, _: proxy.reset(),
    "cut": lambda proxy, rng: proxy.cut_after(rng.randint(1, 3000)),
}


async def inject(system: System, fault: Fault) -> None:
    """Cause the fault, wait until it is over, and undo it."""
    name, _, whom = fault.kind.partition("_")
    if fault.kind in FAILOVERS:
        await _fail_over(system, fault)
        return
    if fault.kind in _RULES | _CONDITIONS:
        context = _network
    elif whom == "server":
        context = _server
    else:
        context = _clients if name in {"client", "script"} else _engines
    async with context(system, fault):
        await asyncio.sleep(fault.for_s)


@asynccontextmanager
async def _engines(system: System, fault: Fault) -> AsyncIterator[None]:
    how, _, whom = fault.kind.partition("_")
    leader = await system.leader()
    engines = [each for each in system.engines if whom == "both" or (each is leader) == (whom == "leader")]
    for engine in engines:
        await {"kill": engine.kill, "terminate": engine.terminate, "suspend": engine.suspend}[how]()
    yield
    for engine in engines:
        await (engine.resume() if how == "suspend" else engine.start())


@asynccontextmanager
async def _server(system: System, fault: Fault) -> AsyncIterator[None]:
    """In the main thread only: a server dies with the thread that started it."""
    server = system.nodes[0].server
    async with system.server_lock:
        {"kill_server": server.kill, "restart_server": server.restart, "suspend_server": server.pause}[fault.kind]()
        yield
        (server.resume if fault.kind == "suspend_server" else server.start)()


@asynccontextmanager
async def _clients(system: System, fault: Fault) -> AsyncIterator[None]:
    """Close all connections or those of one purpose, suspend all clients, or let the server forget its scripts."""
    client = system.client.client
    with suppress(*BROKEN):
        if fault.kind == "script_flush":
            await client.script_flush()
        elif fault.kind == "client_pause":
            await client.client_pause(int(fault.for_s * 1000), all=bool(fault.seed % 2))
        else:
            purpose = random.Random(fault.seed).choice(("", "aism-commands", "aism-lease", "aism-pubsub"))
            for each in await client.client_list():
                if each["name"].startswith(purpose) and int(each["id"]) != int(await client.client_id()):
                    with suppress(*BROKEN):
                        await client.execute_command("CLIENT", "KILL", "ID", each["id"])
    yield


@asynccontextmanager
async def _network(system: System, fault: Fault) -> AsyncIterator[None]:
    """Disturb single requests, or impose a condition: on all proxies, or usually on that of the leader."""
    rng, proxies = random.Random(fault.seed), [*system.proxies.values()]
    if fault.kind != "black_hole_both":
        proxies = [system.proxies[await system.leader()] if fault.seed % 4 else rng.choice(proxies)]
    if fault.kind in _RULES:
        rule = _RULES[fault.kind](proxies[0], rng, calls(rng.choice(_SCRIPTS)))
        yield
        rule.release()
        return
    for proxy in proxies:
        _CONDITIONS[fault.kind](proxy, rng)
    yield
    for proxy in proxies:
        if fault.kind.startswith("black_hole") and fault.seed % 2:
            proxy.forget()  # else everything is delivered late
        if fault.kind not in {"reset", "cut"}:  # a cut happens once, with the next bytes
            proxy.heal()


async def _fail_over(system: System, fault: Fault) -> None:
    """Lose the primary, wait until its replica is promoted, and bring the old primary back.

    One failover at a time, and only with a replica that is up to date: with another one sentinels would promote
    nobody, or a server that lacks what a client was told to be safe.
    """
    sentinels, rng = system.sentinels, random.Random(fault.seed)
    assert sentinels is not None
    async with system.server_lock:
        old = await system.primary()
        (new,) = (node for node in system.nodes if node is not old)
        if rng.random() < _CUT_OFF:
            sentinels.cut_off(old.server)
            await asyncio.sleep(rng.uniform(*_CUT_OFF_S))
        confirmed = await old.client.read("GET", KEYS.ledger)
        match fault.kind:
            case "failover_kill":
                old.server.kill()
            case "failover_suspend":  # it wakes up as a primary, among clients that do not know of its successor either
                old.server.pause()
            case "failover_order":  # it accepts writes until a sentinel makes it a replica
                await asyncio.to_thread(sentinels.fail_over)
        await asyncio.to_thread(sentinels.wait_promoted, new.server)
        system.rollbacks += await new.client.read("GET", KEYS.ledger) != confirmed
        await asyncio.sleep(fault.for_s)
        if fault.kind == "failover_suspend":
            old.server.resume()
        old.server.start()  # unless it runs
        sentinels.let_follow(old.server)
        await system.primary()
