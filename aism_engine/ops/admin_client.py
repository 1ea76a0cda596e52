"""Client for operators: reads the engine's records, sends requests, receives events. Writes nothing but requests.

All methods raise `ServerUnavailableError` while the server cannot serve. `request`, `wait` and `events` raise it
only at their start: later they wait until the server serves again. `request` also raises it later if the user may not
read the reply (`noperm`).
"""

import getpass
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, Final, Self

import msgspec
import uuid_utils

from aism_engine.backoff import Backoff
from aism_engine.clock import from_iso, iso
from aism_engine.domain.commands.group import UNDECIDED
from aism_engine.domain.protocol.codec import encode_finite
from aism_engine.durations import format_duration
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.audit_log import AuditLog
from aism_engine.ops.inspector import Inspector, Report
from aism_engine.settings import RedisSettings
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys

_POP_S: Final = 2.0
"""Longest blocking pop: less than the socket timeout, or a long wait would look like an outage."""
_OPERATOR_CHARACTERS: Final = 128
"""Maximum length of `operator` in a request."""
_POLLS: Final = Backoff(0.02, 0.5)
"""Pauses between two reads of a command that has not ended."""
_SLACK_S: Final = 30.0
"""Time for an engine to take the lease and end an expired command: an arbitrary number."""


class NoReplyError(TimeoutError):
    """The engine has not replied to a request in time. The request stays queued and may still be accepted."""

    def __init__(self, request_id: str, timeout_s: float, problem: str) -> None:
        waited = f"no engine has replied within {format_duration(timeout_s)}"
        whole = ", and ".join(filter(None, (waited, problem)))
        super().__init__(f"{whole}. Request {request_id} stays queued and may still be accepted")
        self.request_id = request_id


class AdminClient(Inspector):
    """Operator's client of one fleet. `connect` opens and closes its connections."""

    def __init__(self, client: Client, pubsub: Client, keys: Keys) -> None:
        super().__init__(client, keys)
        self._pubsub = pubsub
        self.audit = AuditLog(client, keys)

    @classmethod
    @asynccontextmanager
    async def connect(cls, server: RedisSettings) -> AsyncIterator[Self]:
        from aism_engine.store.client import connect  # noqa: PLC0415  slow to import

        client, pubsub = connect(server, "operator"), connect(server, "operator-pubsub")
        try:
            yield cls(client, pubsub, Keys(server.prefix))
        finally:
            await client.aclose()
            await pubsub.aclose()

    async def request(
        self, kind: str, payload: Mapping[str, Any], *, request_id: str | None = None, timeout_s: float
    ) -> dict[str, Any]:
        """Send a request and return the engine's reply. Raises NoReplyError, or MalformedError if it cannot be encoded.

        Raises ServerUnavailableError if Redis cannot take the request, or if the user may not read the reply. During
        any later outage it waits.
        """
        import asyncio  # noqa: PLC0415  slow to import

        keys, request_id = self._keys, request_id or str(uuid_utils.uuid7())
        request = {"id": request_id, "type": kind, "payload": payload, "timestamp": iso(time.time()), "reply": True}
        request["operator"] = _operator()
        body, expires_at = encode_finite(request), time.monotonic() + timeout_s
        await self._client.lpush(keys.request_queue, body)
        with suppress(ServerUnavailableError):  # the engine polls the queue as well
            await self._client.publish(keys.requests, request_id)
        while (remaining_s := expires_at - time.monotonic()) > 0:
            wait_s = max(0.01, min(remaining_s, _POP_S))  # 0 would block forever
            try:
                popped = await self._client.brpop(keys.request_reply(request_id), timeout=wait_s)
            except ServerUnavailableError as error:
                if error.outage == "noperm":
                    raise
                await asyncio.sleep(min(remaining_s, _POLLS.max_s))
                continue
            if popped:
                reply: dict[str, Any] = msgspec.json.decode(popped[1])
                return reply
        raise NoReplyError(request_id, timeout_s, await self.problem())

    async def problem(self) -> str:
        """Say why no engine can act now; empty if one leads."""
        try:
            return (await self.lease()).absence
        except ServerUnavailableError as error:
            return f"Redis is not available: {error.outage}"

    async def wait(
        self,
        record_id: str,
        *,
        timeout_s: float | None = None,
        report: Callable[[Mapping[str, str], str], None] = lambda _record, _problem: None,
    ) -> dict[str, str]:
        """Wait until a command has ended or a group is decided, and return its record.

        Raises TimeoutError after `timeout_s`. Without `timeout_s` it waits as long as the command may run, and raises
        TimeoutError only if the command has expired and no engine can record that.
        While it waits, `report` gets the latest record and the text of `problem()`.
        """
        import asyncio  # noqa: PLC0415  slow to import

        ends_at = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        await self._reader.read_time()
        record, reads = await self.record(record_id), 0
        while record["status"] in UNDECIDED:
            problem = await self.problem()
            with suppress(ServerUnavailableError):
                record = await self.record(record_id)
            if record["status"] not in UNDECIDED:
                break
            left_s, reads = ends_at - time.monotonic(), reads + 1
            if left_s <= 0 or (timeout_s is None and problem and self._reader.now > _last_instant(record)):
                raise TimeoutError(f"{record_id} is still {record['status']}{problem and f', and {problem}'}")
            report(record, problem)
            await asyncio.sleep(min(_POLLS.limit_s(reads), left_s))
        return record

    def events(self, report: Report = lambda _text: None) -> AsyncGenerator[dict[str, Any]]:
        """Yield events from now on, without end. See `EventStream`."""
        from aism_engine.ops.event_stream import EventStream  # noqa: PLC0415  slow to import

        return EventStream(self.audit, self._pubsub, self._keys, report).events()


@cache
def _operator() -> str:
    """Return `user@host` of this process. The engine records it as the operator, in the audit and in a hold."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}".encode(errors="backslashreplace").decode()[:_OPERATOR_CHARACTERS]


def _last_instant(record: Mapping[str, str]) -> float:
    """Return when a command or a group has expired, plus `_SLACK_S`; infinity if the record is damaged."""
    try:
        return from_iso(record["expires_at"]) + _SLACK_S
    except (KeyError, ValueError):
        return float("inf")
