"""One agent's side of the protocol for a single call from a shell: blocking, and quick to import.

A message is pushed again under its id while the server does not confirm it: the engine knows a second copy. A command
that was popped is in our hands: if we die before it is printed it is gone, unless the agent registered with the
capability `ack`, for which the engine sends it again.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import uuid_utils

from aism_engine.backoff import Backoff
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.keys import Keys
from aism_engine.store.sync_redis import SyncRedis

T = TypeVar("T")

_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(0.1, 0.5)
"""Pauses between attempts of an idempotent call."""
_SLICE_S: Final = 2.0
"""Of a blocking pop: by then a connection that died without a word is noticed."""


class SyncAgentClient:
    """Speaks for one agent. All methods raise ServerUnavailableError while the server cannot serve."""

    def __init__(self, agent_id: str, url: str, prefix: str) -> None:
        """Nothing is connected before there is something to say. Raises ValueError where the id is none."""
        if not is_identifier(agent_id):
            raise ValueError(f"{agent_id!r} is no agent id: letters, digits, `.`, `_` and `-`, at most 128 of them")
        self.agent_id = agent_id
        self.keys = Keys(prefix)
        self._url = url
        self._wire: SyncRedis | None = None

    def say(self, kind: str, payload: Mapping[str, Any], command_id: str | None, timeout_s: float) -> dict[str, Any]:
        """Push a message and wait for the engine's answer. Raises TimeoutError where none comes; the push stays."""
        message_id = str(uuid_utils.uuid7())
        given = {name: value for name, value in payload.items() if value is not None}
        message = {"id": message_id, "type": kind, "agent_id": self.agent_id, "payload": given, "reply": True}
        if command_id is not None:
            message["command_id"] = command_id
        body = json.dumps(message).encode()
        keys = self.keys
        self._retry(
            lambda wire: wire.calls([("LPUSH", keys.response_queue, body), ("PUBLISH", keys.responses, message_id)])
        )
        answer = self.pop(keys.agent_reply(self.agent_id, message_id), timeout_s)
        if answer is None:
            raise TimeoutError(f"the engine has not answered {message_id} within {timeout_s:g} s")
        return answer

    def beat(self) -> None:
        self._retry(lambda wire: wire.call("ZADD", self.keys.heartbeats, time.time(), self.agent_id))

    def state(self) -> str | None:
        """Read the state that the engine holds us to be in; none where it has not met us."""
        found = self._retry(lambda wire: wire.call("GET", self.keys.state(self.agent_id)))
        return found.decode() if found is not None else None

    def pop(self, key: str, wait_s: float) -> dict[str, Any] | None:
        """Take the oldest message of a list, waiting for one at most so long; a broken connection is made again.

        What is no message at all is passed over.
        """
        ends_at = time.monotonic() + wait_s
        while True:
            left_s = ends_at - time.monotonic()
            try:
                raw = self._pop(key, min(left_s, _SLICE_S))
            except ServerUnavailableError:
                self.close()
                if left_s <= 0 or wait_s == 0:
                    raise
                time.sleep(min(_BACKOFF.max_s, left_s))
                continue
            message = _decoded(raw) if raw is not None else None
            if message is not None or (raw is None and left_s <= 0):
                return message

    def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _pop(self, key: str, wait_s: float) -> bytes | None:
        if wait_s <= 0:
            raw: bytes | None = self._connected().call("RPOP", key)
            return raw
        popped = self._connected().call("BRPOP", key, max(round(wait_s, 3), 0.01), wait_s=wait_s)  # 0 would be for ever
        return popped[1] if popped else None

    def _connected(self) -> SyncRedis:
        if self._wire is None:
            self._wire = SyncRedis.open(self._url)
        return self._wire

    def _retry(self, ask: Callable[[SyncRedis], T]) -> T:
        """Make an idempotent call, and repeat it a few times while the server is unavailable."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return ask(self._connected())
            except ServerUnavailableError:
                self.close()
                time.sleep(_BACKOFF.limit_s(attempt))
        return ask(self._connected())


def _decoded(raw: bytes) -> dict[str, Any] | None:
    """Read what the engine wrote: JSON, or MessagePack to an agent that registered for it by other means."""
    try:
        if raw[:1] == b"{":
            found = json.loads(raw)
        else:
            import msgspec  # noqa: PLC0415  slow, and seldom needed

            found = msgspec.msgpack.decode(raw)
    except ValueError:  # msgspec's errors are such, too
        return None
    return found if isinstance(found, dict) else None
