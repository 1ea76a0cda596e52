"""The janitor: trims the audit to what is to be kept, but never past what an archive has still to read; and the dead
letters that are too old.

Each commit itself trims at the hard bound, `retention.audit_entries_max`, even if an archive is behind, so that memory
is bounded. An archive may be late by the difference between the two bounds.
"""

import asyncio

import structlog

from aism_engine.clock import iso
from aism_engine.ops.audit_retention import ArchivePosition, AuditRetention, oldest_cursor
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.scripts import TrimCode

log = structlog.get_logger(component="janitor")


class Janitor(Service):
    """Trims, and forgets the archives that have said nothing for so long that nobody waits for them."""

    name = "janitor"
    polls = False

    def __init__(
        self,
        context: ServiceContext,
        retention: AuditRetention,
        *,
        interval_s: float,
        keep: int,
        dead_letters_for_s: float,
        forget_after_s: float,
    ) -> None:
        super().__init__(context)
        self._retention = retention
        self._interval_s = interval_s
        self._keep = keep
        self._dead_letters_for_s = dead_letters_for_s
        self._forget_after_s = forget_after_s

    async def run_once(self) -> bool:
        began = self._clock.monotonic()
        token = self._context.leadership.token
        if token is None:
            return False
        before = oldest_cursor(await self._archives())
        removed = 0
        while True:
            code, gone, more = await self._retention.trim_audit(token, self._keep, before)
            removed += gone
            if not more:
                break
        self._context.metrics.audit_trimmed.inc(removed)
        if code is TrimCode.FENCED:
            return False  # that we lead no more is found out by those who write
        self._context.metrics.dead_letters_trimmed.inc(
            await self._retention.trim_dead_letters(self._store.now - self._dead_letters_for_s)
        )
        self._record_step(began, ())
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._interval_s)

    async def _archives(self) -> dict[str, ArchivePosition]:
        announced = await self._retention.positions()
        now = self._store.now
        living: dict[str, ArchivePosition] = {}
        for archive, said in announced.items():
            if said is not None and now - said.at < self._forget_after_s:
                living[archive] = said
                continue
            await self._retention.remove_position(archive)
            told = {} if said is None else {"host": said.host, "directory": said.directory, "at": iso(said.at)}
            log.warning("archive_forgotten", archive=archive, **told, consequence="the audit is not kept for it")
        return living
