"""Failovers: how a primary is lost, and how it comes back, which is as a replica of the one that took its place.

One at a time, and only when all is whole: with a replica that is behind, sentinels would have nobody to promote, or
somebody who lacks what a client was told to be safe.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final, TypeAlias

from aism_engine.store.embedded import EmbeddedServer
from tests.chaos.faults import World
from tests.chaos.line import Line
from tests.chaos.schedule import Fault
from tests.support.sentinels import Site

Loss: TypeAlias = Callable[[Site, EmbeddedServer], object]

_LOSSES: Final[dict[str, tuple[Loss, Callable[[EmbeddedServer], object]]]] = {
    "failover_kill": (lambda _, primary: primary.kill(), lambda primary: primary.start()),
    # It wakes up as a primary, with engines and agents who were in the middle of something and do not know either.
    "failover_stop": (lambda _, primary: primary.pause(), lambda primary: primary.resume()),
    # It goes on to take writes until it is told that it is no primary any more.
    "failover_order": (lambda site, _: site.fail_over(), lambda _: None),
}
"""How the primary is lost, and how it is given back."""
_CUT_OFF: Final = 0.75
"""How often replication breaks before."""
_CUT_OFF_S: Final = (0.05, 0.4)
"""For how long: far less than sentinels take for too old to be promoted."""


async def fail_over(world: World, fault: Fault) -> bool:
    """Lose the primary, wait until its replica is promoted, give the old one back `for_s` later; tells whether so.

    As a rule replication breaks a moment before: on one machine it is so quick that hardly anything would be lost. From
    the promotion on the time of the engines runs: there is a server again that serves.
    """
    site, rng = world.ground.site, random.Random(fault.salt)
    assert site is not None
    lose, give_back = _LOSSES[fault.kind]
    async with world.server_busy:
        old = await asyncio.to_thread(site.wait_whole)
        new = world.ground.node(site.other(old))
        if rng.random() < _CUT_OFF:
            site.cut_off(old)
            await asyncio.sleep(rng.uniform(*_CUT_OFF_S))
        async with world.recovery.disturbed():
            confirmed = await Line(world.ground.node(old).client).read("GET", world.keys.ledger)
            lose(site, old)
            promoted = await asyncio.to_thread(site.wait_promoted, new.server)
            if promoted:
                world.rollbacks += await Line(new.client).read("GET", world.keys.ledger) != confirmed
                world.recovery.watch(new.client)
            else:
                give_back(old)
        await asyncio.sleep(fault.for_s)
        give_back(old)  # in the thread of the trial: a server dies with the thread that started it
        site.let_follow(old)
        await asyncio.to_thread(site.wait_whole)
    return promoted
