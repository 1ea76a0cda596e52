"""The agent's side of the protocol for one call from a shell: blocking, and quick to import.

If Redis does not confirm a message, it is pushed again under its id, a few times: the engine ignores the second copy. A
popped command is put back if it cannot be printed. It is lost if this process dies before it has printed the command,
unless the agent registered with the capability `ack`. Then the engine delivers it again.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import uuid_utils

from aism_engine.backoff import Backoff
from aism_engine.domain.protocol.names import check_agent_id
from aism_engine.durations import format_duration
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.keys import Keys
from aism_engine.store.lease import LeaseStatus
from aism_engine.store.sync_redis import SyncRedis

T = TypeVar("T")

_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(0.1, 0.5)
"""Pauses between attempts of a call."""
_MAX_BLOCK_S: Final = 2.0
"""Longest blocking pop: after that time a connection that died silently is noticed."""


class SyncAgentClient:
    """Client of one agent. All methods raise ServerUnavailableError while Redis is not available."""

    def __init__(self, agent_id: str, url: str, prefix: str) -> None:
        """Connect lazily, at the first call. Raises ValueError for an invalid id."""
        self.agent_id = check_agent_id(agent_id)
        self.keys = Keys(prefix)
        self._url = url
        self._connection: SyncRedis | None = None
        self._taken: tuple[str, bytes] | None = None

    def send(self, kind: str, payload: Mapping[str, Any], command_id: str | None, timeout_s: float) -> dict[str, Any]:
        """Push a message and wait for the engine's reply. Raises TimeoutError without one; the message stays queued."""
        message_id = self._push(kind, payload, command_id, reply=True)
        reply = self.pop(self.keys.agent_reply(self.agent_id, message_id), timeout_s)
        if reply is None:
            waited = format_duration(timeout_s)
            raise TimeoutError(f"the engine has not replied to message {message_id} within {waited}")
        return reply

    def heartbeat(self) -> None:
        self._retry(lambda redis: redis.call("ZADD", self.keys.heartbeats, time.time(), self.agent_id))

    def state(self) -> str | None:
        """Read the agent's state according to the engine; None if the engine does not know the agent."""
        state = self._retry(lambda redis: redis.call("GET", self.keys.state(self.agent_id)))
        return state.decode() if state is not None else None

    def registration_and_lease(self) -> tuple[bool, LeaseStatus]:
        """Read whether the engine's record of a registration is on the server, and whether an engine leads.

        A lease that the user may not read counts as held.
        """
        reads = (("HGET", self.keys.metadata(self.agent_id), "registered_at"), *LeaseStatus.reads(self.keys))
        registered_at, *lease = self._connect().replies(reads)
        if isinstance(registered_at, Exception):
            raise registered_at
        is_readable = not any(isinstance(reply, Exception) for reply in lease)
        return registered_at is not None, LeaseStatus.parse(*lease) if is_readable else LeaseStatus("", None, 0.0)

    def pop(self, key: str, wait_s: float, code: str = "malformed_reply") -> dict[str, Any] | None:
        """Pop the oldest message of a list, waiting at most `wait_s` for one. `put_back` undoes it.

        An entry that is no message is skipped, and reported to the engine as an error with this code. During an outage,
        this method tries to reconnect until `wait_s` has passed.
        """
        ends_at, failures = time.monotonic() + wait_s, 0
        while True:
            left_s = ends_at - time.monotonic()
            try:
                raw = self._pop(key, min(left_s, _MAX_BLOCK_S))
            except ServerUnavailableError:
                self.close()
                if left_s <= 0:
                    raise
                failures += 1
                time.sleep(min(_BACKOFF.limit_s(failures), left_s))
                continue
            message = _decode(raw) if raw is not None else None
            self._taken = (key, raw) if raw is not None else None
            if message is not None or (raw is None and left_s <= 0):
                return message
            if raw is not None:
                self._push("error", {"code": code, "message": "expected an object in JSON or MessagePack"})

    def put_back(self) -> None:
        """Undo the last pop: push the message back to its list, as the one that is popped next.

        If Redis does not confirm the push, the message is pushed again, and may then be in the list twice.
        """
        if self._taken is not None:
            key, raw = self._taken
            self._retry(lambda redis: redis.call("RPUSH", key, raw))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _push(
        self, kind: str, payload: Mapping[str, Any], command_id: str | None = None, *, reply: bool = False
    ) -> str:
        """Push a message to the engine and return its id."""
        message_id = str(uuid_utils.uuid7())
        message = {"id": message_id, "type": kind, "agent_id": self.agent_id, "payload": payload, "reply": reply}
        if command_id is not None:
            message["command_id"] = command_id
        push = ("LPUSH", self.keys.response_queue, json.dumps(message).encode())
        publish = ("PUBLISH", self.keys.responses, self.agent_id)  # the engine ignores the content
        self._retry(lambda redis: redis.calls([push, publish]))
        return message_id

    def _pop(self, key: str, wait_s: float) -> bytes | None:
        if wait_s <= 0:
            raw: bytes | None = self._connect().call("RPOP", key)
            return raw
        block_s = max(round(wait_s, 3), 0.01)  # a timeout of 0 means no limit
        popped = self._connect().call("BRPOP", key, block_s, wait_s=wait_s)
        return popped[1] if popped else None

    def _connect(self) -> SyncRedis:
        if self._connection is None:
            self._connection = SyncRedis(self._url)
        return self._connection

    def _retry(self, call: Callable[[SyncRedis], T]) -> T:
        """Repeat a call a few times while Redis is not available. Redis may execute it more than once."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return call(self._connect())
            except ServerUnavailableError:
                self.close()
                time.sleep(_BACKOFF.limit_s(attempt))
        return call(self._connect())


def _decode(raw: bytes) -> dict[str, Any] | None:
    """Decode an object in JSON or in MessagePack; return None for anything else.

    `aism register` always chooses JSON. Another program may have registered the agent with the codec `msgpack`.
    """
    try:
        if raw[:1] == b"{":
            message = json.loads(raw)
        else:
            import msgspec  # noqa: PLC0415  slow to import and seldom needed

            message = msgspec.msgpack.decode(raw)
    except (ValueError, RecursionError):  # ValueError is the base class of the errors of both decoders
        return None
    return message if isinstance(message, dict) else None
