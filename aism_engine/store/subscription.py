"""One subscription that outlives its connection."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client import Client, naming_outages

_PING_AT: Final = 2
_DEAD_AT: Final = 4
"""Reads in a row that brought nothing: so many, and the server is asked for a sign of life; so many, and the connection
counts as dead. Some die without a word, and nothing is ever sent on this one that would tell.
"""


class Subscription:
    """Reads what is published on a set of channels, which may change while it reads.

    A new connection is subscribed to all of them again. Each confirmation is given to the reader: one that it did not
    ask for tells of a gap. What is wanted and what the server was told are kept apart, and made one under a lock: two
    who speak first at the same time would make two connections, of which one is never read.
    """

    def __init__(self, client: Client, channels: Sequence[str]) -> None:
        self._client = client
        self._channels = set(channels)
        self._joined = asyncio.Event()
        self._pubsub: Any = None
        self._told: set[str] = set()
        self._telling = asyncio.Lock()
        self._quiet = 0

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
                    self._pubsub, self._told = self._client.pubsub(), set()
                await self._tell()
                if not self._told:  # all were left meanwhile
                    await self.close()
                    return found
                message = await self._pubsub.get_message(timeout=timeout_s)
                await self._doubt(silent=message is None)
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
        with naming_outages():
            await self._tell()

    async def leave(self, channels: Sequence[str]) -> None:
        self._channels -= set(channels)
        with naming_outages():
            await self._tell()

    async def close(self) -> None:
        pubsub, self._pubsub, self._quiet = self._pubsub, None, 0
        if pubsub is not None:
            await pubsub.aclose()

    async def _doubt(self, *, silent: bool) -> None:
        """Ask for a sign of life where there has been none for long; raise where there still is none."""
        self._quiet = self._quiet + 1 if silent else 0
        if self._quiet == _PING_AT and self._pubsub is not None:
            await self._pubsub.ping()
        elif self._quiet >= _DEAD_AT:
            raise ServerUnavailableError("timeout", "the subscription is dead: a ping has had no answer")

    async def _tell(self) -> None:
        """Tell the server what is wanted, where there is a connection: else whoever makes the next one does."""
        async with self._telling:
            pubsub, told = self._pubsub, self._told
            if pubsub is None:
                return
            if missing := self._channels - told:
                await pubsub.subscribe(*missing)
                told |= missing
            if surplus := told - self._channels:
                await pubsub.unsubscribe(*surplus)
                told -= surplus
