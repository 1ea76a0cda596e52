"""The listener: what is only published. It wakes the consumer and the dispatcher, and puts what agents publish of their
states and measurements into the queue.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from aism_engine.errors import ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext
from aism_engine.services.publications import Publications, loudest
from aism_engine.services.wakeup import Wakeup
from aism_engine.store.subscription import Subscription

log = structlog.get_logger(component="listener")

_OURS: Final = b'"source":"engine"'
_CONFIRM_S: Final = 0.1
"""How long a subscription may take to be confirmed; past that the poll has to do."""

_SECOND: Final = 1.0
_NONSENSE_PER_S: Final = 1
"""Of what is no measurement, how much is buried: enough for its sender to see, whatever comes."""
_WEIGHS_ONE: Final = 1024
"""Bytes that count as one measurement more: to read and decode so many costs about as much as to hear one."""

_DEAF_S: Final = 5.0
"""Between attempts to listen where that is forbidden: an arbitrary number."""


class Listener(Service):
    """Hears hints and declarations. Losing all of them costs latency, and what was only published.

    An agent's own state change, or measurement, becomes a message on the response queue, marked `via: pubsub`: it is
    decided in order, behind what the agent pushed before, and exactly once from there on. What is no JSON object goes
    into the queue as it is, and is buried there with its reason.

    To hear one costs 20 µs, whatever it says, and a long one more. When more measurements come in a second than we may
    hear, we leave their channel until the second is over: a flood of them costs no more than that, and nobody else
    anything.
    """

    name = "listener"

    def __init__(
        self,
        context: ServiceContext,
        subscription: Subscription,
        responses: Wakeup,
        requests: Wakeup,
        *,
        most: int,
        measures_per_s: int,
    ) -> None:
        super().__init__(context)
        self._subscription = subscription
        self._most = most
        self._measures_per_s = measures_per_s
        self._second_began = 0.0
        self._measures_heard = 0
        """In the second that runs, the engine's own among them; a long one counts as several."""
        self._is_flooded = False
        self._nonsense_left = 0
        keys = self._store.keys
        self._hints = {keys.responses.encode(): responses, keys.requests.encode(): requests}
        self._responses = responses
        self._measurements = keys.measurements.encode()
        self._confirmed = asyncio.Event()
        self._pushed = 0
        self._is_deaf = False
        # A busy consumer hears neither its hint nor the engine's own events: one costs 20 µs, and there is one for each
        # state change.
        responses.connect(*self._switch((keys.responses, keys.state_changes, keys.measurements)))
        requests.connect(*self._switch((keys.requests,)))

    async def run_once(self) -> bool:
        """Hear what has come, at most for a second, and pass it on."""
        began = self._clock.monotonic()
        try:
            heard = await self._subscription.read(self._most, timeout_s=1.0)
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            return await self._go_deaf(error)
        self._is_deaf = False
        await self._begin_second()
        publications = Publications(nonsense=self._nonsense_left)
        for channel, data in heard:
            self._take(channel, data, publications)
        if self._is_shut_out:
            await self._shut_out([data for channel, data in heard if channel == self._measurements])
        await self._pass_on(publications)
        self._record_step(began, ())
        return True

    def _take(self, channel: bytes | None, data: bytes, publications: Publications) -> None:
        if channel is None:  # a confirmation: after a reconnection there was a gap
            self._confirmed.set()
            for hint in self._hints.values():
                hint.set()
        elif (hint := self._hints.get(channel)) is not None:  # type: ignore[assignment]
            hint.set()
        elif channel == self._measurements:
            self._take_measurement(data, publications)
        elif _OURS not in data:
            publications.declare(data)

    async def _pass_on(self, publications: Publications) -> None:
        messages, token = publications.close(), self._context.leadership.token
        self._nonsense_left = max(0, self._nonsense_left - publications.heard["malformed"])
        if token is None:
            return
        if messages:
            self._pushed += 1
            await self._store.push_published(token, self._pushed, messages)
            self._responses.set()
        for outcome, count in publications.heard.items():
            self._context.metrics.publications.labels(outcome).inc(count)

    # --- a flood of measurements --------------------------------------------------------------------------------------

    def _take_measurement(self, data: bytes, publications: Publications) -> None:
        has_room = self._measures_heard < self._measures_per_s  # for one that is long, too: else it had none ever
        self._measures_heard += 1 + len(data) // _WEIGHS_ONE
        if _OURS in data:
            return
        if has_room:
            publications.measure(data)
        else:
            publications.heard["dropped"] += 1

    @property
    def _is_shut_out(self) -> bool:
        """Whether more measurements have come in this second than we may hear."""
        return self._measures_heard > self._measures_per_s

    async def _begin_second(self) -> None:
        """Begin to count anew when a second is over, and listen to measurements again."""
        now = self._clock.monotonic()
        if now - self._second_began < _SECOND:
            return
        if self._is_flooded and not self._is_shut_out:
            self._is_flooded = False
            log.info("measurements_flood_over")
        self._second_began, self._measures_heard, self._nonsense_left = now, 0, _NONSENSE_PER_S
        if not self._responses.muted:  # else it is joined with the others, when the consumer is idle
            await self._subscription.join((self._store.keys.measurements,))

    async def _shut_out(self, last: Sequence[bytes]) -> None:
        if not self._is_flooded:
            self._is_flooded = True
            log.warning(
                "measurements_flooded",
                limit=self._measures_per_s,
                consequence="more are left unheard",
                loudest=loudest(last),
            )
        await self._subscription.leave((self._store.keys.measurements,))

    # --- coming and going ---------------------------------------------------------------------------------------------

    async def _go_deaf(self, error: ServerUnavailableError) -> bool:
        """Do without: what is only published is a hint, and a server that forbids us to listen serves all the same."""
        if not self._is_deaf:
            self._is_deaf = True
            log.warning("listening_denied", detail=str(error), consequence="queues are polled; publications are lost")
        await asyncio.sleep(_DEAF_S)
        return True

    async def wait(self) -> None:
        await asyncio.sleep(0)

    async def on_standby(self) -> None:
        await self._subscription.close()  # unread, it would fill the server's memory until the server cuts it off

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._subscription.close()

    def _switch(self, channels: Sequence[str]) -> tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]:
        async def off() -> None:
            await self._subscription.leave(channels)

        async def on() -> None:
            self._confirmed.clear()
            barred = self._store.keys.measurements if self._is_shut_out else None
            wanted = [channel for channel in channels if channel != barred]
            await self._subscription.join(wanted)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_S):
                    await self._confirmed.wait()

        return off, on
