"""The messages that an agent gets from other agents, and the handler for them."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

import structlog
from msgspec import Struct
from msgspec.structs import asdict

from aism_engine.agent.client import AgentClient, InboxMessage
from aism_engine.agent.handlers import HandlerCaller, format_traceback
from aism_engine.agent.outages import Outages
from aism_engine.agent.task import Verbs

log = structlog.get_logger(component="agent")

_POLL_INTERVAL_S: Final = 1.0
"""Longest wait for a message. A stop does not interrupt the wait, because that could lose a message."""


class Message(Struct, frozen=True, kw_only=True):
    """A message from another agent."""

    id: str
    sender: str
    content: Any
    thread_id: str | None
    verbs: Verbs
    """Methods of the agent that received the message."""

    def reply(self, content: object) -> Awaitable[None]:
        """Send a message back to the sender, in the same thread. Raises as `Agent.message` does."""
        return self.verbs.message(self.sender, content, thread_id=self.thread_id)


MessageHandler: TypeAlias = Callable[[Message], Awaitable[None] | None]


class Inbox:
    """Takes the messages of an agent in order, and calls the handler with one at a time.

    A message is taken once: it is lost if the process dies before its handler has ended, or if the handler raises.
    """

    def __init__(self, client: AgentClient, verbs: Verbs, caller: HandlerCaller, outages: Outages) -> None:
        self.handler: MessageHandler | None = None
        self._client = client
        self._verbs = verbs
        self._caller = caller
        self._outages = outages

    async def run(self, stopping: asyncio.Event) -> None:
        """Handle messages until `stopping` is set."""
        if self.handler is None:
            await stopping.wait()
        while self.handler is not None and not stopping.is_set():
            message = await self._outages.retry(partial(self._client.next_message, _POLL_INTERVAL_S))
            if message is not None:
                await self._handle(self.handler, message)

    async def _handle(self, handler: MessageHandler, message: InboxMessage) -> None:
        given = Message(id=message.id, verbs=self._verbs, **asdict(message.payload))
        try:
            await self._caller.call(handler, given)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  a handler may raise SystemExit as well: the agent must live on
            log.error("message_failed", message_id=message.id, exception=format_traceback(error))  # noqa: TRY400  the logger of the program might print local variables
