"""One subscription that outlives its connection."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client_type import Client
from aism_engine.store.outages import naming_outages


class Subscription:
    """Reads the messages of a set of channels. The set may change while a task reads.

    A new connection subscribes to all channels again. The reader receives each confirmation; an unexpected one means
    that messages were missed. A lock serializes subscribing and closing: two tasks that send the first command at once
    would open two connections.
    """

    def __init__(self, client: Client, channels: Sequence[str], *, ping_after: int = 2) -> None:
        """After `ping_after` empty reads in a row the server is pinged: nothing else would show a dead connection.

        If as many further reads are empty too, the connection counts as dead.
        """
        self._client = client
        self._channels = set(channels)
        self._joined = asyncio.Event()
        self._pubsub: Any = None
        self._subscribed: set[str] = set()
        self._sync_lock = asyncio.Lock()
        self._ping_after = ping_after
        self._empty_reads = 0

    async def read(self, max_messages: int, *, timeout_s: float) -> list[tuple[bytes | None, bytes]]:
        """Wait for a message, then return those that have arrived: channel and data. A confirmation has no channel."""
        found: list[tuple[bytes | None, bytes]] = []
        if self._pubsub is None and not self._channels:  # nothing to connect for
            self._joined.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._joined.wait()
            return found
        try:
            with naming_outages():
                if self._pubsub is None:
                    self._pubsub, self._subscribed = self._client.pubsub(), set()
                await self._synchronize()
                if not self._subscribed:  # all channels were left meanwhile
                    await self.close()
                    return found
                message = await self._pubsub.get_message(timeout=timeout_s)
                await self._check_alive(silent=message is None)
                while message is not None:
                    if message["type"] == "message":
                        found.append((message["channel"], message["data"]))
                    elif message["type"] == "subscribe":
                        found.append((None, b""))
                    if len(found) >= max_messages:
                        break
                    message = await self._pubsub.get_message(timeout=0.0)
        except ServerUnavailableError:
            await self.close()
            raise
        return found

    async def join(self, channels: Sequence[str]) -> None:
        """Subscribe to more channels; `read` returns the confirmation."""
        self._channels |= set(channels)
        self._joined.set()
        with naming_outages():
            await self._synchronize()

    async def leave(self, channels: Sequence[str]) -> None:
        self._channels -= set(channels)
        with naming_outages():
            await self._synchronize()

    async def close(self) -> None:
        pubsub, self._pubsub, self._empty_reads = self._pubsub, None, 0
        if pubsub is not None:
            # Without the lock, closing makes redis-py raise AttributeError in another task that is subscribing.
            async with self._sync_lock:
                await pubsub.aclose()

    async def _check_alive(self, *, silent: bool) -> None:
        """Ping the server after several empty reads; raise if there is still no answer."""
        self._empty_reads = self._empty_reads + 1 if silent else 0
        if self._empty_reads == self._ping_after and self._pubsub is not None:
            await self._pubsub.ping()
        elif self._empty_reads >= 2 * self._ping_after:
            raise ServerUnavailableError("timeout", "the subscription is dead: no answer to a ping")

    async def _synchronize(self) -> None:
        """Subscribe and unsubscribe as wanted, if there is a connection."""
        async with self._sync_lock:
            pubsub, subscribed = self._pubsub, self._subscribed
            if pubsub is None:
                return
            if missing := self._channels - subscribed:
                await pubsub.subscribe(*missing)
                subscribed |= missing
            if surplus := subscribed - self._channels:
                await pubsub.unsubscribe(*surplus)
                subscribed -= surplus
