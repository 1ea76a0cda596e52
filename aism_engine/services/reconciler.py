"""Restores lost deadlines from the records of commands and groups.

The deadlines are the index of everything that is open: what is not in it never becomes due, and a new leader does not
load it. Every commit writes record and deadline together, but another program, or a partial restore, can damage the
index.
"""

from typing import Final

import structlog

from aism_engine.domain.commands.deadlines import decide_orphan
from aism_engine.domain.fleet import Lookups
from aism_engine.errors import ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext

log = structlog.get_logger(component="reconciler")

_INTERVAL_S: Final = 2.0
_PAGE: Final = 1000
"""Keys scanned per step: an arbitrary number. A pass over a million keys takes half an hour, and little CPU time."""


class Reconciler(Service):
    """Scans all keys, one page per step, and restores open records that have no deadline."""

    name = "reconciler"
    times_idle_steps = True

    def __init__(self, context: ServiceContext, interval_s: float = _INTERVAL_S) -> None:
        super().__init__(context, interval_s)
        self._cursor = 0
        self._is_denied = False

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        started_at = self._clock.monotonic()
        try:
            self._cursor, command_ids, group_ids = await self._store.scan_without_deadline(self._cursor, _PAGE)
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            if not self._is_denied:  # an ACL may forbid SCAN; the engine works without it
                log.warning("scan_denied", detail=str(error), consequence="lost deadlines are not restored")
            self._is_denied = True
            return False
        commands = await self._store.commands(command_ids - fleet.commands.keys())
        # Restore the group of each command together with the command. The scan may find the group later, and a group
        # does not count a command that ends before the group is restored.
        group_ids |= {each.group_id for each in commands.values() if each.group_id} - fleet.groups.keys()
        members = [*(f"group:{each}" for each in group_ids), *(f"command:{each}" for each in command_ids)]
        lookups = Lookups(commands=commands, groups=await self._store.groups(group_ids - fleet.groups.keys()))
        decisions = await self._commit_each(fleet, "orphan", members, decide_orphan, lookups)
        decided = zip(members, decisions, strict=True)
        if restored := [member for member, decision in decided if decision.outcome == "applied"]:
            log.warning("deadlines_restored", count=len(restored), first=restored[0])
        self._record_step(started_at, decisions)
        return False
