"""Client for operators: reads the engine's records, sends requests, receives events. Writes nothing but requests.

All methods raise `ServerUnavailableError` while the server cannot serve.
"""

import getpass
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import starmap
from typing import Any, Final, Self

import msgspec
import uuid_utils

from aism_engine.clock import iso
from aism_engine.ops.audit_log import BEGINNING, DECODE_ERRORS, AuditLog, line_from_entry
from aism_engine.ops.inspector import Inspector
from aism_engine.settings import RedisSettings
from aism_engine.store.client import Client, connect
from aism_engine.store.keys import Keys
from aism_engine.store.records import CHUNK
from aism_engine.store.subscription import Subscription

_POP_S: Final = 2.0
"""Longest blocking pop: less than the socket timeout, or a long wait would look like an outage."""
_OPERATOR_CHARACTERS: Final = 128
"""Maximum length of `operator` in a request."""
_AUDIT_INTERVAL_S: Final = 0.1
"""Pause between two reads of the audit in `events`."""


class AdminClient(Inspector):
    """Operator's client of one fleet. `connect` opens and closes its connections."""

    def __init__(self, client: Client, pubsub: Client, keys: Keys) -> None:
        super().__init__(client, keys)
        self._pubsub = pubsub
        self.audit = AuditLog(client, keys)

    @classmethod
    @asynccontextmanager
    async def connect(cls, server: RedisSettings) -> AsyncIterator[Self]:
        client, pubsub = connect(server, "operator"), connect(server, "operator-pubsub")
        try:
            yield cls(client, pubsub, Keys(server.prefix))
        finally:
            await client.aclose()
            await pubsub.aclose()

    async def request(
        self, kind: str, payload: Mapping[str, Any], *, request_id: str | None = None, timeout_s: float
    ) -> dict[str, Any]:
        """Send a request and return the engine's reply. Raises TimeoutError with the request's id if no reply comes."""
        keys, request_id = self._keys, request_id or str(uuid_utils.uuid7())
        request = {"id": request_id, "type": kind, "payload": payload, "timestamp": iso(time.time()), "reply": True}
        request["operator"] = _operator()
        body, expires_at = msgspec.json.encode(request), time.monotonic() + timeout_s
        await self._client.lpush(keys.request_queue, body)
        await self._client.publish(keys.requests, body)
        while (remaining_s := expires_at - time.monotonic()) > 0:
            wait_s = max(0.01, min(remaining_s, _POP_S))  # 0 would block forever
            popped = await self._client.brpop(keys.request_reply(request_id), timeout=wait_s)
            if popped:
                reply: dict[str, Any] = msgspec.json.decode(popped[1])
                return reply
        raise TimeoutError(request_id)

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """Yield events from now on, without end: the facts of the audit, and what is only published.

        `event` names the kind. Messages of the three channels are `error`, `measurement` and `state_declared`:
        a state that an agent published itself.
        """
        keys = self._keys
        kinds = {keys.state_changes: "state_declared", keys.errors: "error", keys.measurements: "measurement"}
        subscription = Subscription(self._pubsub, list(kinds))
        try:
            last = (await self.audit.page(BEGINNING, 1)).last or BEGINNING
            while True:
                for channel, data in await subscription.read(CHUNK, timeout_s=_AUDIT_INTERVAL_S):
                    kind, event = kinds[channel.decode()] if channel else "", _object(data)
                    if event is None or (kind == "state_declared" and event.get("source") == "engine"):
                        continue  # no event, or a change by the engine, which the audit has as well
                    yield {"event": kind, **event}
                more = True
                while more:
                    page = await self.audit.page(last)
                    for line in starmap(line_from_entry, page.entries):
                        last = line.id
                        for fact in line.decoded_facts():
                            yield fact
                    more = page.more
        finally:
            await subscription.close()


def _operator() -> str:
    """Return the user of this process and its host, as holds and the audit name them."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}".encode(errors="backslashreplace").decode()[:_OPERATOR_CHARACTERS]


def _object(data: bytes) -> dict[str, Any] | None:
    with suppress(*DECODE_ERRORS):
        value = msgspec.json.decode(data)
        return value if isinstance(value, dict) else None
    return None
