"""One agent's side of the protocol, over plain Redis: what any language can do in as few lines.

Every message gets an id of its own, and is pushed again under that id while the server does not confirm it: the engine
knows a second copy and takes it for none. A command is popped once: if the reply to the pop is lost, so is the command,
unless the agent registered with the capability `ack`, for which the engine sends it again.

Every method raises `ServerUnavailableError` while Redis cannot serve, and `MalformedError` for what the engine would
not understand; those that wait for an answer raise `TimeoutError` when none comes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec
import uuid_utils
from msgspec import Struct

from aism_engine.backoff import Backoff
from aism_engine.clock import iso
from aism_engine.domain.protocol.codec import MalformedError, decode_response
from aism_engine.domain.protocol.messages import CommandMessage
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client import connect_url, naming_outages
from aism_engine.store.keys import Keys

T = TypeVar("T")

_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(0.1, 0.5)
"""Pauses between attempts of an idempotent call: enough for a broken connection, not for an outage."""
_SLICE_S: Final = 2.0
"""Of a blocking pop: less than the socket's timeout, or a long wait would look like an outage."""


_LOOKED_AT: Final = 64
"""The newest commands of our list that are searched for one that calls another off: an arbitrary number."""


class Reply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the engine says to a message that asked for a reply. `state` is the agent's, after it."""

    id: str
    ok: bool
    state: str | None = None
    timestamp: str | None = None
    error: dict[str, Any] | None = None


