"""An engine process that ends itself, as by kill -9, at chosen points of its services.

A point is a step of a service. All services that write have the same steps:

    read         what there is to do was read           looked_up    what the fleet does not hold was read
    built        the commit is built, and not sent      sent         the commit is sent, not answered
    answered     the answer is read, fleet unchanged    applied      the draft has become the fleet

The elector takes and renews the lease: `asked` (about to send), `sent`, `answered`. The listener pushes publications:
`received`, `sent`, `pushed`.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, TypeVar

from aism_engine import logs
from aism_engine.config import load_settings
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.engine import Engine
from aism_engine.services.base import Service
from aism_engine.services.queue_consumer import QueueConsumer
from aism_engine.services.reconciler import Reconciler
from aism_engine.store.store import Peek, Store
from aism_engine.store.writer import Failures, Writer

T = TypeVar("T")

CRASHED: Final = 86
"""Exit code of a process that has crashed at a point."""
READS: Final[Mapping[str, Mapping[str, str]]] = {
    "response_consumer": {"peek": "read", "snapshots": "looked_up", "commands": "looked_up"},
    "request_consumer": {"peek": "read", "snapshots": "looked_up", "commands": "looked_up"},
    "fanout": {"peek": "read", "group_request": "looked_up"},
    "dispatcher": {"list_heads": "read"},
    "timekeeper": {"due_deadlines": "read", "command_bodies": "looked_up"},
    "reaper": {"heartbeats_outside": "read", "heartbeat_scores": "looked_up"},
    "registrar": {"scan_heartbeats": "read", "snapshots": "looked_up"},
    "divergence_checker": {"heartbeat_scores": "read"},
    "reconciler": {"scan_without_deadline": "read"},
    "janitor": {"heartbeat_scores": "read"},
}
"""For each service that writes: the methods of the store by which it reads, and the step that each completes."""
_LOOP_CYCLES: Final = 5
"""Cycles of the event loop until a request is in the kernel's send buffer."""


class Point(NamedTuple):
    """Where to crash. `kind` is that of a decision in the commit; empty: whatever is committed."""

    service: str
    step: str
    kind: str = ""


_writing: ContextVar[tuple[str, frozenset[str]]] = ContextVar("_writing", default=("", frozenset()))
"""The service that commits, and the kinds of its decisions."""


class Crasher:
    """Ends the process as soon as one of the points is reached, and reports all points reached in that instant."""

    def __init__(self, points: Collection[Point], report: Connection) -> None:
        self._points = points
        self._report = report
        self._committing: set[str] = set()

    async def reach(self, service: str, step: str, kinds: Collection[str] = ()) -> None:
        """Crash if this is a point, but in no other service's commit: its points might never be reached again."""
        reached = [point for kind in ("", *kinds) if (point := Point(service, step, kind)) in self._points]
        if reached:
            await self._wait_no_commit(service)
            self._report.send(reached)
            os._exit(CRASHED)

    async def begin_commit(self, service: str) -> None:
        await self._wait_no_commit(service)
        self._committing.add(service)

    def end_commit(self, service: str) -> None:
        self._committing.discard(service)

    async def _wait_no_commit(self, service: str) -> None:
        while self._committing - {service}:  # noqa: ASYNC110 - it takes some cycles of the loop
            await asyncio.sleep(0)

    async def send(self, service: str, kinds: Collection[str], request: Coroutine[Any, Any, T]) -> T:
        """Send a request and await the answer, unless `sent` is a point."""
        sending = asyncio.ensure_future(request)
        for _ in range(_LOOP_CYCLES):
            await asyncio.sleep(0)
        await self.reach(service, "sent", kinds)
        return await sending


