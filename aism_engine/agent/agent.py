"""Library for agents in Python: handlers for commands, and everything around them.

    agent = Agent("reviewer-1", type="reviewer")

    @agent.on("review")
    async def review(task: Task) -> dict[str, object]:
        await task.progress(percent=10)
        return {"verdict": "good"}

    agent.main()

The agent registers, sends heartbeats, takes only as many commands as it can work on, acknowledges them, and sends their
outcomes: what a handler returns is the result, what it raises is the error. A cancelled command cancels its handler.

Guaranteed: messages are sent in order, and again under the same id until Redis has accepted them. While Redis is away,
they wait in memory, in a queue whose size is the parameter `outbox`. While the queue is full, a handler that sends
another message waits, and the agent takes no further commands. A command that is delivered again is not executed again
by the same process. A stop takes at most `stop_timeout_s`, unless a handler goes on after it was cancelled, as a plain
function may. Not guaranteed: that a command is executed only once. If the process dies after the work and before the
outcome was sent, the engine delivers the command again.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self, TypeAlias

import structlog
import uuid_utils

from aism_engine.agent.arguments import default_server
from aism_engine.agent.client import AgentClient
from aism_engine.agent.handlers import HandlerCaller
from aism_engine.agent.inbox import Inbox, Message, MessageHandler
from aism_engine.agent.outages import Outages
from aism_engine.agent.outbox import Outbox
from aism_engine.agent.task import CommandFailedError, Task, TaskHandler, Verbs
from aism_engine.agent.task_runner import TaskRunner, cancel_tasks
from aism_engine.errors import AismError, ServerUnavailableError
from aism_engine.terminal import ExitCode

log = structlog.get_logger(component="agent")

_POLL_INTERVAL_S: Final = 1.0
"""Longest wait for a command or for a free slot."""
_SENDING_SHARE: Final = 0.1
"""Share of `stop_timeout_s` that is reserved for sending the last messages: an arbitrary number."""
_UNSENT: Final = "the messages are lost; commands without an outcome are delivered again when the agent registers again"

StartHandler: TypeAlias = Callable[["Agent"], object]


class Agent(Verbs):
    """One agent in one process. It works on at most `concurrency` commands at a time.

    `main` runs it as a program of its own, `run` inside another program. `async with agent:` runs it for one block.
    The methods `transition`, `message` and `measure` are inherited from `Verbs`, the base class of `Task` as well.
    """

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
        """The default of `url` is AISM_REDIS__URL, or else AISM_REDIS_URL; that of `prefix` is AISM_REDIS__PREFIX.

        Raises ValueError for an invalid id. After nine tenths of `stop_timeout_s`, a stop cancels the handlers. The
        rest is for unsent messages.
        """
        default_url, default_prefix = default_server()
        url, prefix = url or default_url, prefix or default_prefix
        server = {"AISM_REDIS_URL": url, "AISM_REDIS__URL": url, "AISM_REDIS__PREFIX": prefix}
        self.environ = {"AISM_AGENT_ID": agent_id, **server}
        """Environment in which `aism` speaks for this agent."""
        self.client = AgentClient(agent_id, url=url, prefix=prefix, instance=uuid_utils.uuid7().hex)
        self._registration = {"type": type, "labels": dict(labels or {}), "capabilities": ["ack"], "codec": codec}
        self._heartbeat_interval_s = heartbeat_interval_s
        self._stop_timeout_s = stop_timeout_s
        self._outages = Outages()
        super().__init__(Outbox(self.client, self._outages, outbox))
        self._caller = HandlerCaller(concurrency + 1)  # a thread for the inbox as well
        self._tasks = TaskRunner(self.client, self._outbox, self._caller, concurrency)
        self._inbox = Inbox(self.client, self, self._caller, self._outages)
        self._start_handler: StartHandler | None = None
        self._registered = asyncio.Event()
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def on(self, command_type: str) -> Callable[[TaskHandler], TaskHandler]:
        """Register a handler for commands of a type; `*` handles all types that have no handler of their own.

        A plain function runs in a thread, where it cannot be cancelled: it should end when `task.cancelled` is true.
        """
        if command_type == "cancel":
            raise ValueError("`cancel` is sent by the engine itself, to cancel another command: it needs no handler")

        def register(handler: TaskHandler) -> TaskHandler:
            self._tasks.handlers[command_type] = handler
            return handler

        return register

    def on_message(self, handler: MessageHandler) -> MessageHandler:
        """Register the handler for messages from other agents. It is called with one message at a time, in order."""
        self._inbox.handler = handler
        return handler

    def on_start(self, handler: StartHandler) -> StartHandler:
        """Register a function that is called with the agent, after the registration and before the first command."""
        self._start_handler = handler
        return handler

    def main(self) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP.

        Exit with code 69 if messages could not be sent in the end, and with 1 if the engine refuses the registration.
        """
        try:
            asyncio.run(run_until_signal(self.run))
        except ServerUnavailableError:  # it is logged
            sys.exit(ExitCode.UNAVAILABLE)
        except AismError as error:
            log.error("agent_failed", reason=str(error))  # noqa: TRY400  no traceback: the reason says enough
            sys.exit(ExitCode.REFUSED)

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set; then finish the running commands, send all messages, and say goodbye.

        Raises ServerUnavailableError if messages could not be sent within `stop_timeout_s`.
        """
        async with self.client:
            await run_until(stopping, self._register())
            sending = [asyncio.create_task(each) for each in (self._send_heartbeats(), self._outbox.run())]
            receiving = asyncio.create_task(self._inbox.run(stopping))
            self._outbox.open()
            self._registered.set()
            try:
                if self._start_handler is not None:
                    await run_until(stopping, self._caller.call(self._start_handler, self))
                await run_until(stopping, self._take_commands(), *map(asyncio.shield, [*sending, receiving]))
            finally:
                stopping.set()
                sending_s = self._stop_timeout_s * _SENDING_SHARE
                cancels_at = asyncio.get_running_loop().time() + self._stop_timeout_s - sending_s
                await self._tasks.stop(_seconds_until(cancels_at))
                await asyncio.wait([receiving], timeout=_seconds_until(cancels_at))
                await cancel_tasks([receiving])
                self._outbox.close()
                error = await self._leave(sending_s + _seconds_until(cancels_at))
                await cancel_tasks(sending)
            if error is not None:
                raise error

    async def __aenter__(self) -> Self:
        """Start the agent; return when it has registered. Raises AismError if the engine refuses that."""
        self._stopping.clear()
        self._registered.clear()
        self._running = asyncio.create_task(self.run(self._stopping))
        registered = asyncio.create_task(self._registered.wait())
        try:
            await asyncio.wait([self._running, registered], return_when=asyncio.FIRST_COMPLETED)
        finally:
            registered.cancel()
            if not self._registered.is_set():
                await self.__aexit__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        if self._running is not None:
            await self._running

    # --- presence ---------------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        """Register; retry until server and engine are available. Raises AismError if the engine refuses."""
        while True:
            try:
                reply = await self._outages.retry(partial(self.client.call, "register", self._registration))
                break
            except TimeoutError as error:
                log.warning("registration_retried", reason=str(error))
        if not reply.ok:
            raise AismError(f"the engine has refused to register the agent: {(reply.error or {}).get('message')}")
        self._outbox.state = reply.state
        log.info("registered", agent_id=self.client.agent_id, state=reply.state)

    async def _send_heartbeats(self) -> None:
        while True:
            await self._outages.retry(self._send_heartbeat)
            await asyncio.sleep(self._heartbeat_interval_s)

    async def _send_heartbeat(self) -> None:
        """Send a heartbeat, and register again after the server has lost its data (a flush, an old backup)."""
        await self.client.heartbeat()
        if not await self.client.is_registered():
            log.warning("registered_again", reason="the server has lost the registration")
            await self.client.send("register", self._registration)
        await self._outbox.refresh_state()

    async def _leave(self, timeout_s: float) -> ServerUnavailableError | None:
        """Say goodbye, and wait until all messages are sent; return an error if they could not be sent in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._outbox.send("goodbye", {})
                await self._outbox.wait_sent()
                return None
        count, outage = self._outbox.unsent, self._outages.current or "timeout"
        log.warning("messages_not_sent", count=count, outage=outage, consequence=_UNSENT)
        return ServerUnavailableError(outage, f"messages that were not sent: {count}")

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _take_commands(self) -> None:
        """Take commands while a slot is free; otherwise search the list for cancellations of running commands."""
        while True:
            if not await self._tasks.wait_for_slot(_POLL_INTERVAL_S):
                await self._outages.retry(self._take_cancellations)
                continue
            command = await self._outages.retry(partial(self.client.next_command, _POLL_INTERVAL_S))
            if command is not None and command.type == "cancel":
                self._tasks.cancel(str(command.payload.get("command_id")))
            elif command is not None:
                await self._tasks.start(command)

    async def _take_cancellations(self) -> None:
        async for command_id in self.client.take_cancellations(self._tasks.running):
            self._tasks.cancel(command_id)


def _seconds_until(instant: float) -> float:
    """Return how long it takes until an instant of the event loop's clock; 0 if it has passed."""
    return max(0.0, instant - asyncio.get_running_loop().time())


async def run_until_signal(run: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Call `run` with an event, and set the event at SIGTERM, SIGINT or SIGHUP. An ignored SIGHUP stays ignored."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await run(stopping)


async def run_until(stopping: asyncio.Event, *work: Coroutine[Any, Any, None] | asyncio.Future[None]) -> None:
    """Run until `stopping` is set or any of the work ends, then cancel the rest. Raises the error of failed work."""
    tasks = [asyncio.ensure_future(each) for each in (stopping.wait(), *work)]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await cancel_tasks(tasks)


__all__ = ["Agent", "CommandFailedError", "Message", "Task", "TaskHandler", "run_until", "run_until_signal"]
