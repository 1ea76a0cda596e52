"""What a person at the engine's side does: look at its records, ask for something, listen. Writes nothing but requests.

All methods raise `ServerUnavailableError` while the server cannot serve.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import msgspec
import uuid_utils

from aism_engine.clock import iso
from aism_engine.ops.audit_stream import History
from aism_engine.ops.inspector import Inspector
from aism_engine.store.client import Client, connect_url, naming_outages
from aism_engine.store.keys import Keys
from aism_engine.store.records import CHUNK
from aism_engine.store.subscription import Subscription

_SLICE_S: Final = 2.0
"""Of a blocking pop: less than the socket's timeout, or a long wait would look like an outage."""
_LOOK_EVERY_S: Final = 0.1
"""For what is new in the audit, while listening."""


class AdminClient(Inspector):
    """Stands beside one fleet. `Operator.at` opens its connections, and closes them."""

    def __init__(self, client: Client, listening: Client, keys: Keys) -> None:
        super().__init__(client, keys)
        self._listening = listening
        self.history = History(client, keys)

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, prefix: str) -> AsyncIterator[Self]:
        client, listening = connect_url(url, "operator"), connect_url(url, "operator-pubsub")
        try:
            yield cls(client, listening, Keys(prefix))
        finally:
            await client.aclose()
            await listening.aclose()

    # --- asking -------------------------------------------------------------------------------------------------------

    async def request(
        self, kind: str, payload: Mapping[str, Any], *, request_id: str | None = None, timeout_s: float
    ) -> dict[str, Any]:
        """Ask the engine for something and give its reply. Raises TimeoutError, with its id, if none comes."""
        keys, request_id = self._keys, request_id or str(uuid_utils.uuid7())
        request = {"id": request_id, "type": kind, "payload": payload, "timestamp": iso(time.time()), "reply": True}
        body, ends_at = msgspec.json.encode(request), time.monotonic() + timeout_s
        with naming_outages():
            await self._client.lpush(keys.request_queue, body)
            await self._client.publish(keys.requests, body)
            while (left_s := ends_at - time.monotonic()) > 0:
                wait_s = max(0.01, min(left_s, _SLICE_S))  # 0 would be for ever
                popped = await self._client.brpop(keys.request_reply(request_id), timeout=wait_s)
                if popped:
                    reply: dict[str, Any] = msgspec.json.decode(popped[1])
                    return reply
        raise TimeoutError(request_id)

    # --- listening ----------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """Hear what happens from now on, for ever: the facts of the audit, and what is only published.

        The kind of each stands in `event`: that of a fact is its own; `error` and `measurement` are heard on their
        channels, and so is `state_declared`, an agent's own word on its state.
        """
        keys = self._keys
        names = {
            keys.state_changes.encode(): "state_declared",
            keys.errors.encode(): "error",
            keys.measurements.encode(): "measurement",
        }
        subscription = Subscription(self._listening, [keys.state_changes, keys.errors, keys.measurements])
        try:
            with naming_outages():
                newest = await self._client.xrevrange(keys.audit, count=1)
            last = newest[0][0] if newest else b"0-0"
            while True:
                for channel, data in await subscription.read(CHUNK, timeout_s=_LOOK_EVERY_S):
                    event = _object(data) if channel is not None else None
                    if event is None or (channel == keys.state_changes.encode() and event.get("source") == "engine"):
                        continue  # of its own changes the engine tells in the audit as well
                    yield {"event": names[channel or b""], **event}
                with naming_outages():
                    entries = await self._client.xrange(keys.audit, min=b"(" + last, count=CHUNK)
                for last, fields in entries:  # noqa: B007  where to go on
                    for fact in msgspec.json.decode(fields.get(b"facts", b"[]")):
                        yield fact
        finally:
            await subscription.close()


def _object(data: bytes) -> dict[str, Any] | None:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = msgspec.json.decode(data)
        return value if isinstance(value, dict) else None
    return None
