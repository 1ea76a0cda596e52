"""Subscribes to what agents publish on channels, and pushes it to the response queue."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from aism_engine.errors import ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext
from aism_engine.services.publications import Publications, noisiest_publisher
from aism_engine.settings import QueueSettings
from aism_engine.store.subscription import Subscription

log = structlog.get_logger(component="listener")

_OWN_SOURCE: Final = b'"source":"engine"'
_READ_S: Final = 1.0
_CONFIRMATION_S: Final = 0.1
"""Longest wait for the confirmation of a subscription. Messages published before the confirmation may be lost."""
_WINDOW_S: Final = 1.0
"""Window of the rate limits."""
_MALFORMED_PER_WINDOW: Final = 1
"""Malformed measurements that are dead-lettered per window: enough for the publisher to notice."""
_MEASUREMENT_BYTES: Final = 1024
"""A measurement counts once, and once more for each full 1024 bytes: reading and decoding these costs about as much as
a short measurement.
"""
_DENIED_PAUSE_S: Final = 5.0
"""Pause between attempts to subscribe while an ACL forbids it: an arbitrary number."""


class Listener(Service):
    """Subscribes to state changes and measurements. What is published while the listener is not subscribed is lost.

    A published state change or measurement becomes a message on the response queue, marked `via: channel`. From there
    it is applied exactly once, after everything that the agent pushed before. The consumer dead-letters a malformed
    one. Of malformed measurements only one a second is queued.

    Reading a message costs 20 µs, more if it is long. Once the measurements of one second exceed
    `measurements.published_per_second`, the listener leaves their channel until the second is over. A flood of
    measurements therefore costs no more than that limit, and delays no other message.
    """

    name = "listener"

    def __init__(self, context: ServiceContext, subscription: Subscription, settings: QueueSettings) -> None:
        """`settings` are those of the response consumer: at most one batch is read per step."""
        super().__init__(context)
        self._subscription = subscription
        self._batch = settings.batch_messages
        self._limit = context.policy.measurements.published_per_second
        self._window_started_at = 0.0
        self._measurements_read = 0
        """Measurements in the current window, including the engine's own; a long one counts several times."""
        self._is_rate_limited = False
        self._malformed_left = 0
        keys = self._store.keys
        self._measurements = keys.measurements
        self._measurements_raw = keys.measurements.encode()
        self._confirmed = asyncio.Event()
        self._pushes = 0
        """Number of pushes so far. Redis refuses a push that arrives after a later one."""
        self._is_denied = False
        # The response consumer mutes its wakeup when its queue holds more than one batch. The listener is unsubscribed
        # while the wakeup is muted, and what agents publish meanwhile is lost. If the listener stayed subscribed, it
        # would also read each event that the engine itself publishes on these channels, at a cost of 20 µs per event.
        channels = (keys.state_changes, keys.measurements)
        context.wakeups.responses.connect(partial(subscription.leave, channels), partial(self._join, channels))

    async def run_once(self) -> bool:
        started_at = self._clock.monotonic()
        try:
            received = await self._subscription.read(self._batch, timeout_s=_READ_S)
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            await self._pause_denied(error)
            return True
        self._is_denied = False
        await self._update_window()
        publications = Publications(max_malformed=self._malformed_left)
        for channel, data in received:
            self._handle(channel, data, publications)
        if self._is_over_limit:
            await self._limit_rate([data for channel, data in received if channel == self._measurements_raw])
        await self._push(publications)
        self._record_step(started_at)
        return True

    async def release(self) -> None:
        await self._subscription.close()  # the server would buffer unread messages, then close the connection

    def _handle(self, channel: bytes | None, data: bytes, publications: Publications) -> None:
        if channel is None:  # the server confirms a subscription
            self._confirmed.set()
        elif channel == self._measurements_raw:
            self._handle_measurement(data, publications)
        elif _OWN_SOURCE not in data:
            publications.add_state_change(data)

    async def _push(self, publications: Publications) -> None:
        messages, token = publications.finish(), self._context.leadership.token
        self._malformed_left = max(0, self._malformed_left - publications.counts["malformed"])
        if token is None:
            return
        if messages:
            self._pushes += 1
            await self._store.push_published(token, self._pushes, messages)
            self._context.wakeups.responses.set()
        for outcome, count in publications.counts.items():
            self._context.metrics.publications.labels(outcome).inc(count)

    # --- the rate limit of measurements -------------------------------------------------------------------------------

    def _handle_measurement(self, data: bytes, publications: Publications) -> None:
        # A long measurement counts several times. It is accepted while the count is below the limit, so the count may
        # then exceed the limit.
        has_room = self._measurements_read < self._limit
        self._measurements_read += 1 + len(data) // _MEASUREMENT_BYTES
        if _OWN_SOURCE in data:
            return
        if has_room:
            publications.add_measurement(data)
        else:
            publications.counts["dropped"] += 1

    @property
    def _is_over_limit(self) -> bool:
        return self._measurements_read > self._limit

    async def _update_window(self) -> None:
        """Start a new window when the current one is over, and subscribe to measurements again."""
        now = self._clock.monotonic()
        if now - self._window_started_at < _WINDOW_S:
            return
        if self._is_rate_limited and not self._is_over_limit:
            self._is_rate_limited = False
            log.info("measurements_rate_limit_ended")
        self._window_started_at, self._measurements_read, self._malformed_left = now, 0, _MALFORMED_PER_WINDOW
        if not self._context.wakeups.responses.muted:  # if muted, `unmute` joins the channel later
            await self._subscription.join((self._measurements,))

    async def _limit_rate(self, batch: Sequence[bytes]) -> None:
        if not self._is_rate_limited:
            self._is_rate_limited = True
            log.warning(
                "measurements_rate_limited",
                limit=self._limit,
                consequence="further measurements are dropped",
                noisiest_agent=noisiest_publisher(batch),
            )
        await self._subscription.leave((self._measurements,))

    # --- subscribing --------------------------------------------------------------------------------------------------

    async def _pause_denied(self, error: ServerUnavailableError) -> None:
        """Log the denial once, and pause. Only publications are lost: the server serves everything else."""
        if not self._is_denied:
            self._is_denied = True
            log.warning("subscribe_denied", detail=str(error), consequence="publications are lost")
        await asyncio.sleep(_DENIED_PAUSE_S)

    async def _join(self, channels: Sequence[str]) -> None:
        self._confirmed.clear()
        excluded = self._measurements if self._is_over_limit else None
        await self._subscription.join([channel for channel in channels if channel != excluded])
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONFIRMATION_S):
                await self._confirmed.wait()