class AgentClient:
    """Speaks for one agent. Messages that are given `reply=True` wait for the engine's answer; others return None.

    `instance` names the process that *is* the agent, a new one at each start: then a second one under the same id is
    noticed. What merely speaks for it now and then, as a tool in its shell does, gives none.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        url: str = "redis://127.0.0.1:6379/0",
        prefix: str = "aism",
        answer_timeout_s: float = 30,
        instance: str | None = None,
    ) -> None:
        if not is_identifier(agent_id):
            raise ValueError(f"{agent_id!r} is no agent id: letters, digits, `.`, `_` and `-`, at most 128 of them")
        self.agent_id = agent_id
        self._answer_timeout_s = answer_timeout_s
        self._instance = instance
        self._keys = Keys(prefix)
        self._client = connect_url(url, "agent")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    # --- presence -----------------------------------------------------------------------------------------------------

    async def register(
        self,
        kind: str,
        *,
        labels: Mapping[str, str] | None = None,
        capabilities: Sequence[str] = (),
        codec: str = "json",
        reply: bool = True,
    ) -> Reply | None:
        """Join the fleet, or start afresh in it, as an agent of this type."""
        payload = {"type": kind, "labels": labels or {}, "capabilities": list(capabilities), "codec": codec}
        return await self._say("register", payload, reply=reply)

    async def heartbeat(self) -> None:
        """Show that we live. Any clock will do: the engine sees that the score moves."""
        await self._retry(lambda: self._client.zadd(self._keys.heartbeats, {self.agent_id: time.time()}))

    async def goodbye(self, reason: str | None = None, *, reply: bool = False) -> Reply | None:
        """Leave in order: our silence from here on is no loss."""
        return await self._say("goodbye", {"reason": reason}, reply=reply)

    async def is_registered(self) -> bool:
        """Tell whether the server holds that we have registered; the engine writes it down when we do."""
        at = await self._retry(lambda: self._client.hget(self._keys.metadata(self.agent_id), "registered_at"))
        return at is not None

    async def state(self) -> str | None:
        """Read the state that the engine holds us to be in; None if it does not know us."""
        state = await self._retry(lambda: self._client.get(self._keys.state(self.agent_id)))
        return state.decode() if state is not None else None

    # --- commands -----------------------------------------------------------------------------------------------------

    async def next_command(self, wait_s: float) -> CommandMessage | None:
        """Take the oldest command, waiting for one at most so long. What is no command is reported and passed over."""
        ends_at = time.monotonic() + wait_s
        while True:
            left_s = ends_at - time.monotonic()
            raw = await self._pop(self._keys.commands(self.agent_id), min(left_s, _SLICE_S))
            if raw is not None:
                try:
                    return _decode(raw, CommandMessage)
                except msgspec.MsgspecError as error:
                    await self.error("malformed_command", str(error))
            elif left_s <= _SLICE_S:
                return None

    async def called_off(self, command_ids: Collection[str]) -> set[str]:
        """Take the `cancel` commands for any of these out of our list, wherever they lie in it."""
        key, found = self._keys.commands(self.agent_id), set[str]()
        with naming_outages():
            for raw in await self._client.lrange(key, 0, _LOOKED_AT - 1):
                try:
                    command = _decode(raw, CommandMessage)
                except msgspec.MsgspecError:
                    continue
                about = str(command.payload.get("command_id"))
                if command.type == "cancel" and about in command_ids and await self._client.lrem(key, 1, raw):
                    found.add(about)
        return found

    async def ack(self, command_id: str, *, reply: bool = False) -> Reply | None:
        """Say that we have the command and will see to it."""
        return await self._say("ack", {}, command_id, reply=reply)

    async def progress(
        self, command_id: str, *, percent: float | None = None, note: str | None = None, reply: bool = False
    ) -> Reply | None:
        return await self._say("progress", {"percent": percent, "note": note}, command_id, reply=reply)

    async def result(
        self, command_id: str, payload: Mapping[str, Any] | None = None, *, reply: bool = False
    ) -> Reply | None:
        """Say that the command is done; to a `state_transition`, that we are in its target."""
        return await self._say("result", payload or {}, command_id, reply=reply)

    async def error(
        self,
        code: str,
        message: str | None = None,
        *,
        command_id: str | None = None,
        retryable: bool | None = None,
        reply: bool = False,
    ) -> Reply | None:
        """Say that something went wrong: with a command, or with ourselves."""
        payload = {"code": code, "message": message, "retryable": retryable}
        return await self._say("error", payload, command_id, reply=reply)

    # --- states and figures -------------------------------------------------------------------------------------------

    async def transition(
        self,
        target: str,
        *,
        context: Mapping[str, Any] | None = None,
        reason: str | None = None,
        command_id: str | None = None,
        reply: bool = True,
    ) -> Reply | None:
        """Declare a change of our state; with `command_id`, also as the answer to the command that asked for it."""
        payload = {"target": target, "context": context or {}, "reason": reason}
        return await self._say("state_transition", payload, command_id, reply=reply)

    async def measure(self, values: Mapping[str, float], *, reply: bool = False) -> Reply | None:
        """Report figures by name; the engine keeps the latest of each."""
        return await self._say("measurement", values, reply=reply)

    # --- the wire -----------------------------------------------------------------------------------------------------

    def compose(
        self, kind: str, payload: Mapping[str, Any], command_id: str | None = None, *, reply: bool = False
    ) -> bytes:
        """Build a message. What the engine would bury shall not leave the house: MalformedError."""
        message: dict[str, Any] = {
            "id": str(uuid_utils.uuid7()),
            "type": kind,
            "agent_id": self.agent_id,
            "payload": {name: value for name, value in payload.items() if value is not None},
            "timestamp": iso(time.time()),
        }
        if command_id is not None:
            message["command_id"] = command_id
        if reply:
            message["reply"] = True
        if self._instance is not None:
            message["instance"] = self._instance
        body = msgspec.json.encode(message)
        decode_response(body)
        return body

    async def push(self, bodies: Sequence[bytes]) -> None:
        """Push messages, the first one first. To push them again does no harm: the engine knows their ids."""
        with naming_outages():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.lpush(self._keys.response_queue, *bodies)
            pipeline.publish(self._keys.responses, bodies[-1])
            await pipeline.execute()

    async def _say(
        self, kind: str, payload: Mapping[str, Any], command_id: str | None = None, *, reply: bool
    ) -> Reply | None:
        body = self.compose(kind, payload, command_id, reply=reply)
        await self._retry(lambda: self.push([body]))
        return await self._send_reply(msgspec.json.decode(body)["id"]) if reply else None

    async def _send_reply(self, message_id: str) -> Reply:
        key = self._keys.agent_reply(self.agent_id, message_id)
        ends_at = time.monotonic() + self._answer_timeout_s
        while (left_s := ends_at - time.monotonic()) > 0:
            raw = await self._pop(key, min(left_s, _SLICE_S))
            if raw is not None:
                return _decode(raw, Reply)
        raise TimeoutError(f"the engine has not answered {message_id} within {self._answer_timeout_s:g} s")

    async def _pop(self, key: str, wait_s: float) -> bytes | None:
        with naming_outages():
            if wait_s <= 0:
                raw: bytes | None = await self._client.rpop(key)
                return raw
            popped = await self._client.brpop(key, timeout=max(wait_s, 0.01))  # 0 would be for ever
            return popped[1] if popped else None

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make an idempotent call, and repeat it a few times while the server is unavailable."""
        for attempt in range(1, _ATTEMPTS):
            try:
                with naming_outages():
                    return await call()
            except ServerUnavailableError:
                await asyncio.sleep(_BACKOFF.limit_s(attempt))
        with naming_outages():
            return await call()


def _decode(raw: bytes, kind: type[T]) -> T:
    """Read what the engine wrote, in the codec that we registered with: JSON, or MessagePack."""
    return msgspec.json.decode(raw, type=kind) if raw[:1] == b"{" else msgspec.msgpack.decode(raw, type=kind)


__all__ = ["AgentClient", "CommandMessage", "MalformedError", "Reply"]
