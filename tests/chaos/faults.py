"""What each kind of fault does to the world of a trial. One that needs somebody who is not there comes to nothing."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

from redis.exceptions import RedisError

from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import ACQUIRE_LEASE, COMMIT, PEEK
from tests.chaos.engines import EngineProcess
from tests.chaos.ground import Ground
from tests.chaos.recovery import Recovery
from tests.chaos.schedule import Fault
from tests.support.proxy import FaultProxy, Match

_SCRIPTS: Final = (COMMIT, COMMIT, COMMIT, ACQUIRE_LEASE, PEEK)
"""Whose requests and replies are lost: most of all the commits."""


class World:
    """Servers, engines that speak to them, and the clock of their recovery."""

    def __init__(self, ground: Ground, keys: Keys, engines: list[EngineProcess], recovery: Recovery) -> None:
        self.ground = ground
        self.client = ground.line.client
        self.keys = keys
        self.engines = engines
        self.wires = dict(zip(engines, ground.wires, strict=False))  # under sentinels there are none
        self.recovery = recovery
        self.rollbacks = 0
        """How many failovers have taken back what an engine was told is written."""
        self.server_busy = asyncio.Lock()
        """One thing at a time for the servers' processes."""

    @property
    def server(self) -> EmbeddedServer:
        """The only one, where there is one."""
        return self.ground.nodes[0].server

    async def leader(self) -> EngineProcess:
        """Find who holds the lease; where nobody does, any engine is as good."""
        try:
            token = await self.client.get(self.keys.lease)
        except (RedisError, OSError):
            token = None
        named = [engine for engine in self.engines if token is not None and token.decode() in engine.tokens]
        return (named or [engine for engine in self.engines if engine.alive] or self.engines)[0]

    async def befall(self, fault: Fault) -> None:
        """Do it, wait for as long as it lasts, and undo it."""
        async with self.recovery.disturbed():
            await _DEEDS[fault.kind](self, fault)


Deed: TypeAlias = Callable[[World, Fault], Awaitable[None]]


async def _kill(world: World, fault: Fault, *victims: EngineProcess) -> None:
    for victim in victims:
        await victim.kill()
    others = [engine for engine in world.engines if engine not in victims]
    with world.recovery.left_to(others):
        await asyncio.sleep(fault.for_s)
    for victim in victims:
        await victim.start()


async def _kill_leader(world: World, fault: Fault) -> None:
    await _kill(world, fault, await world.leader())


async def _kill_standby(world: World, fault: Fault) -> None:
    leader = await world.leader()
    await _kill(world, fault, *(engine for engine in world.engines if engine is not leader))


async def _kill_both(world: World, fault: Fault) -> None:
    await _kill(world, fault, *world.engines)


async def _terminate_leader(world: World, fault: Fault) -> None:
    leader = await world.leader()
    await leader.terminate()
    await asyncio.sleep(fault.for_s)
    await leader.start()


async def _stop(world: World, fault: Fault, *victims: EngineProcess) -> None:
    for victim in victims:
        victim.pause()
    with world.recovery.left_to([engine for engine in world.engines if engine not in victims]):
        await asyncio.sleep(fault.for_s)
    for victim in victims:
        victim.resume()


async def _stop_leader(world: World, fault: Fault) -> None:
    await _stop(world, fault, await world.leader())


async def _stop_both(world: World, fault: Fault) -> None:
    await _stop(world, fault, *world.engines)


async def _kill_server(world: World, fault: Fault) -> None:
    async with world.server_busy:
        world.server.kill()
        await asyncio.sleep(fault.for_s)
        world.server.start()


async def _restart_server(world: World, _fault: Fault) -> None:
    async with world.server_busy:
        world.server.restart()


async def _stop_server(world: World, fault: Fault) -> None:
    async with world.server_busy:
        world.server.pause()
        await asyncio.sleep(fault.for_s)
        world.server.resume()


async def _client_kill(world: World, fault: Fault) -> None:
    """Cut all connections, or those for one purpose only."""
    purpose = random.Random(fault.salt).choice(("", "aism-commands", "aism-lease", "aism-pubsub"))
    with suppress(RedisError, OSError):
        for client in await world.client.client_list():
            if client["name"].startswith(purpose) and int(client["id"]) != int(await world.client.client_id()):
                with suppress(RedisError):
                    await world.client.execute_command("CLIENT", "KILL", "ID", client["id"])


