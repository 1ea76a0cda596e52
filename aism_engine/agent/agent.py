"""An agent, as a Python program: handlers for its commands, and everything around them.

    agent = Agent("reviewer-1", type="reviewer")

    @agent.on("review")
    async def review(task: Task) -> dict[str, object]:
        await task.progress(percent=10)
        return {"verdict": "good"}

    agent.main()

It registers, beats, takes no more commands than it can work on, confirms them, and answers them: what a handler returns
is the result, what it raises is the error. A command that is called off is cancelled in its handler. The same command,
sent again because a word of ours was late, is not done again.

What is guaranteed. Everything that is said is said in order, and again under the same id until the server has it; while
Redis is away it waits here, at most `outbox` messages, and no new commands are taken beyond that. What is not: that a
command is done once. If this process dies after the deed and before the word, the engine sends it again.
"""

import asyncio
import inspect
import os
import signal
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

import structlog
import uuid_utils

from aism_engine.agent.client import AgentClient, CommandMessage, MalformedError, Reply
from aism_engine.errors import AismError, ServerUnavailableError

T = TypeVar("T")

log = structlog.get_logger(component="agent")

_REMEMBERED: Final = 1000
"""Commands whose outcome is kept in mind, should they come again: an arbitrary number."""
_LARGEST: Final = 1_000_000
"""Bytes of a message: what is larger than protocol.max_message_bytes, 1 MiB unless set, is not read by the engine."""
_PUSHED_AT_A_TIME: Final = 100
_PAUSE_S: Final = 0.5
"""Between attempts while the server is away."""
_LOOK_EVERY_S: Final = 1.0
"""For commands that call off what all hands are busy with."""

TaskResult: TypeAlias = Mapping[str, Any] | None
TaskHandler: TypeAlias = Callable[["Task"], TaskResult | Awaitable[TaskResult]]


