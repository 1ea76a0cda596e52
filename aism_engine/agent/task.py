"""What a handler works with: the verbs of its agent, its command, and the error that it raises."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from aism_engine.agent.client import CommandMessage
from aism_engine.agent.outbox import Outbox
from aism_engine.errors import AismError

TaskResult: TypeAlias = Mapping[str, Any] | None
TaskHandler: TypeAlias = Callable[["Task"], TaskResult | Awaitable[TaskResult]]


class CommandFailedError(AismError):
    """Raised by a handler whose command has failed. If `retryable`, the engine may deliver the command again."""

    def __init__(self, code: str, message: str = "", *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code, self.message, self.retryable = code, message, retryable


class Verbs:
    """The verbs of a running agent: the methods by which it declares states and sends messages and measurements.

    A plain function, which has a thread of its own, calls them without `await`. Messages leave in the order of the
    calls. While Redis is away they wait.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    @property
    def state(self) -> str | None:
        """The agent's state according to the engine, as of the last reply or heartbeat; None before it registered."""
        return self._outbox.state

    def transition(
        self, target: str, *, context: Mapping[str, Any] | None = None, reason: str | None = None
    ) -> Awaitable[str]:
        """Declare a new state, and return the state according to the engine.

        `context` holds the fields that the machine requires. Raises RefusalError if the transition is not allowed, and
        TimeoutError if the engine does not reply: the transition may still happen.
        """
        payload = {"target": target, "context": dict(context or {})} | ({"reason": reason} if reason else {})
        return self._outbox.from_any_thread(self._outbox.call("state_transition", payload))

    def message(self, to: str, content: object, *, thread_id: str | None = None) -> Awaitable[None]:
        """Send a message to another agent. The engine delivers it when the state of the receiver accepts messages.

        Raises RefusalError, for example if the inbox is full, and TimeoutError if the engine does not reply.
        """
        payload = {"to": to, "content": content} | ({"thread_id": thread_id} if thread_id else {})
        return self._outbox.from_any_thread(self._tell(payload))

    async def _tell(self, payload: Mapping[str, Any]) -> None:
        await self._outbox.call("message", payload)

    def measure(self, values: Mapping[str, float] | None = None, /, **named: float) -> Awaitable[None]:
        """Report measurements: `measure(context_used=0.7)`. Does not wait for the engine."""
        return self._outbox.from_any_thread(self._outbox.send("measurement", {**(values or {}), **named}))


class Task(Verbs):
    """One command, as its handler sees it. It has the verbs of its agent as well."""

    def __init__(self, command: CommandMessage, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.command = command
        self.payload = command.payload
        self.expires_at: float | None = None
        """The command's deadline on the local monotonic clock; None without one."""
        self.cancelled = False
        """Whether the handler should end: the command was cancelled, or the agent stops. For plain functions, which
        cannot be interrupted; a coroutine gets `asyncio.CancelledError`."""

    def progress(self, *, percent: float | None = None, note: str | None = None) -> Awaitable[None]:
        """Report progress. This also restarts the timeout of the command. A plain function need not await it."""
        given = {"percent": percent, "note": note}
        payload = {name: value for name, value in given.items() if value is not None}
        return self._outbox.from_any_thread(self._outbox.send("progress", payload, self.command.id))
