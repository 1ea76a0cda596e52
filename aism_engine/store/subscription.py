"""One subscription that outlives its connection."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client import Client, naming_outages


class Subscription:
    """Reads what is published on a set of channels, which may change while it reads.

    A new connection is subscribed to all of them again. Each confirmation is given to the reader: one that it did not
    ask for tells of a gap.
    """

    def __init__(self, client: Client, channels: Sequence[str]) -> None:
        self._client = client
        self._channels = set(channels)
        self._joined = asyncio.Event()
        self._pubsub: Any = None

    async def read(self, most: int, *, timeout_s: float) -> list[tuple[bytes | None, bytes]]:
        """Wait for something to be published, then take what is there: pairs of channel and data; a confirmation has no
        channel.
        """
        found: list[tuple[bytes | None, bytes]] = []
        if self._pubsub is None and not self._channels:  # without a channel there is nothing to connect for
            self._joined.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._joined.wait()
            return found
        try:
            with naming_outages():
                if self._pubsub is None:
                    self._pubsub = self._client.pubsub()
                    if self._channels:
                        await self._pubsub.subscribe(*self._channels)
                message = await self._pubsub.get_message(timeout=timeout_s)
                while message is not None:
                    if message["type"] == "message":
                        found.append((message["channel"], message["data"]))
                    elif message["type"] == "subscribe":
                        found.append((None, b""))
                    if len(found) >= most:
                        break
                    message = await self._pubsub.get_message(timeout=0.0)
        except ServerUnavailableError:
            await self.close()
            raise
        return found

    async def join(self, channels: Sequence[str]) -> None:
        """Subscribe to more channels; `read` gives the confirmation."""
        self._channels |= set(channels)
        self._joined.set()
        await self._tell("subscribe", channels)

    async def leave(self, channels: Sequence[str]) -> None:
        self._channels -= set(channels)
        await self._tell("unsubscribe", channels)

    async def close(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            await pubsub.aclose()

    async def _tell(self, command: str, channels: Sequence[str]) -> None:
        if self._pubsub is None:
            return  # whoever connects next subscribes to what is wanted then
        with naming_outages():
            await getattr(self._pubsub, command)(*channels)
