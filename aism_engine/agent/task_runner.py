"""Runs the handlers of an agent, one asyncio task for each command, and sends their outcomes."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import structlog

from aism_engine.agent.client import AgentClient, CommandMessage, MalformedError
from aism_engine.agent.handlers import HandlerCaller, describe, format_traceback
from aism_engine.agent.outbox import Outbox
from aism_engine.agent.task import CommandFailedError, Task, TaskHandler
from aism_engine.errors import RefusalError

log = structlog.get_logger(component="agent")

_REMEMBERED_OUTCOMES: Final = 1000
"""Number of outcomes that are kept, to send them again if their command is delivered again: an arbitrary number."""
_MAX_MESSAGE_BYTES: Final = 1_000_000
"""Just below the default of protocol.max_message_bytes, 1 MiB: the engine refuses larger messages."""


class _Run(NamedTuple):
    task: Task
    work: "asyncio.Task[None]"


class TaskRunner:
    """Acknowledges commands, runs their handlers, and sends their outcomes; at most `concurrency` at a time."""

    def __init__(self, client: AgentClient, outbox: Outbox, caller: HandlerCaller, concurrency: int) -> None:
        self.handlers: dict[str, TaskHandler] = {}
        self._client = client
        self._outbox = outbox
        self._caller = caller
        self._slots = asyncio.Semaphore(concurrency)
        self.running: dict[str, _Run] = {}
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
            await self._outbox.put(outcome)
        elif command.id in self.running:
            await self._outbox.send("ack", {}, command.id)
        else:
            await self._slots.acquire()
            task = Task(command, self._outbox)
            self.running[command.id] = _Run(task, asyncio.create_task(self._run(task)))

    def cancel(self, command_id: str) -> None:
        """Cancel a running command. No outcome is sent."""
        if (run := self.running.get(command_id)) is not None:
            self._cancelled.add(command_id)
            _cancel(run)

    async def stop(self, timeout_s: float) -> None:
        """Wait for the running handlers; cancel those that take longer, so that their commands can be retried.

        When this returns, no handler works any more. A plain function is awaited, however long it takes.
        """
        if self.running:
            await asyncio.wait([run.work for run in self.running.values()], timeout=timeout_s)
        if late := dict(self.running):
            for run in late.values():
                _cancel(run)
            log.warning("stop_waits_for_handlers", command_ids=sorted(late))
            await asyncio.wait([run.work for run in late.values()])

    async def _run(self, task: Task) -> None:
        command_id = task.command.id
        try:
            await self._outbox.send("ack", {}, command_id)
            kind, payload, final = await self._outcome(task)
            if command_id in self._cancelled:
                return
            body = self._build_outcome(kind, payload, command_id)
            if final:
                self._outcomes[command_id] = body
                if len(self._outcomes) > _REMEMBERED_OUTCOMES:
                    del self._outcomes[next(iter(self._outcomes))]
            await self._outbox.put(body)
        finally:
            self._cancelled.discard(command_id)
            del self.running[command_id]
            self._slots.release()

    def _build_outcome(self, kind: str, payload: Mapping[str, Any], command_id: str) -> bytes:
        """Build the message of an outcome; an outcome that cannot be sent becomes an error."""
        try:
            body = self._client.build_message(kind, payload, command_id)
        except MalformedError as error:
            return self._client.build_message("error", _error("malformed_outcome", str(error)), command_id)
        if len(body) <= _MAX_MESSAGE_BYTES:
            return body
        message = f"the result has {len(body)} bytes, at most {_MAX_MESSAGE_BYTES} can be sent"
        return self._client.build_message("error", _error("result_too_large", message), command_id)

    async def _outcome(self, task: Task) -> tuple[str, Mapping[str, Any], bool]:
        """Run the handler; return type and payload of the outcome, and whether it is final."""
        command = task.command
        handler = self.handlers.get(command.type) or self.handlers.get("*")
        if handler is None and command.type == "state_transition":
            return "state_transition", {"target": command.payload.get("target")}, True
        if handler is None:
            return "error", _error("unknown_type", f"no handler for {command.type}"), True
        try:
            task.expires_at = await self._client.local_deadline(command)
            return "result", _as_object(await self._caller.call(handler, task)), True
        except (CommandFailedError, RefusalError) as error:  # methods of the task raise RefusalError
            retryable = isinstance(error, CommandFailedError) and error.retryable
            return "error", _error(error.code, error.message, retryable=retryable), not retryable
        except BaseException as error:  # noqa: BLE001  a handler may raise SystemExit as well: the agent must live on
            if isinstance(error, asyncio.CancelledError) and task.cancelled:
                return "error", _error("agent_stopped", "the agent has stopped", retryable=True), False
            shown = format_traceback(error)
            log.error("handler_failed", command_id=command.id, type=command.type, exception=shown)  # noqa: TRY400  the logger of the program might print local variables
            return "error", _error("handler_failed", describe(error)), True


def _cancel(run: _Run) -> None:
    run.task.cancelled = True
    run.work.cancel()


def _as_object(result: object) -> Mapping[str, Any]:
    if result is None:
        return {}
    if not isinstance(result, Mapping):
        raise CommandFailedError("malformed_outcome", f"the handler has returned a {type(result).__name__}, not a dict")
    return dict(result)


def _error(code: str, message: str, *, retryable: bool = False) -> dict[str, Any]:
    return {"code": code, "message": str(message).encode(errors="replace").decode(), "retryable": retryable}


async def cancel_tasks(tasks: Collection["asyncio.Future[Any]"]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