class CommandFailedError(AismError):
    """Raised by a handler: the command has failed, with this code and message; `retryable`: it may be sent again."""

    def __init__(self, code: str, message: str = "", *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code, self.message, self.retryable = code, message, retryable


class Task:
    """A command in the hands of its handler."""

    def __init__(self, command: CommandMessage, say: Callable[..., Awaitable[None]]) -> None:
        self.command = command
        self._say = say

    @property
    def payload(self) -> dict[str, Any]:
        return self.command.payload

    async def progress(self, *, percent: float | None = None, note: str | None = None) -> None:
        """Say how far it is: that it is worked on, and needs more time."""
        await self._say("progress", {"percent": percent, "note": note}, self.command.id)


class Agent:
    """One agent, one process. `concurrency` is how many commands it works on at a time."""

    def __init__(  # noqa: PLR0913  each is a setting with a default
        self,
        agent_id: str,
        *,
        type: str,  # noqa: A002  as the protocol has it
        labels: Mapping[str, str] | None = None,
        url: str | None = None,
        prefix: str | None = None,
        codec: str = "json",
        concurrency: int = 1,
        beat_every_s: float = 5.0,
        patience_s: float = 10.0,
        outbox: int = 1000,
    ) -> None:
        """The server and the prefix are those of AISM_REDIS_URL and AISM_REDIS__PREFIX, unless given. `patience_s` is
        for how long handlers may go on once it shall stop. ValueError where the id is none.
        """
        url = url or os.environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
        prefix = prefix or os.environ.get("AISM_REDIS__PREFIX") or "aism"
        self.client = AgentClient(agent_id, url=url, prefix=prefix, instance=uuid_utils.uuid7().hex)
        self.type = type
        self._labels = dict(labels or {})
        self._codec = codec
        self._concurrency = concurrency
        self._beat_every_s = beat_every_s
        self._patience_s = patience_s
        self._handlers: dict[str, TaskHandler] = {}
        self._outbox = asyncio.Queue[bytes](outbox)
        self._free = asyncio.Semaphore(concurrency)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._called_off: set[str] = set()
        self._outcomes = OrderedDict[str, bytes]()

    def on(self, command_type: str) -> Callable[[TaskHandler], TaskHandler]:
        """Let a function handle the commands of a type; `*` those of any type that has no handler of its own.

        A plain function runs in a thread, where nothing can interrupt it.
        """

        def register(handler: TaskHandler) -> TaskHandler:
            self._handlers[command_type] = handler
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
        """Live until `stopping` is set; then finish what is in hand, say all that is to be said, and leave in order."""
        async with self.client:
            await self._register(stopping)
            waiting = asyncio.create_task(stopping.wait())
            staying = [asyncio.create_task(each) for each in (self._beat(), self._send())]
            taking = [asyncio.create_task(each) for each in (self._take(), self._heed())]
            try:
                ended, _ = await asyncio.wait([waiting, *staying, *taking], return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()  # a bug of ours is raised
            finally:
                await _end([waiting, *taking])
                await self._finish()
                await self._leave()
                await _end(staying)

    # --- presence ---------------------------------------------------------------------------------------------------

    async def _register(self, stopping: asyncio.Event) -> None:
        """Join the fleet; until the server and an engine are there, try again."""
        while not stopping.is_set():
            try:
                answer = await _unless(stopping, self._ask_to_join(reply=True))
            except (ServerUnavailableError, TimeoutError) as error:
                log.warning("not_registered_yet", reason=str(error))
                await asyncio.sleep(_PAUSE_S)
                continue
            if answer is not None and not answer.ok:
                raise AismError(f"the engine does not take us in: {(answer.error or {}).get('message')}")
            log.info("registered", agent=self.client.agent_id, state=answer and answer.state)
            return

    async def _ask_to_join(self, *, reply: bool) -> Reply | None:
        return await self.client.register(
            self.type, labels=self._labels, capabilities=["ack"], codec=self._codec, reply=reply
        )

    async def _beat(self) -> None:
        """Beat; and join again where the server has forgotten that we did, as after a restore or a flush."""
        while True:
            with suppress(ServerUnavailableError):
                await self.client.heartbeat()
                if not await self.client.is_registered():
                    log.warning("registering_again", reason="the server does not know us any more")
                    await self._ask_to_join(reply=False)
            await asyncio.sleep(self._beat_every_s)

    async def _leave(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._say("goodbye", {})
                await self._outbox.join()

    # --- what is said -----------------------------------------------------------------------------------------------

    async def _say(self, kind: str, payload: Mapping[str, Any], command_id: str | None = None) -> None:
        await self._outbox.put(self.client.compose(kind, payload, command_id))

    async def _send(self) -> None:
        """Push what is to be said, in order, each until the server has it."""
        while True:
            bodies = [await self._outbox.get()]
            while len(bodies) < _PUSHED_AT_A_TIME and not self._outbox.empty():
                bodies.append(self._outbox.get_nowait())
            while True:
                try:
                    await self.client.push(bodies)
                    break
                except ServerUnavailableError:
                    await asyncio.sleep(_PAUSE_S)
            for _ in bodies:
                self._outbox.task_done()

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Take commands, no more than there are hands for."""
        while True:
            async with self._free:
                pass  # a hand is free: nothing else takes one
            try:
                command = await self.client.next_command(wait_s=_LOOK_EVERY_S)
            except ServerUnavailableError:
                await asyncio.sleep(_PAUSE_S)
                continue
            if command is not None:
                await self._accept(command)

    async def _accept(self, command: CommandMessage) -> None:
        if command.type == "cancel":
            self._call_off(str(command.payload.get("command_id")))
            return
        outcome = self._outcomes.get(command.id)
        if outcome is not None:
            await self._outbox.put(outcome)  # said already, it seems in vain: once more, under the same id
        elif command.id in self._running:
            await self._say("ack", {}, command.id)
        else:
            await self._free.acquire()
            self._running[command.id] = asyncio.create_task(self._work(command))

    async def _heed(self) -> None:
        """While all hands are busy nothing is taken, so what calls a command off is looked for in the list."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._running:
                with suppress(ServerUnavailableError):
                    for command_id in await self.client.called_off(set(self._running)):
                        self._call_off(command_id)

    def _call_off(self, command_id: str) -> None:
        if (task := self._running.get(command_id)) is not None:
            self._called_off.add(command_id)
            task.cancel()

    async def _work(self, command: CommandMessage) -> None:
        """Confirm a command, let its handler do it, and say what came of it."""
        try:
            await self._say("ack", {}, command.id)
            kind, payload, final = await self._outcome(command)
            try:
                body = self.client.compose(kind, payload, command.id)
            except (MalformedError, TypeError, ValueError) as error:  # the last two where it is nothing that JSON has
                told = {"code": "malformed_outcome", "message": str(error), "retryable": False}
                body = self.client.compose("error", told, command.id)
            if len(body) > _LARGEST:
                told = {"code": "result_too_large", "message": f"{len(body)} bytes, at most {_LARGEST} can be said"}
                body = self.client.compose("error", {**told, "retryable": False}, command.id)
            if final:
                self._outcomes[command.id] = body
                while len(self._outcomes) > _REMEMBERED:
                    self._outcomes.popitem(last=False)
            await self._outbox.put(body)
        finally:
            self._called_off.discard(command.id)
            del self._running[command.id]
            self._free.release()

    async def _outcome(self, command: CommandMessage) -> tuple[str, Mapping[str, Any], bool]:
        """Let the handler work; gives what is to be said of it, and whether that is the end of it."""
        handler = self._handlers.get(command.type) or self._handlers.get("*")
        if handler is None and command.type == "state_transition":
            return "state_transition", {"target": command.payload.get("target")}, True
        if handler is None:
            told = {"code": "unknown_type", "message": f"no handler for {command.type}", "retryable": False}
            return "error", told, True
        try:
            return "result", await _handled(handler, Task(command, self._say)), True
        except CommandFailedError as error:
            told = {"code": error.code, "message": error.message, "retryable": error.retryable}
            return "error", told, not error.retryable
        except asyncio.CancelledError:
            if command.id in self._called_off:
                raise
            return "error", {"code": "agent_stopped", "message": "its agent has stopped", "retryable": True}, False
        except Exception as error:
            log.exception("handler_failed", command=command.id, type=command.type)
            return "error", {"code": "handler_failed", "message": repr(error), "retryable": False}, True

    async def _finish(self) -> None:
        """Let the handlers finish, and cancel those that do not in time: their commands may be sent to another."""
        running = list(self._running.values())
        if running:
            _, late = await asyncio.wait(running, timeout=self._patience_s)
            await _end(late)


async def _unless(stopping: asyncio.Event, what: Coroutine[Any, Any, T]) -> T | None:
    """Await something, unless we shall stop before."""
    doing, waiting = asyncio.ensure_future(what), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([doing, waiting], return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        await _end([each for each in (doing, waiting) if not each.done()])


async def _handled(handler: TaskHandler, task: Task) -> Mapping[str, Any]:
    if inspect.iscoroutinefunction(handler):
        found = await handler(task)
    else:
        found = await asyncio.to_thread(handler, task)
        if inspect.isawaitable(found):
            found = await found
    return {} if found is None else dict(found)


async def _end(tasks: Any) -> None:  # noqa: ANN401  any collection of tasks
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
