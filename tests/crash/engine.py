"""An engine process that ends itself, without a word, at one step of one service.

The steps are those of the one shape that all services share, and end where the next begins:

    peeked      what there is to do was read              looked up   what the fleet does not hold was read
    decided     the decisions stand, nothing is built     built       the commit is built, and not sent
    sent        it is sent, nobody waits for the answer   committed   the answer is there, the fleet is as before
    applied     the draft is the fleet

The elector takes and renews the lease: `asked` (about to be), `sent`, `answered`. The listener pushes what was only
published: `heard`, `sent`, `pushed`.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from aism_engine import logs
from aism_engine.config import load_settings
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.engine import Engine
from aism_engine.services.base import Service
from aism_engine.services.reconciler import Reconciler
from aism_engine.store.store import Peek, Store
from aism_engine.store.writer import Failures, Writer

T = TypeVar("T")

CRASHED: Final = 86
"""The exit code of one that ended at its step."""
COMMIT_STEPS: Final = ("decided", "built", "sent", "committed", "applied")
READS: Final[Mapping[str, Mapping[str, str]]] = {
    "response_consumer": {"peek": "peeked", "snapshots": "looked up", "commands": "looked up"},
    "request_consumer": {"peek": "peeked", "snapshots": "looked up", "commands": "looked up"},
    "fanout": {"peek": "peeked", "group_request": "looked up"},
    "dispatcher": {"list_heads": "peeked"},
    "timekeeper": {"due_deadlines": "peeked", "command_bodies": "looked up"},
    "reaper": {"heartbeats_outside": "peeked", "heartbeat_scores": "looked up"},
    "registrar": {"scan_heartbeats": "peeked", "snapshots": "looked up"},
    "divergence_checker": {"heartbeat_scores": "peeked"},
    "reconciler": {"scan_without_deadline": "peeked"},
    "janitor": {"heartbeat_scores": "peeked"},
}
"""For each service that commits, what it reads, and which step that is."""
_TURNS: Final = 5
"""Turns of the loop until a request is in the hands of the kernel."""


class Point(NamedTuple):
    """Where to end: `kind` is that of a decision among those committed; `` for the steps that come before any."""

    service: str
    step: str
    kind: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.service, self.kind, self.step)))


_writing: ContextVar[tuple[str, frozenset[str]]] = ContextVar("_writing", default=("", frozenset()))
"""Which service commits, and what kinds of decisions."""


class Fuse:
    """Ends the process when its point is reached."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def reach(self, service: str, step: str, kinds: frozenset[str] = frozenset(("",))) -> None:
        if (service, step) == self._point[:2] and self._point.kind in kinds | {""}:
            burn()

    async def send(self, service: str, kinds: frozenset[str], request: Coroutine[Any, Any, T]) -> T:
        """Send a request and await the answer, unless the point lies between."""
        sending = asyncio.ensure_future(request)
        if self._point[:2] == (service, "sent"):
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self.reach(service, "sent", kinds)
        return await sending


def burn() -> NoReturn:
    os._exit(CRASHED)


class FusedStore:
    """A store, as one service sees it: a step is done when a read has found something."""

    def __init__(self, store: Store, service: str, fuse: Fuse) -> None:
        self._store = store
        self._service = service
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a store has
        found = getattr(self._store, name)
        step = READS.get(self._service, {}).get(name)
        if step is None:
            return found

        async def read(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            result = await found(*arguments, **options)
            if result.messages if isinstance(result, Peek) else any(result or ()):
                self._fuse.reach(self._service, step)
            return result

        return read


class FusedWriter:
    """A writer, as one service sees it."""

    def __init__(self, writer: Writer, service: str, fuse: Fuse) -> None:
        self._writer = writer
        self._service = service
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._writer, name)

    async def commit(self, decide: Callable[[Draft, Failures], list[Decision]], **options: Any) -> Sequence[Decision]:  # noqa: ANN401
        def decide_and_tell(draft: Draft, failures: Failures) -> list[Decision]:
            decisions = decide(draft, failures)
            kinds = frozenset(decision.kind for decision in decisions if decision.outcome != "unchanged")
            _writing.set((self._service, kinds))
            self._fuse.reach(self._service, "decided", kinds)
            return decisions

        decisions = await self._writer.commit(decide_and_tell, **options)
        kinds = frozenset(decision.kind for decision in decisions if decision.outcome != "unchanged")
        self._fuse.reach(self._service, "applied", kinds)
        return decisions


def fuse(engine: Engine, point: Point) -> None:
    """Lay a fuse through all services of an engine."""
    laid = Fuse(point)
    commit = engine.store.commit

    async def fused_commit(*arguments: Any) -> Any:  # noqa: ANN401
        service, kinds = _writing.get()
        laid.reach(service, "built", kinds)
        reply = await laid.send(service, kinds, commit(*arguments))
        laid.reach(service, "committed", kinds)
        return reply

    engine.store.commit = fused_commit  # type: ignore[method-assign, assignment]
    for service in (component for component in engine.components if isinstance(component, Service)):
        service._store = FusedStore(engine.store, service.name, laid)  # type: ignore[assignment]
        service._writer = FusedWriter(engine.writer, service.name, laid)  # type: ignore[assignment]
        if service.name == "elector":
            _fuse_elector(service, laid)
        if service.name == "listener":
            _fuse_listener(service, laid)


def _fuse_elector(elector: Any, laid: Fuse) -> None:  # noqa: ANN401
    take = elector._lease_store.acquire_lease

    async def take_lease(holder: str, ttl_s: float, token: str | None) -> Any:  # noqa: ANN401
        await elector._lease_store.read_time()  # so that there is a connection on which to send
        kinds = frozenset({"renew" if token else "take"})
        laid.reach("elector", "asked", kinds)
        answer = await laid.send("elector", kinds, take(holder, ttl_s, token))
        laid.reach("elector", "answered", kinds)
        return answer

    elector._lease_store.acquire_lease = take_lease


def _fuse_listener(listener: Any, laid: Fuse) -> None:  # noqa: ANN401
    push_published = listener._store.push_published

    async def fused_push(*arguments: Any) -> None:  # noqa: ANN401
        laid.reach("listener", "heard")
        await laid.send("listener", frozenset(), push_published(*arguments))
        laid.reach("listener", "pushed")

    listener._store.push_published = fused_push


def run(overrides: Mapping[str, object], point: Point | None) -> None:
    """Run an engine in this process until SIGTERM ends it, or its point is reached."""
    settings = load_settings(environ={}, overrides=overrides).settings
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        logs.configure(level="error", format="json", queue=1000, stream=nowhere)
        engine = Engine(settings, environ={})
        reconciler = next(part for part in engine.components if isinstance(part, Reconciler))
        reconciler._interval_s = 0.05
        if point is not None:
            fuse(engine, point)
        asyncio.run(engine.run(asyncio.Event()))
