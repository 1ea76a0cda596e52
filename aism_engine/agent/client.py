"""The agent's side of the protocol over plain Redis, for asyncio.

Every message has an id of its own. If Redis does not confirm a message, `send` and `call` push it again under that id,
a few times: the engine ignores the second copy. A command is popped once: if the reply to the pop is lost, the command
is lost too, unless the agent registered with the capability `ack`. Then the engine delivers it again.

A method that calls Redis raises `ServerUnavailableError` while Redis is not available, except `local_deadline`. A
method that builds a message raises `MalformedError` if the engine would refuse the message.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

import msgspec
import uuid_utils
from msgspec import Struct

from aism_engine.backoff import Backoff
from aism_engine.clock import from_iso, iso
from aism_engine.domain.plain_words import explain
from aism_engine.domain.protocol.codec import MalformedError, decode_as, decode_response, encode_finite
from aism_engine.domain.protocol.messages import CommandMessage
from aism_engine.domain.protocol.names import check_agent_id
from aism_engine.durations import format_duration
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client import connect_url
from aism_engine.store.keys import Keys

T = TypeVar("T")

_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(0.2, 1.0)
"""Pauses between attempts of an idempotent call: long enough to reconnect, too short to bridge an outage."""
_MAX_BLOCK_S: Final = 2.0
"""Longest blocking pop: less than the timeout of the socket, because a socket timeout counts as an outage."""
_MAX_SEARCHED: Final = 64
"""Commands that a search for cancellations reads, the oldest first: an arbitrary number."""


class Reply(Struct, frozen=True, kw_only=True):
    """Reply of the engine to a message that asked for one. `state` is that of the agent after the message."""

    id: str
    ok: bool
    state: str | None = None
    error: dict[str, Any] | None = None


class InboxContent(Struct, frozen=True, rename={"sender": "from"}):
    """What another agent has sent."""

    sender: str
    content: Any
    thread_id: str | None = None


class InboxMessage(Struct, frozen=True, kw_only=True):
    """A message as the agent pops it from its inbox."""

    id: str
    payload: InboxContent


class AgentClient(AbstractAsyncContextManager["AgentClient"]):
    """Client of one agent.

    `instance` identifies the agent's process. It is new at each start, so that the engine notices two processes under
    one id. A tool that only sometimes sends messages for the agent has no instance.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        url: str = "redis://127.0.0.1:6379/0",
        prefix: str = "aism",
        reply_timeout_s: float = 30,
        timeout_s: float | None = None,
        instance: str | None = None,
    ) -> None:
        self.agent_id = check_agent_id(agent_id)
        self._reply_timeout_s = reply_timeout_s
        self._instance = instance
        self._keys = Keys(prefix)
        self._client = connect_url(url, "agent", timeout_s=timeout_s)

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    # --- messages -----------------------------------------------------------------------------------------------------

    async def send(self, kind: str, payload: Mapping[str, Any], command_id: str | None = None) -> None:
        """Send a message. `kind` is a response type of docs/protocol.md, `command_id` the command that it is about."""
        body = self.build_message(kind, payload, command_id)
        await retry(lambda: self.push([body]))

    async def call(self, kind: str, payload: Mapping[str, Any], command_id: str | None = None) -> Reply:
        """Send a message and wait for the engine's reply. Raises TimeoutError without one."""
        body = self.build_message(kind, payload, command_id, reply=True)
        await retry(lambda: self.push([body]))
        return await self.reply_to(body)

    async def reply_to(self, body: bytes) -> Reply:
        """Wait for the engine's reply to a message that asks for one. Raises TimeoutError without one."""
        message_id = msgspec.json.decode(body)["id"]
        raw = await self._pop(self._keys.agent_reply(self.agent_id, message_id), self._reply_timeout_s)
        if raw is None:
            waited = format_duration(self._reply_timeout_s)
            raise TimeoutError(f"the engine has not replied to message {message_id} within {waited}")
        return decode_as(Reply, raw)

    async def register(
        self,
        kind: str,
        *,
        labels: Mapping[str, str] | None = None,
        capabilities: Sequence[str] = (),
        codec: str = "json",
    ) -> Reply:
        """Register as an agent of this type. An agent must register again after each restart."""
        payload = {"type": kind, "labels": labels or {}, "capabilities": list(capabilities), "codec": codec}
        return await self.call("register", payload)

    async def transition(
        self, target: str, *, context: Mapping[str, Any] | None = None, command_id: str | None = None
    ) -> Reply:
        """Declare a new state. With `command_id`, this is also the outcome of the command that asked for the state."""
        return await self.call("state_transition", {"target": target, "context": context or {}}, command_id)

    def build_message(
        self, kind: str, payload: Mapping[str, Any], command_id: str | None = None, *, reply: bool = False
    ) -> bytes:
        """Encode a message. Raises MalformedError for a message that the engine would refuse."""
        message: dict[str, Any] = {
            "id": str(uuid_utils.uuid7()),
            "type": kind,
            "agent_id": self.agent_id,
            "payload": payload,
            "timestamp": iso(time.time()),
        }
        if command_id is not None:
            message["command_id"] = command_id
        if reply:
            message["reply"] = True
        if self._instance is not None:
            message["instance"] = self._instance
        body = encode_finite(message)
        decode_response(body)
        return body

    async def push(self, bodies: Sequence[bytes]) -> None:
        """Push messages, the first one first. Idempotent: the engine knows their ids."""
        push = ("LPUSH", self._keys.response_queue, *bodies)
        publish = ("PUBLISH", self._keys.responses, self.agent_id)  # the engine ignores the content
        await self._client.execute_commands([push, publish])

    # --- presence -----------------------------------------------------------------------------------------------------

    async def heartbeat(self) -> None:
        """Send a heartbeat. The agent's clock may be wrong: the engine observes changes of the score."""
        await retry(lambda: self._client.zadd(self._keys.heartbeats, {self.agent_id: time.time()}))

    async def is_registered(self) -> bool:
        """Whether the engine's record of the registration is still on the server."""
        at = await retry(lambda: self._client.hget(self._keys.metadata(self.agent_id), "registered_at"))
        return at is not None

    async def state(self) -> str | None:
        """Read the agent's state according to the engine; None if the engine does not know the agent."""
        state = await retry(lambda: self._client.get(self._keys.state(self.agent_id)))
        return state.decode() if state is not None else None

    # --- commands -----------------------------------------------------------------------------------------------------

    async def next_command(self, wait_s: float) -> CommandMessage | None:
        """Take the oldest command, waiting at most `wait_s` for one. Malformed commands are reported and skipped."""
        return await self._next(CommandMessage, self._keys.commands(self.agent_id), wait_s, "malformed_command")

    async def next_message(self, wait_s: float) -> InboxMessage | None:
        """Take the oldest message of another agent, as `next_command` takes a command."""
        return await self._next(InboxMessage, self._keys.inbox(self.agent_id), wait_s, "malformed_message")

    async def _next(self, form: type[T], key: str, wait_s: float, code: str) -> T | None:
        ends_at = time.monotonic() + wait_s
        while (raw := await self._pop(key, ends_at - time.monotonic())) is not None:
            try:
                return decode_as(form, raw)
            except (ValueError, RecursionError) as error:
                await self.send("error", {"code": code, "message": explain(error)})
        return None

    async def local_deadline(self, command: CommandMessage) -> float | None:
        """Return the deadline of a command on the local monotonic clock; None without one, or while Redis is away.

        The clock of Redis has set the deadline, so the time left is measured by that clock as well.
        """
        if command.deadline is None:
            return None
        asked_at = time.monotonic()
        try:
            seconds, microseconds = await retry(self._client.time)
        except ServerUnavailableError:  # the engine cancels an expired command in any case
            return None
        left_s: float = from_iso(command.deadline) - (seconds + microseconds / 1e6)
        return asked_at + left_s

    async def take_cancellations(self, command_ids: Container[str]) -> AsyncIterator[str]:
        """Remove `cancel` commands for any of these from the agent's list; yield the ids that they cancel."""
        key = self._keys.commands(self.agent_id)
        for raw in await self._client.lrange(key, -_MAX_SEARCHED, -1):
            try:
                command = decode_as(CommandMessage, raw)
            except (ValueError, RecursionError):
                continue
            command_id = str(command.payload.get("command_id"))
            if command.type == "cancel" and command_id in command_ids and await self._client.lrem(key, -1, raw):
                yield command_id

    async def _pop(self, key: str, wait_s: float) -> bytes | None:
        """Pop the oldest entry of a list, waiting at most `wait_s` for one."""
        ends_at = time.monotonic() + wait_s
        while (left_s := ends_at - time.monotonic()) > 0:
            block_s = max(0.01, min(left_s, _MAX_BLOCK_S))  # a timeout of 0 means no limit
            if popped := await self._client.brpop(key, timeout=block_s):
                return bytes(popped[1])
        raw: bytes | None = await self._client.rpop(key)
        return raw


async def retry(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call a few times while Redis is not available."""
    failures = 0
    while True:
        try:
            return await call()
        except ServerUnavailableError:
            failures += 1
            if failures >= _ATTEMPTS:
                raise
            await asyncio.sleep(_BACKOFF.pause_s(failures))


__all__ = ["AgentClient", "CommandMessage", "MalformedError", "Reply"]
