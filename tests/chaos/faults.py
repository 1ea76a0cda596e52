"""What each kind of fault does to the system under test. A fault whose target is not there does nothing."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeAlias

from redis.exceptions import RedisError

from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import ACQUIRE_LEASE, COMMIT, PEEK
from tests.chaos.engines import EngineProcess
from tests.chaos.environment import Environment
from tests.chaos.retrying_client import RetryingClient
from tests.chaos.schedule import FAILOVERS, Fault
from tests.support.faults import calls
from tests.support.proxy import FaultProxy
from tests.support.sentinels import SentinelSetup

_SCRIPTS: Final = (COMMIT, COMMIT, COMMIT, ACQUIRE_LEASE, PEEK)
"""The scripts whose requests and replies are lost: most of all commits."""
_CUT_OFF: Final = 0.75
"""How often replication breaks shortly before a failover: on one machine hardly anything would be lost otherwise."""
_CUT_OFF_S: Final = (0.05, 0.4)
"""For how long: far shorter than the time after which sentinels consider a replica too old."""


class System:
    """The servers, and the engines that use them."""

    def __init__(self, environment: Environment, keys: Keys, engines: list[EngineProcess]) -> None:
        self.environment = environment
        self.client = environment.client.client
        self.keys = keys
        self.engines = engines
        self.proxies = dict(zip(engines, environment.proxies, strict=False))
        """Empty under sentinels."""
        self.rollbacks = 0
        """The number of failovers that have taken back a confirmed commit."""
        self.server_lock = asyncio.Lock()
        """Held by the fault that stops or restarts a server."""

    async def leader(self) -> EngineProcess:
        """Return the holder of the lease, or any engine if nobody holds it."""
        with suppress(RedisError, OSError):
            token = await self.client.get(self.keys.lease)
            for engine in self.engines:
                if token is not None and engine.holds(token.decode()):
                    return engine
        return next((engine for engine in self.engines if engine.is_running), self.engines[0])

    async def inject(self, fault: Fault) -> bool:
        """Cause the fault, wait until it is over, and undo it. Returns whether it has happened."""
        if fault.kind in FAILOVERS:
            return await _fail_over(self, fault)
        await _ACTIONS[fault.kind](self, fault)
        return True


# --- engines ----------------------------------------------------------------------------------------------------------


async def _kill(fault: Fault, *engines: EngineProcess) -> None:
    for engine in engines:
        await engine.kill()
    await asyncio.sleep(fault.for_s)
    for engine in engines:
        await engine.start()


async def _kill_leader(system: System, fault: Fault) -> None:
    await _kill(fault, await system.leader())


async def _kill_standby(system: System, fault: Fault) -> None:
    leader = await system.leader()
    await _kill(fault, *(engine for engine in system.engines if engine is not leader))


async def _kill_both(system: System, fault: Fault) -> None:
    await _kill(fault, *system.engines)


async def _terminate_leader(system: System, fault: Fault) -> None:
    leader = await system.leader()
    await leader.terminate()
    await asyncio.sleep(fault.for_s)
    await leader.start()


async def _suspend(fault: Fault, *engines: EngineProcess) -> None:
    for engine in engines:
        engine.suspend()
    await asyncio.sleep(fault.for_s)
    for engine in engines:
        engine.resume()


async def _suspend_leader(system: System, fault: Fault) -> None:
    await _suspend(fault, await system.leader())


async def _suspend_both(system: System, fault: Fault) -> None:
    await _suspend(fault, *system.engines)


# --- the server -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _server(system: System) -> AsyncIterator[EmbeddedServer]:
    async with system.server_lock:
        yield system.environment.nodes[0].server


async def _kill_server(system: System, fault: Fault) -> None:
    async with _server(system) as server:
        server.kill()
        await asyncio.sleep(fault.for_s)
        server.start()


async def _restart_server(system: System, _fault: Fault) -> None:
    async with _server(system) as server:
        server.restart()


async def _suspend_server(system: System, fault: Fault) -> None:
    async with _server(system) as server:
        server.pause()
        await asyncio.sleep(fault.for_s)
        server.resume()


async def _client_kill(system: System, fault: Fault) -> None:
    """Close all connections, or those of one purpose."""
    purpose = random.Random(fault.seed).choice(("", "aism-commands", "aism-lease", "aism-pubsub"))
    with suppress(RedisError, OSError):
        for client in await system.client.client_list():
            if client["name"].startswith(purpose) and int(client["id"]) != int(await system.client.client_id()):
                with suppress(RedisError):
                    await system.client.execute_command("CLIENT", "KILL", "ID", client["id"])


async def _client_pause(system: System, fault: Fault) -> None:
    with suppress(RedisError, OSError):
        await system.client.client_pause(int(fault.for_s * 1000), all=bool(fault.seed % 2))
        await asyncio.sleep(fault.for_s)


async def _script_flush(system: System, _fault: Fault) -> None:
    with suppress(RedisError, OSError):
        await system.client.script_flush()


# --- the network ------------------------------------------------------------------------------------------------------


async def _proxy(system: System, fault: Fault) -> FaultProxy:
    """Choose a proxy: usually that of the leader."""
    proxies = list(system.proxies.values())
    return system.proxies[await system.leader()] if fault.seed % 4 else proxies[fault.seed % len(proxies)]


async def _drop_reply(system: System, fault: Fault) -> None:
    rng, proxy = random.Random(fault.seed), await _proxy(system, fault)
    rule = proxy.drop_reply(calls(rng.choice(_SCRIPTS)), times=rng.choice((1, 1, 2, 5)), cut=rng.random() < 0.5)
    await asyncio.sleep(0.3)
    rule.disable()


async def _late_request(system: System, fault: Fault) -> None:
    rng, proxy = random.Random(fault.seed), await _proxy(system, fault)
    rule = proxy.hold_request(calls(rng.choice(_SCRIPTS)), cut=rng.random() < 0.7)
    await asyncio.sleep(fault.for_s)
    rule.release()


async def _late_reply(system: System, fault: Fault) -> None:
    rng, proxy = random.Random(fault.seed), await _proxy(system, fault)
    rule = proxy.hold_reply(calls(rng.choice(_SCRIPTS)))
    await asyncio.sleep(fault.for_s)
    rule.release()


async def _starve_lease(system: System, fault: Fault) -> None:
    """Hold only the renewals of the lease: another engine takes over while the first is fully connected."""
    rule = (await _proxy(system, fault)).hold_request(calls(ACQUIRE_LEASE), times=float("inf"))
    await asyncio.sleep(fault.for_s)
    rule.release()


async def _black_hole(system: System, fault: Fault, *proxies: FaultProxy) -> None:
    """Pass nothing. Afterwards everything is delivered late, or the connections are dead."""
    proxies = proxies or (await _proxy(system, fault),)
    for proxy in proxies:
        proxy.black_hole()
    await asyncio.sleep(fault.for_s)
    for proxy in proxies:
        if fault.seed % 2:
            proxy.forget()
        proxy.heal()


async def _black_hole_both(system: System, fault: Fault) -> None:
    await _black_hole(system, fault, *system.proxies.values())


async def _reset(system: System, fault: Fault) -> None:
    (await _proxy(system, fault)).reset()


async def _cut(system: System, fault: Fault) -> None:
    (await _proxy(system, fault)).cut_after(1, 3000)
    await asyncio.sleep(0.1)


async def _delay(system: System, fault: Fault) -> None:
    proxy = await _proxy(system, fault)
    proxy.delay(0.0, 0.05)
    await asyncio.sleep(fault.for_s)
    proxy.heal()


async def _throttle(system: System, fault: Fault) -> None:
    proxy = await _proxy(system, fault)
    proxy.throttle(30_000)
    await asyncio.sleep(fault.for_s)
    proxy.heal()


_ACTIONS: Final[dict[str, Callable[[System, Fault], Awaitable[None]]]] = {
    action.__name__.removeprefix("_"): action
    for action in (
        *(_kill_leader, _kill_standby, _kill_both, _terminate_leader, _suspend_leader, _suspend_both),
        *(_kill_server, _restart_server, _suspend_server, _client_kill, _client_pause, _script_flush),
        *(_drop_reply, _late_request, _late_reply, _starve_lease, _black_hole, _black_hole_both),
        *(_reset, _cut, _delay, _throttle),
    )
}


# --- failovers --------------------------------------------------------------------------------------------------------

_Loss: TypeAlias = Callable[[SentinelSetup, EmbeddedServer], object]
_LOSSES: Final[dict[str, tuple[_Loss, Callable[[EmbeddedServer], object]]]] = {
    "failover_kill": (lambda _, primary: primary.kill(), lambda primary: primary.start()),
    # The primary wakes up as a primary, among clients that do not know of its successor either.
    "failover_suspend": (lambda _, primary: primary.pause(), lambda primary: primary.resume()),
    # The primary accepts writes until it is told that it is a replica.
    "failover_order": (lambda sentinels, _: sentinels.fail_over(), lambda _: None),
}
"""How the primary is lost, and how it comes back, to become a replica of its successor."""


async def _fail_over(system: System, fault: Fault) -> bool:
    """Lose the primary, wait until its replica is promoted, and bring the old primary back.

    One failover at a time, and only with a replica that is up to date: with another one sentinels would promote
    nobody, or a server that lacks what a client was told to be safe.
    """
    sentinels, rng = system.environment.sentinels, random.Random(fault.seed)
    assert sentinels is not None
    lose, bring_back = _LOSSES[fault.kind]
    async with system.server_lock:
        old = await asyncio.to_thread(sentinels.wait_whole)
        new = system.environment.node(sentinels.other(old))
        if rng.random() < _CUT_OFF:
            sentinels.cut_off(old)
            await asyncio.sleep(rng.uniform(*_CUT_OFF_S))
        confirmed = await RetryingClient(system.environment.node(old).client).read("GET", system.keys.ledger)
        lose(sentinels, old)
        promoted = await asyncio.to_thread(sentinels.wait_promoted, new.server)
        if promoted:
            system.rollbacks += await RetryingClient(new.client).read("GET", system.keys.ledger) != confirmed
            await asyncio.sleep(fault.for_s)
        bring_back(old)  # in the main thread: a server dies with the thread that started it
        sentinels.let_follow(old)
        await asyncio.to_thread(sentinels.wait_whole)
    return promoted