class CrashingStore:
    """A store as one service sees it. A reading step is complete when the read has found something."""

    def __init__(self, store: Store, service: str, crasher: Crasher) -> None:
        self._store = store
        self._service = service
        self._crasher = crasher

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a store
        found = getattr(self._store, name)
        step = READS.get(self._service, {}).get(name)
        if step is None:
            return found

        async def read(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            result = await found(*arguments, **options)
            if result.messages if isinstance(result, Peek) else any(result or ()):
                await self._crasher.reach(self._service, step)
            return result

        return read


class CrashingWriter:
    """A writer as one service sees it."""

    def __init__(self, writer: Writer, service: str, crasher: Crasher) -> None:
        self._writer = writer
        self._service = service
        self._crasher = crasher

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._writer, name)

    async def commit(self, decide: Callable[[Draft, Failures], list[Decision]], **options: Any) -> Sequence[Decision]:  # noqa: ANN401
        def decide_and_note(draft: Draft, failures: Failures) -> list[Decision]:
            decisions = decide(draft, failures)
            _writing.set((self._service, _kinds(decisions)))
            return decisions

        try:
            decisions = await self._writer.commit(decide_and_note, **options)
            if _kinds(decisions):
                await self._crasher.reach(self._service, "applied")
        finally:
            self._crasher.end_commit(self._service)
        return decisions


def _kinds(decisions: Sequence[Decision]) -> frozenset[str]:
    return frozenset(decision.kind for decision in decisions if decision.outcome != "unchanged")


def install(engine: Engine, crasher: Crasher) -> None:
    """Let an engine crash at the points of this crasher."""
    commit = engine.store.commit

    async def crashing_commit(*arguments: Any) -> Any:  # noqa: ANN401
        service, kinds = _writing.get()
        await crasher.begin_commit(service)
        await crasher.reach(service, "built", kinds)
        reply = await crasher.send(service, kinds, commit(*arguments))
        await crasher.reach(service, "answered", kinds)
        return reply

    engine.store.commit = crashing_commit  # type: ignore[method-assign, assignment]
    for service in (component for component in engine.components if isinstance(component, Service)):
        service._store = CrashingStore(engine.store, service.name, crasher)  # type: ignore[assignment]
        service._writer = CrashingWriter(engine.writer, service.name, crasher)  # type: ignore[assignment]
        if isinstance(service, QueueConsumer):
            service._context = replace(service._context, store=service._store)
        if service.name == "elector":
            _install_in_elector(service, crasher)
        if service.name == "listener":
            _install_in_listener(service, crasher)


def _install_in_elector(elector: Any, crasher: Crasher) -> None:  # noqa: ANN401
    acquire = elector._lease_store.acquire_lease

    async def acquire_lease(holder: str, ttl_s: float, token: str | None) -> Any:  # noqa: ANN401
        await elector._lease_store.read_time()  # opens the connection over which to send
        kinds = ("renew" if token else "take",)
        await crasher.reach("elector", "asked", kinds)
        answer = await crasher.send("elector", kinds, acquire(holder, ttl_s, token))
        await crasher.reach("elector", "answered", kinds)
        return answer

    elector._lease_store.acquire_lease = acquire_lease


def _install_in_listener(listener: Any, crasher: Crasher) -> None:  # noqa: ANN401
    push_published = listener._store.push_published

    async def crashing_push(*arguments: Any) -> None:  # noqa: ANN401
        await crasher.reach("listener", "received")
        await crasher.send("listener", (), push_published(*arguments))
        await crasher.reach("listener", "pushed")

    listener._store.push_published = crashing_push


def run(overrides: Mapping[str, object], points: Collection[Point], report: Connection) -> None:
    """Run an engine in this process until it crashes at one of the points."""
    settings = load_settings(environ={}, overrides=overrides).settings
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        logs.configure(level="error", format="json", queue=1000, stream=nowhere)
        engine = Engine(settings, environ={})
        reconciler = next(part for part in engine.components if isinstance(part, Reconciler))
        reconciler._interval_s = 0.05
        install(engine, Crasher(points, report))
        asyncio.run(engine.run(asyncio.Event()))