async def _client_pause(world: World, fault: Fault) -> None:
    with suppress(RedisError, OSError):
        await world.client.client_pause(int(fault.for_s * 1000), all=bool(fault.salt % 2))
        await asyncio.sleep(fault.for_s)


async def _script_flush(world: World, _fault: Fault) -> None:
    with suppress(RedisError, OSError):
        await world.client.script_flush()


def _calls(script: str) -> Match:
    return lambda request: len(request) > 1 and request[0] == b"EVALSHA" and request[1] == script.encode()


async def _wire(world: World, fault: Fault) -> FaultProxy:
    """Choose a wire: as a rule that of the leader."""
    wires = list(world.wires.values())
    return world.wires[await world.leader()] if fault.salt % 4 else wires[fault.salt % len(wires)]


async def _drop_reply(world: World, fault: Fault) -> None:
    rng, wire = random.Random(fault.salt), await _wire(world, fault)
    cue = wire.drop_reply(_calls(rng.choice(_SCRIPTS).digest), times=rng.choice((1, 1, 2, 5)), cut=rng.random() < 0.5)
    await asyncio.sleep(0.3)  # its time is over then, whether it came or not
    cue.lift()


async def _late_request(world: World, fault: Fault) -> None:
    rng, wire = random.Random(fault.salt), await _wire(world, fault)
    cue = wire.hold_request(_calls(rng.choice(_SCRIPTS).digest), cut=rng.random() < 0.7)
    await asyncio.sleep(fault.for_s)
    cue.release()


async def _late_reply(world: World, fault: Fault) -> None:
    rng, wire = random.Random(fault.salt), await _wire(world, fault)
    cue = wire.hold_reply(_calls(rng.choice(_SCRIPTS).digest))
    await asyncio.sleep(fault.for_s)
    cue.release()


async def _starve_lease(world: World, fault: Fault) -> None:
    """All passes but what the leader sends to keep its lease: another takes over while the first hears everything."""
    wire = await _wire(world, fault)
    cue = wire.hold_request(_calls(ACQUIRE_LEASE.digest), times=float("inf"))
    await asyncio.sleep(fault.for_s)
    cue.release()


async def _black_hole(world: World, fault: Fault, *wires: FaultProxy) -> None:
    """Nothing passes; afterwards all is delivered late, or the connections are forgotten."""
    wires = wires or (await _wire(world, fault),)
    for wire in wires:
        wire.black_hole()
    await asyncio.sleep(fault.for_s)
    for wire in wires:
        if fault.salt % 2:
            wire.forget()
        wire.heal()


async def _black_hole_both(world: World, fault: Fault) -> None:
    await _black_hole(world, fault, *world.wires.values())


async def _reset(world: World, fault: Fault) -> None:
    (await _wire(world, fault)).reset()


async def _cut(world: World, fault: Fault) -> None:
    (await _wire(world, fault)).cut_after(1, 3000)
    await asyncio.sleep(0.1)


async def _delay(world: World, fault: Fault) -> None:
    wire = await _wire(world, fault)
    wire.delay(0.0, 0.05)
    await asyncio.sleep(fault.for_s)
    wire.heal()


async def _throttle(world: World, fault: Fault) -> None:
    wire = await _wire(world, fault)
    wire.throttle(30_000)
    await asyncio.sleep(fault.for_s)
    wire.heal()


_DEEDS: Final[dict[str, Deed]] = {
    "kill_leader": _kill_leader,
    "kill_standby": _kill_standby,
    "kill_both": _kill_both,
    "terminate_leader": _terminate_leader,
    "stop_leader": _stop_leader,
    "stop_both": _stop_both,
    "kill_server": _kill_server,
    "restart_server": _restart_server,
    "stop_server": _stop_server,
    "client_kill": _client_kill,
    "client_pause": _client_pause,
    "script_flush": _script_flush,
    "drop_reply": _drop_reply,
    "late_request": _late_request,
    "late_reply": _late_reply,
    "starve_lease": _starve_lease,
    "black_hole": _black_hole,
    "black_hole_both": _black_hole_both,
    "reset": _reset,
    "cut": _cut,
    "delay": _delay,
    "throttle": _throttle,
}
KINDS: Final = frozenset(_DEEDS)
