"""Takes the lease, renews it and releases it."""

import asyncio
from typing import Final

import structlog
import uuid_utils

from aism_engine.errors import ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext
from aism_engine.settings import LeaseSettings
from aism_engine.store.scripts import LeaseCode
from aism_engine.store.store import Store

log = structlog.get_logger(component="elector")

_STANDBY_POLL_S: Final = 0.25
"""How often a standby checks the lease: after a clean stop another engine leads within a second."""


class Elector(Service):
    """Elects one engine as the leader.

    The engine trusts a lease for `ttl` seconds after it sent the request, so never longer than the server keeps it.
    """

    name = "elector"
    times_idle_steps = True
    leads_only = False

    def __init__(self, context: ServiceContext, lease_store: Store, settings: LeaseSettings) -> None:
        """`lease_store` has a client of its own, with short timeouts."""
        super().__init__(context)
        self._lease_store = lease_store
        self._settings = settings
        self._holder_id = uuid_utils.uuid7().hex
        self._token: str | None = None

    async def run_once(self) -> bool:
        leadership, ttl_s = self._context.leadership, self._settings.ttl
        started_at = self._clock.monotonic()
        if leadership.token is None and self._token is not None:
            log.warning("lease_lost", token=self._token)
            self._token = None
        code, token = await self._lease_store.acquire_lease(self._holder_id, ttl_s, self._token)
        if code is LeaseCode.HELD and token.endswith(f":{self._holder_id}"):
            # An earlier request took the lease and its reply was lost: renew, instead of waiting for it to expire.
            code, token = await self._lease_store.acquire_lease(self._holder_id, ttl_s, token)
        if code is LeaseCode.HELD:
            leadership.lose()
            self._token = None
        else:
            leadership.hold(token, started_at + ttl_s)
            if token != self._token:
                log.info("lease_taken", token=token)
            self._token = token
        self._context.metrics.epoch.set(int(token.partition(":")[0]))
        self._record_step(started_at)
        return False

    async def wait(self) -> None:
        interval_s = self._settings.renew_interval
        if self._context.leadership.token is None:
            interval_s = min(interval_s, _STANDBY_POLL_S, max(0.001, self._lease_store.lease_left_s))
        await asyncio.sleep(interval_s)

    async def release(self) -> None:
        self._context.leadership.lose()
        if self._token is None:
            return
        try:
            async with asyncio.timeout(1):
                if await self._lease_store.release_lease(self._token):
                    log.info("lease_released", token=self._token)
        except (ServerUnavailableError, TimeoutError):
            log.warning("lease_not_released", token=self._token, consequence="a standby waits until it expires")
