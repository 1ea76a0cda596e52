"""Runs the handlers of an agent, one asyncio task for each command, and sends their outcomes."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from math import inf
from typing import Any, Final, TypeAlias

import structlog

from aism_engine.agent.client import AgentClient, CommandMessage, MalformedError, retry
from aism_engine.backoff import Backoff
from aism_engine.errors import AismError

log = structlog.get_logger(component="agent")

OUTAGE_BACKOFF: Final = Backoff(0.5, 5.0)
"""Pauses between attempts while Redis is not available."""
_MESSAGES_PER_PUSH: Final = 100
_REMEMBERED_OUTCOMES: Final = 1000
"""Outcomes that are kept for commands that are delivered again: an arbitrary number."""
_MAX_MESSAGE_BYTES: Final = 1_000_000
"""Just below the default of protocol.max_message_bytes, 1 MiB: the engine refuses larger messages."""

TaskResult: TypeAlias = Mapping[str, Any] | None
TaskHandler: TypeAlias = Callable[["Task"], TaskResult | Awaitable[TaskResult]]


class CommandFailedError(AismError):
    """Raised by a handler whose command has failed. If `retryable`, the engine may deliver the command again."""

    def __init__(self, code: str, message: str = "", *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code, self.message, self.retryable = code, message, retryable


class Task:
    """One command, as its handler sees it."""

    def __init__(
        self, command: CommandMessage, send: Callable[..., Awaitable[None]], expires_at: float | None = None
    ) -> None:
        self.command = command
        self.payload = command.payload
        self.expires_at = expires_at
        """The command's deadline on the local monotonic clock; None without one."""
        self._send = send

    async def progress(self, *, percent: float | None = None, note: str | None = None) -> None:
        """Report progress. This also restarts the timeout of the command."""
        await self._send("progress", {"percent": percent, "note": note}, self.command.id)


class Outbox:
    """Sends messages in order, each until Redis has accepted it. `put` waits while `size` messages are queued."""

    def __init__(self, client: AgentClient, size: int) -> None:
        self._client = client
        self._queue = asyncio.Queue[bytes](size)
        self.put = self._queue.put
        self.wait_sent = self._queue.join

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            bodies = [await self._queue.get()]
            while len(bodies) < _MESSAGES_PER_PUSH and not self._queue.empty():
                bodies.append(self._queue.get_nowait())
            await retry(partial(self._client.push, bodies), OUTAGE_BACKOFF, inf)
            for _ in bodies:
                self._queue.task_done()


class TaskRunner:
    """Acknowledges commands, runs their handlers, and sends their outcomes; at most `concurrency` at a time."""

    def __init__(self, client: AgentClient, concurrency: int, outbox_size: int) -> None:
        self.handlers: dict[str, TaskHandler] = {}
        self.outbox = Outbox(client, outbox_size)
        self._client = client
        self._slots = asyncio.Semaphore(concurrency)
        self.running: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        self._outcomes: dict[str, bytes] = {}

    async def wait_for_slot(self, timeout_s: float) -> bool:
        """Wait until fewer than `concurrency` commands are running; return False if that takes too long."""
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                return True
        except TimeoutError:
            return False

    async def start(self, command: CommandMessage) -> None:
        """Start a command. One that was delivered before is not run again: its ack or its outcome is sent again."""
        if (outcome := self._outcomes.get(command.id)) is not None:
            await self.outbox.put(outcome)
        elif command.id in self.running:
            await self.send("ack", {}, command.id)
        else:
            await self._slots.acquire()
            self.running[command.id] = asyncio.create_task(self._run(command))

    def cancel(self, command_id: str) -> None:
        """Cancel a running command. No outcome is sent."""
        if (task := self.running.get(command_id)) is not None:
            self._cancelled.add(command_id)
            task.cancel()

    async def stop(self, timeout_s: float) -> None:
        """Wait for the running handlers; cancel those that take longer, so that their commands can be retried."""
        if running := list(self.running.values()):
            _, late = await asyncio.wait(running, timeout=timeout_s)
            await cancel_tasks(late)

    async def send(self, kind: str, payload: Mapping[str, Any], command_id: str | None = None) -> None:
        await self.outbox.put(self._client.build_message(kind, payload, command_id))

    async def _run(self, command: CommandMessage) -> None:
        try:
            await self.send("ack", {}, command.id)
            kind, payload, final = await self._outcome(command)
            body = self._build_outcome(kind, payload, command.id)
            if final:
                self._outcomes[command.id] = body
                if len(self._outcomes) > _REMEMBERED_OUTCOMES:
                    del self._outcomes[next(iter(self._outcomes))]
            await self.outbox.put(body)
        finally:
            self._cancelled.discard(command.id)
            del self.running[command.id]
            self._slots.release()

    def _build_outcome(self, kind: str, payload: Mapping[str, Any], command_id: str) -> bytes:
        """Build the message of an outcome; an outcome that cannot be sent becomes an error."""
        try:
            body = self._client.build_message(kind, payload, command_id)
        except (MalformedError, TypeError, ValueError) as error:  # the last two: a value that JSON does not have
            return self._client.build_message("error", _error("malformed_outcome", str(error)), command_id)
        if len(body) <= _MAX_MESSAGE_BYTES:
            return body
        message = f"the result has {len(body)} bytes, at most {_MAX_MESSAGE_BYTES} can be sent"
        return self._client.build_message("error", _error("result_too_large", message), command_id)

    async def _outcome(self, command: CommandMessage) -> tuple[str, Mapping[str, Any], bool]:
        """Run the handler; return type and payload of the outcome, and whether it is final."""
        handler = self.handlers.get(command.type) or self.handlers.get("*")
        if handler is None and command.type == "state_transition":
            return "state_transition", {"target": command.payload.get("target")}, True
        if handler is None:
            return "error", _error("unknown_type", f"no handler for {command.type}"), True
        try:
            expires_at = await self._client.local_deadline(command)
            return "result", await _call(handler, Task(command, self.send, expires_at)), True
        except CommandFailedError as error:
            return "error", _error(error.code, error.message, retryable=error.retryable), not error.retryable
        except asyncio.CancelledError:
            if command.id in self._cancelled:
                raise
            return "error", _error("agent_stopped", "the agent has stopped", retryable=True), False
        except Exception as error:
            log.exception("handler_failed", command_id=command.id, type=command.type)
            return "error", _error("handler_failed", repr(error)), True


def _error(code: str, message: str, *, retryable: bool = False) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": retryable}


async def _call(handler: TaskHandler, task: Task) -> Mapping[str, Any]:
    """Call a handler: a coroutine function on the event loop, a plain function in a thread."""
    if inspect.iscoroutinefunction(handler):
        result = await handler(task)
    else:
        result = await asyncio.to_thread(handler, task)
        if inspect.isawaitable(result):
            result = await result
    return {} if result is None else dict(result)


async def cancel_tasks(tasks: Collection["asyncio.Future[Any]"]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
