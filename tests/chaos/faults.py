"""What each kind of fault does to the system under test. A fault whose target is not there does nothing."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, TypeAlias

from redis.exceptions import RedisError

from aism_engine.store.scripts import ACQUIRE_LEASE, COMMIT, PEEK
from tests.chaos.schedule import FAILOVERS, Fault
from tests.chaos.system import KEYS, System
from tests.support.daemon import EngineProcess
from tests.support.faults import IS_LEASE, calls
from tests.support.proxy import FaultProxy
from tests.support.proxy_rules import Match, Rule
from tests.support.server import OwnServer

_SCRIPTS: Final = (COMMIT, COMMIT, COMMIT, ACQUIRE_LEASE, PEEK)
"""The scripts whose requests and replies are lost: most of all commits."""
_CUT_OFF: Final = 0.75
"""How often replication breaks shortly before a failover: on one machine hardly anything would be lost otherwise."""
_CUT_OFF_S: Final = (0.05, 0.4)


async def inject(system: System, fault: Fault) -> None:
    """Cause the fault, wait until it is over, and undo it."""
    if fault.kind in FAILOVERS:
        await _fail_over(system, fault)
        return
    async with _KINDS[fault.kind](system, fault):
        await asyncio.sleep(fault.for_s)


@asynccontextmanager
async def _engines(system: System, fault: Fault) -> AsyncIterator[None]:
    how, _, whom = fault.kind.partition("_")
    leader = await system.leader()
    engines = {
        "leader": [leader],
        "standby": [engine for engine in system.engines if engine is not leader],
        "both": system.engines,
    }[whom]
    begin, end = {
        "kill": (EngineProcess.kill, EngineProcess.start),
        "terminate": (EngineProcess.terminate, EngineProcess.start),
        "suspend": (EngineProcess.suspend, EngineProcess.resume),
    }[how]
    for engine in engines:
        await begin(engine)
    yield
    for engine in engines:
        await end(engine)


_LOSSES: Final[dict[str, tuple[Callable[[OwnServer], object], Callable[[OwnServer], object]]]] = {
    "kill_server": (OwnServer.kill, OwnServer.start),
    "restart_server": (OwnServer.restart, OwnServer.start),
    "suspend_server": (OwnServer.pause, OwnServer.resume),
    "failover_kill": (OwnServer.kill, OwnServer.start),
    # The primary wakes up as a primary, among clients that do not know of its successor either.
    "failover_suspend": (OwnServer.pause, OwnServer.resume),
    # The old primary keeps running, and accepts writes until a sentinel makes it a replica.
    "failover_order": (lambda _: None, lambda _: None),
}
"""How a server is lost and comes back. In the main thread only: a server dies with the thread that started it."""


@asynccontextmanager
async def _server(system: System, fault: Fault) -> AsyncIterator[None]:
    lose, bring_back = _LOSSES[fault.kind]
    async with system.server_lock:
        lose(system.nodes[0].server)
        yield
        bring_back(system.nodes[0].server)


@asynccontextmanager
async def _clients(system: System, fault: Fault) -> AsyncIterator[None]:
    """Close all connections or those of one purpose, suspend all clients, or let the server forget its scripts."""
    client = system.client.client
    with suppress(RedisError, OSError):
        if fault.kind == "script_flush":
            await client.script_flush()
        elif fault.kind == "client_pause":
            await client.client_pause(int(fault.for_s * 1000), all=bool(fault.seed % 2))
        else:
            purpose = random.Random(fault.seed).choice(("", "aism-commands", "aism-lease", "aism-pubsub"))
            for each in await client.client_list():
                if each["name"].startswith(purpose) and int(each["id"]) != int(await client.client_id()):
                    with suppress(RedisError):
                        await client.execute_command("CLIENT", "KILL", "ID", each["id"])
    yield


async def _proxy(system: System, fault: Fault) -> FaultProxy:
    """Choose a proxy: usually that of the leader."""
    proxies = [*system.proxies.values()]
    return system.proxies[await system.leader()] if fault.seed % 4 else proxies[fault.seed % len(proxies)]


_RULES: Final[dict[str, Callable[[FaultProxy, random.Random, Match], Rule]]] = {
    "drop_reply": lambda proxy, rng, match: proxy.drop_reply(
        match, times=rng.choice((1, 1, 2, 5)), cut=rng.random() < 0.5
    ),
    "late_request": lambda proxy, rng, match: proxy.hold_request(match, cut=rng.random() < 0.7),
    "late_reply": lambda proxy, _, match: proxy.hold_reply(match),
    # Another engine takes over while the first is fully connected.
    "starve_lease": lambda proxy, *_: proxy.hold_request(IS_LEASE, times=float("inf")),
}
_CONDITIONS: Final[dict[str, Callable[[FaultProxy], object]]] = {
    "black_hole": FaultProxy.black_hole,
    "black_hole_both": FaultProxy.black_hole,
    "delay": lambda proxy: proxy.delay(0.05),
    "throttle": lambda proxy: proxy.throttle(30_000),
    "reset": FaultProxy.reset,
    "cut": lambda proxy: proxy.cut_after(random.randint(1, 3000)),
}


@asynccontextmanager
async def _requests(system: System, fault: Fault) -> AsyncIterator[None]:
    rng = random.Random(fault.seed)
    rule = _RULES[fault.kind](await _proxy(system, fault), rng, calls(rng.choice(_SCRIPTS)))
    yield
    rule.release()


@asynccontextmanager
async def _network(system: System, fault: Fault) -> AsyncIterator[None]:
    """Impose a condition. After a black hole everything is delivered late, or the connections are dead."""
    proxies = [*system.proxies.values()] if fault.kind.endswith("both") else [await _proxy(system, fault)]
    for proxy in proxies:
        _CONDITIONS[fault.kind](proxy)
    yield
    for proxy in proxies:
        if fault.kind.startswith("black_hole") and fault.seed % 2:
            proxy.forget()
        if fault.kind not in {"reset", "cut"}:  # a cut happens once, with the next bytes
            proxy.heal()


_Kind: TypeAlias = Callable[[System, Fault], AbstractAsyncContextManager[None]]
_KINDS: Final[dict[str, _Kind]] = {
    **dict.fromkeys(("kill_leader", "kill_standby", "kill_both"), _engines),
    **dict.fromkeys(("terminate_leader", "suspend_leader", "suspend_both"), _engines),
    **dict.fromkeys(("kill_server", "restart_server", "suspend_server"), _server),
    **dict.fromkeys(("client_kill", "client_pause", "script_flush"), _clients),
    **dict.fromkeys(_RULES, _requests),
    **dict.fromkeys(_CONDITIONS, _network),
}


async def _fail_over(system: System, fault: Fault) -> None:
    """Lose the primary, wait until its replica is promoted, and bring the old primary back.

    One failover at a time, and only with a replica that is up to date: with another one sentinels would promote
    nobody, or a server that lacks what a client was told to be safe.
    """
    sentinels, rng = system.sentinels, random.Random(fault.seed)
    assert sentinels is not None
    lose, bring_back = _LOSSES[fault.kind]
    async with system.server_lock:
        old = await system.primary()
        (new,) = (node for node in system.nodes if node is not old)
        if rng.random() < _CUT_OFF:
            sentinels.cut_off(old.server)
            await asyncio.sleep(rng.uniform(*_CUT_OFF_S))
        confirmed = await old.client.read("GET", KEYS.ledger)
        lose(old.server)
        if fault.kind == "failover_order":
            await asyncio.to_thread(sentinels.fail_over)
        await asyncio.to_thread(sentinels.wait_promoted, new.server)
        system.rollbacks += await new.client.read("GET", KEYS.ledger) != confirmed
        await asyncio.sleep(fault.for_s)
        bring_back(old.server)
        sentinels.let_follow(old.server)
        await system.primary()
