"""The reconciler: what has lost its deadline is found again by its record.

The deadlines are the index of all that is open: who is not in it is never due, and a new leader does not load it. Every
commit writes record and deadline together; but an index can be damaged by other hands, and by a partial restore.
"""

import asyncio
from typing import Final

import structlog

from aism_engine.domain.commands.orphans import decide_orphan
from aism_engine.domain.fleet import Lookups
from aism_engine.errors import ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.writer import one_by_one

log = structlog.get_logger(component="reconciler")

_PAGE: Final = 1000
"""Keys looked at in one step: an arbitrary number. With a step every 2 s a million keys take half an hour, and the
engine next to nothing of a core.
"""


class Reconciler(Service):
    """Walks round over all keys, a page at a time, and takes in again what is open and has no deadline."""

    name = "reconciler"
    polls = False

    def __init__(self, context: ServiceContext, *, interval_s: float = 2.0) -> None:
        super().__init__(context)
        self._interval_s = interval_s
        self._cursor = 0
        self._refused = False
        """SCAN is not everybody's right, and an engine can do its work without."""

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        try:
            self._cursor, commands, groups = await self._store.orphans(self._cursor, _PAGE)
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            if not self._refused:
                log.warning("cannot_reconcile", detail=str(error), consequence="what loses its deadline stays open")
            self._refused = True
            return False
        members = [*(f"command:{name}" for name in commands), *(f"group:{name}" for name in groups)]
        if not members:
            self._record_step(began, ())
            return False
        lookups = Lookups(
            commands=await self._store.commands(commands - fleet.commands.keys()),
            groups=await self._store.groups(groups - fleet.groups.keys()),
        )

        decide = one_by_one("orphan", members, lambda draft, member: decide_orphan(draft, self._policy, member))
        decisions = await self._writer.write(decide, on=fleet, lookups=lookups)
        if found := sum(decision.outcome == "applied" for decision in decisions):
            log.warning("deadlines_restored", count=found, first=members[0])
        self._record_step(began, decisions)
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._interval_s)
