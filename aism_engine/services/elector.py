"""The elector: takes the lease, keeps it, gives it back."""

import asyncio
from typing import Final

import structlog
import uuid_utils

from aism_engine.errors import ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.scripts import LeaseCode
from aism_engine.store.store import Store

log = structlog.get_logger(component="elector")

_LOOK_EVERY_S: Final = 0.25
"""How often a standby looks whether the lease is free: a clean stop is followed by a takeover within a second."""


class Elector(Service):
    """One engine leads. A lease is trusted for `ttl_s` from before it was asked for, so never longer than the server
    keeps it.
    """

    name = "elector"
    polls = False
    leads_only = False

    def __init__(self, context: ServiceContext, store: Store, *, ttl_s: float, renew_interval_s: float) -> None:
        super().__init__(context)
        self._lease_store = store
        self._ttl_s = ttl_s
        self._renew_interval_s = renew_interval_s
        self._holder = uuid_utils.uuid7().hex
        self._token: str | None = None

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._release()

    async def run_once(self) -> bool:
        leadership, metrics = self._context.leadership, self._context.metrics
        began = self._clock.monotonic()
        if leadership.token is None and self._token is not None:
            log.warning("lease_lost", token=self._token)
            self._token = None
        code, token = await self._lease_store.take_lease(self._holder, self._ttl_s, self._token)
        if code is LeaseCode.HELD and token.endswith(f":{self._holder}"):
            # A request of ours has taken it whose answer we never had: we would wait for ourselves to be gone.
            code, token = await self._lease_store.take_lease(self._holder, self._ttl_s, token)
        if code is LeaseCode.HELD:
            leadership.lose()
            self._token = None
        else:
            leadership.hold(token, began + self._ttl_s)
            if token != self._token:
                log.info("lease_taken", token=token)
            self._token = token
        metrics.epoch.set(int(token.partition(":")[0]))
        self._record_step(began, ())
        return False

    async def wait(self) -> None:
        leads = self._context.leadership.token is not None
        until_free_s = max(0.001, self._lease_store.lease_left_s)
        await asyncio.sleep(
            self._renew_interval_s if leads else min(self._renew_interval_s, _LOOK_EVERY_S, until_free_s)
        )

    async def _release(self) -> None:
        self._context.leadership.lose()
        if self._token is None:
            return
        try:
            async with asyncio.timeout(1):
                if await self._lease_store.release_lease(self._token):
                    log.info("lease_released", token=self._token)
        except (ServerUnavailableError, TimeoutError):
            log.warning("lease_not_released", token=self._token, consequence="a standby waits until it expires")
