"""The messages of an agent on their way to the engine, in order, from coroutines and from threads."""

import asyncio
import types
from collections.abc import Awaitable, Coroutine, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from aism_engine.agent.client import AgentClient
from aism_engine.agent.outages import Outages
from aism_engine.errors import AismError, RefusalError

T = TypeVar("T")

_MESSAGES_PER_PUSH: Final = 100


class Outbox:
    """Sends messages in order, and repeats each until Redis accepts it.

    The queue holds at most `size` messages. While it is full, `put` waits.
    """

    def __init__(self, client: AgentClient, outages: Outages, size: int) -> None:
        self._client = client
        self._outages = outages
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue = asyncio.Queue[bytes](size)
        self._sending: list[bytes] = []
        self.state: str | None = None
        """The agent's state according to the engine, as of the last reply or heartbeat."""
        self._replies = 0
        self.put = self._queue.put
        self.wait_sent = self._queue.join

    @property
    def unsent(self) -> int:
        """Number of messages that Redis has not accepted yet."""
        return self._queue.qsize() + len(self._sending)

    def open(self) -> None:
        """Allow the method `call`, and the use of other threads, from now on: the agent has registered."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Refuse the method `call` from now on: the agent is about to say goodbye. `send` still works."""
        self._loop = None

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            bodies = self._sending = [await self._queue.get()]
            while len(bodies) < _MESSAGES_PER_PUSH and not self._queue.empty():
                bodies.append(self._queue.get_nowait())
            await self._outages.retry(partial(self._client.push, bodies))
            self._sending = []
            for _ in bodies:
                self._queue.task_done()

    async def send(self, kind: str, payload: Mapping[str, Any], command_id: str | None = None) -> None:
        """Queue a message. Raises MalformedError for one that the engine would refuse."""
        await self.put(self._client.build_message(kind, payload, command_id))

    async def call(self, kind: str, payload: Mapping[str, Any]) -> str:
        """Queue a message, wait for the engine's reply, and return the agent's state.

        Raises RefusalError, and TimeoutError without a reply. While Redis is away, it waits.
        """
        if self._loop is None:
            raise AismError("the agent does not run: call its methods in its handlers, or inside `async with agent`")
        body = self._client.build_message(kind, payload, reply=True)
        await self.put(body)
        reply = await self._outages.retry(partial(self._client.reply_to, body))
        self._replies += 1
        self.state = reply.state or self.state
        if not reply.ok:
            raise RefusalError(reply.error or {})
        return reply.state or ""

    async def refresh_state(self) -> None:
        """Read the state again, and keep it unless a reply has brought a newer state meanwhile."""
        replies = self._replies
        state = await self._client.state()
        if replies == self._replies:
            self.state = state

    def from_any_thread(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Return an awaitable for the result of `work`. In a thread without an event loop, wait for the result."""
        current: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            current = asyncio.get_running_loop()
        if self._loop is None or current is self._loop:
            return work
        call = asyncio.run_coroutine_threadsafe(work, self._loop)
        return asyncio.wrap_future(call) if current is not None else _done(call.result())


@types.coroutine
def _done(value: T) -> Generator[None, None, T]:
    """Return an awaitable that already has its value. Python does not warn if it is never awaited."""
    yield from ()
    return value
