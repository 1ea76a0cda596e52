"""One command, as its handler sees it, and the error that a handler raises."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from aism_engine.agent.client import CommandMessage
from aism_engine.agent.outbox import Outbox
from aism_engine.agent.verbs import Verbs
from aism_engine.errors import AismError

TaskResult: TypeAlias = Mapping[str, Any] | None
TaskHandler: TypeAlias = Callable[["Task"], TaskResult | Awaitable[TaskResult]]


class CommandFailedError(AismError):
    """Raised by a handler whose command has failed. If `retryable`, the engine may deliver the command again."""

    def __init__(self, code: str, message: str = "", *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code, self.message, self.retryable = code, message, retryable


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
