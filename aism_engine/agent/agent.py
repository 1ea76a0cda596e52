"""Library for agents in Python: handlers for commands, and everything around them.

    agent = Agent("reviewer-1", type="reviewer")

    @agent.on("review")
    async def review(task: Task) -> dict[str, object]:
        await task.progress(percent=10)
        return {"verdict": "good"}

    agent.main()

The agent registers, sends heartbeats, takes only as many commands as it can work on, acknowledges them, and sends their
outcomes: what a handler returns is the result, what it raises is the error. A cancelled command cancels its handler.

Guaranteed: messages are sent in order, and again under the same id until Redis has accepted them. While Redis is away
at most `outbox` messages wait in memory, and beyond that no commands are taken. A command that is delivered again is
not executed again by the same process. Not guaranteed: that a command is executed only once. If the process dies after
the work and before the outcome was sent, the engine delivers the command again.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog
import uuid_utils

from aism_engine.agent.client import AgentClient, CommandMessage, Reply
from aism_engine.agent.outbox import RETRY_AFTER_S, Outbox
from aism_engine.agent.tasks import CommandFailedError, Task, TaskHandler, TaskResult, TaskRunner, cancel_tasks
from aism_engine.errors import AismError, ServerUnavailableError

T = TypeVar("T")

log = structlog.get_logger(component="agent")

_POLL_INTERVAL_S: Final = 1.0
"""Longest wait for a command, and the interval of the search for cancellations."""


class Agent:
    """One agent in one process. It works on at most `concurrency` commands at a time."""

    def __init__(  # noqa: PLR0913  each is a setting with a default
        self,
        agent_id: str,
        *,
        type: str,  # noqa: A002  as in the protocol
        labels: Mapping[str, str] | None = None,
        url: str | None = None,
        prefix: str | None = None,
        codec: str = "json",
        concurrency: int = 1,
        heartbeat_interval_s: float = 5.0,
        stop_timeout_s: float = 10.0,
        outbox: int = 1000,
    ) -> None:
        """Server and prefix default to AISM_REDIS_URL and AISM_REDIS__PREFIX. After a stop signal, handlers have
        `stop_timeout_s` to finish. Raises ValueError for an invalid id.
        """
        url = url or os.environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
        prefix = prefix or os.environ.get("AISM_REDIS__PREFIX") or "aism"
        self.client = AgentClient(agent_id, url=url, prefix=prefix, instance=uuid_utils.uuid7().hex)
        self.type = type
        self._labels = dict(labels or {})
        self._codec = codec
        self._heartbeat_interval_s = heartbeat_interval_s
        self._stop_timeout_s = stop_timeout_s
        self._outbox = Outbox(self.client, outbox)
        self._tasks = TaskRunner(self.client, self._outbox, concurrency)

    def on(self, command_type: str) -> Callable[[TaskHandler], TaskHandler]:
        """Register a handler for commands of a type; `*` handles all types that have no handler of their own.

        A plain function runs in a thread, where it cannot be cancelled.
        """

        def register(handler: TaskHandler) -> TaskHandler:
            self._tasks.handlers[command_type] = handler
            return handler

        return register

    def main(self) -> None:
        """Run until SIGTERM or SIGINT."""

        async def run() -> None:
            stopping = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stopping.set)
            await self.run(stopping)

        asyncio.run(run())

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set; then finish the running commands, send all messages, and say goodbye."""
        async with self.client:
            await self._register(stopping)
            stop = asyncio.create_task(stopping.wait())
            sending = [asyncio.create_task(each) for each in (self._send_heartbeats(), self._outbox.run())]
            taking = [asyncio.create_task(each) for each in (self._take_commands(), self._take_cancellations())]
            try:
                ended, _ = await asyncio.wait([stop, *sending, *taking], return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()  # raises a bug in one of the loops
            finally:
                await cancel_tasks([stop, *taking])
                await self._tasks.stop(self._stop_timeout_s)
                await self._leave()
                await cancel_tasks(sending)

    # --- presence ---------------------------------------------------------------------------------------------------

    async def _register(self, stopping: asyncio.Event) -> None:
        """Register; retry until server and engine are available."""
        while not stopping.is_set():
            try:
                reply = await _until(stopping, self._send_registration(reply=True))
            except (ServerUnavailableError, TimeoutError) as error:
                log.warning("registration_retried", reason=str(error))
                await asyncio.sleep(RETRY_AFTER_S)
                continue
            if reply is not None and not reply.ok:
                raise AismError(f"the engine has refused to register the agent: {(reply.error or {}).get('message')}")
            log.info("registered", agent_id=self.client.agent_id, state=reply and reply.state)
            return

    async def _send_registration(self, *, reply: bool) -> Reply | None:
        return await self.client.register(
            self.type, labels=self._labels, capabilities=["ack"], codec=self._codec, reply=reply
        )

    async def _send_heartbeats(self) -> None:
        """Send heartbeats, and register again after the server has lost its data (a flush, an old backup)."""
        while True:
            with suppress(ServerUnavailableError):
                await self.client.heartbeat()
                if not await self.client.is_registered():
                    log.warning("registered_again", reason="the server has lost the registration")
                    await self._send_registration(reply=False)
            await asyncio.sleep(self._heartbeat_interval_s)

    async def _leave(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stop_timeout_s):
                await self._tasks.send("goodbye", {})
                await self._outbox.wait_sent()

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _take_commands(self) -> None:
        """Take commands, one whenever a slot is free."""
        while True:
            await self._tasks.wait_for_slot()
            try:
                command = await self.client.next_command(wait_s=_POLL_INTERVAL_S)
            except ServerUnavailableError:
                await asyncio.sleep(RETRY_AFTER_S)
                continue
            if command is not None:
                await self._start(command)

    async def _start(self, command: CommandMessage) -> None:
        if command.type == "cancel":
            self._tasks.cancel(str(command.payload.get("command_id")))
        else:
            await self._tasks.start(command)

    async def _take_cancellations(self) -> None:
        """Search the list for cancellations of running commands: without a free slot no command is taken."""
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            if running := self._tasks.running_ids:
                with suppress(ServerUnavailableError):
                    for command_id in await self.client.take_cancellations(running):
                        self._tasks.cancel(command_id)


async def _until(stopping: asyncio.Event, coroutine: Coroutine[Any, Any, T]) -> T | None:
    """Await a coroutine, or return None when `stopping` is set before it ends."""
    task, stop = asyncio.ensure_future(coroutine), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await cancel_tasks([each for each in (task, stop) if not each.done()])


__all__ = ["Agent", "CommandFailedError", "Task", "TaskHandler", "TaskResult"]
