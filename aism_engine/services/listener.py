"""The listener: what is only published. It wakes the consumer and the dispatcher, and puts agents' own state changes
into the queue.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import structlog
import uuid_utils

from aism_engine.errors import ServerUnavailableError
from aism_engine.model.codec import decode_as, encode
from aism_engine.services.base import Context, Service
from aism_engine.services.hints import Hint
from aism_engine.store.subscription import Subscription

log = structlog.get_logger(component="listener")

_OURS: Final = b'"source":"engine"'
_CONFIRM_S: Final = 0.1
"""How long a subscription may take to be confirmed; past that the poll has to do."""

_DEAF_S: Final = 5.0
"""Between attempts to listen where that is forbidden: an arbitrary number."""


class Heard(msgspec.Struct):
    """A state change that an agent published: the consumer will judge its values."""

    agent_id: Any = None
    new_state: Any = None


class Listener(Service):
    """Hears hints and declarations. Losing all of them costs latency, and what was only published.

    An agent's own state change becomes a message on the response queue, marked `via: pubsub`: it is decided in order,
    behind what the agent pushed before, and exactly once from there on. What is no JSON object goes into the queue as
    it is, and is buried there with its reason.
    """

    name = "listener"

    def __init__(
        self, context: Context, subscription: Subscription, responses: Hint, requests: Hint, *, most: int
    ) -> None:
        super().__init__(context)
        self._subscription = subscription
        self._most = most
        keys = self._store.keys
        self._hints = {keys.responses.encode(): responses, keys.requests.encode(): requests}
        self._state_changes = keys.state_changes.encode()
        self._confirmed = asyncio.Event()
        self._pushed = 0
        self._is_deaf = False
        # A busy consumer hears neither its hint nor the engine's own events: one costs 20 µs, and there is one for each
        # state change.
        responses.connect(*self._switch((keys.responses, keys.state_changes)))
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
        declarations: list[bytes] = []
        for channel, data in heard:
            if channel is None:  # a confirmation: after a reconnection there was a gap
                self._confirmed.set()
                for hint in self._hints.values():
                    hint.ring()
            elif (hint := self._hints.get(channel)) is not None:  # type: ignore[assignment]
                hint.ring()
            elif channel == self._state_changes and _OURS not in data:
                declarations.append(declaration(data))
        token = self._context.leadership.token
        if declarations and token is not None:
            self._pushed += 1
            await self._store.push_heard(token, self._pushed, declarations)
            self._context.metrics.heard.labels("declaration").inc(len(declarations))
            self._hints[self._store.keys.responses.encode()].ring()
        if heard:
            self._worked(began, ())
        return True

    async def _go_deaf(self, error: ServerUnavailableError) -> bool:
        """Do without: what is only published is a hint, and a server that forbids us to listen serves all the same."""
        if not self._is_deaf:
            self._is_deaf = True
            log.warning("listening_denied", detail=str(error), consequence="queues are polled; publications are lost")
        await asyncio.sleep(_DEAF_S)
        return True

    async def wait(self) -> None:
        await asyncio.sleep(0)

    async def stand_by(self) -> None:
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
            await self._subscription.join(channels)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_S):
                    await self._confirmed.wait()

        return off, on


def declaration(published: bytes) -> bytes:
    """Turn a published state change into the message that it stands for; what is none is passed on as it is.

    What is passed on can be no message either, and will be buried: it could not be decoded, or is no object.
    """
    try:
        heard = decode_as(Heard, published)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return published
    message = {
        "id": str(uuid_utils.uuid7()),
        "type": "state_transition",
        "agent_id": heard.agent_id if isinstance(heard.agent_id, str) else None,
        "payload": {"target": heard.new_state if isinstance(heard.new_state, str) else None},
        "via": "pubsub",
    }
    return encode(message)
