"""The one writer of a fleet: decides over a draft, commits the decisions, and makes the draft the fleet.

batch.py turns each effect into Redis commands; commit.lua runs them.

Guaranteed:
- All decisions of a batch are written or none is, exactly once, in the order of the commits.
- A commit without a reply is sent again under its id. The ledger shows whether it was applied before.
- Decisions are made under one lock: each sees what was committed before it.

Failures:
- FENCED (another engine has led since) or OUT_OF_STEP (another engine wrote, or the server lost its latest writes in a
  failover): the fleet in memory is invalid. The writer drops it and loads it again before the next decision.
- SOURCE_MOVED (the tail of the queue is not what was peeked): nothing is written, and the caller peeks again.
- A key has the wrong type, a watched score has moved, or a decision raises: the writer decides the whole batch again
  and passes the failure to the decision that failed. That one can dead-letter its message; the others are committed.

Not guaranteed: that a cancelled caller returns at once. Its commit is finished first, then the cancellation is raised.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

import structlog
import uuid_utils

from aism_engine.clock import Clock
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.metrics import Metrics
from aism_engine.store.batch import SHARED, Batch, Bounds, SourceTrim
from aism_engine.store.leadership import Leadership
from aism_engine.store.scripts import CommitCode
from aism_engine.store.store import CommitReply, Store

log = structlog.get_logger(component="writer")

_UNKNOWN_OUTCOME: Final = frozenset({"connection", "timeout", "refused"})
"""Outages in which a commit gets no reply, so it is sent again. The server may have applied it.

The outage `refused` is a refused connection: that attempt did not reach the server, but an earlier one may have.
"""
_MAX_ATTEMPTS: Final = 3
"""Maximum number of times that one commit is sent: an arbitrary number.

After the last attempt the fleet is loaded again. That is as safe as another attempt, but slower.
"""
_RESEND_AFTER_S: Final = 0.1

T = TypeVar("T")


class Failure(NamedTuple):
    """Why a decision could not be committed."""

    code: str
    reason: str
    keys: tuple[str, ...] = ()
    """The keys of the wrong type that the decision has used, in this attempt or in an earlier one."""


Failures: TypeAlias = Mapping[int, Failure]
"""The failures of earlier attempts, by the number of the decision."""
Decide: TypeAlias = Callable[[Draft, Failures], list[Decision]]


def wrong_type(*keys: str) -> Failure:
    """Return the failure of a decision that uses keys of the wrong type."""
    if len(keys) == 1:
        return Failure("wrong_type", f"the key {keys[0]} has the wrong type", keys)
    return Failure("wrong_type", f"the keys {', '.join(keys)} have the wrong type", keys)


class DecisionError(Exception):
    """Decision `number` raised."""

    def __init__(self, number: int) -> None:
        super().__init__(f"decision {number} raised")
        self.number = number


def decide_each(
    kind: str,
    items: Sequence[T],
    decide_one: Callable[[Draft, T], Decision],
    decide_failed: Callable[[Draft, T, Failure], Decision] | None = None,
) -> Decide:
    """Decide on each item by itself, so that a failure does not stop the others.

    `decide_failed` decides on an item that cannot be committed, or whose decision raised. By default such an item is
    refused and nothing changes.
    """

    def decide(draft: Draft, failures: Failures) -> list[Decision]:
        decisions = []
        for number, item in enumerate(items):
            failure = failures.get(number)
            try:
                if failure is None:
                    decision = decide_one(draft, item)
                elif decide_failed is None:
                    decision = Decision(kind, "refused", failure.code)
                else:
                    decision = decide_failed(draft, item, failure)
            except Exception as error:
                raise DecisionError(number) from error
            decisions.append(decision)
        return decisions

    return decide


class Writer:
    """Holds the fleet, and the lock under which it changes."""

    def __init__(
        self,
        store: Store,
        leadership: Leadership,
        bounds: Bounds,
        clock: Clock,
        metrics: Metrics,
        *,
        recent_ids: int,
        on_dispatchable: Callable[[], None] = lambda: None,
    ) -> None:
        """`recent_ids` is the number of message ids that the fleet remembers per agent.

        `on_dispatchable` is called after each load, and after a commit if `fleet.dispatchable` has agents. It wakes up
        the dispatcher.
        """
        self.fleet = Fleet()
        """The fleet as last committed. Callers must not change it."""
        self.ledger = ""
        """Id of the last commit that the engine knows of."""
        self._store = store
        self._leadership = leadership
        self._bounds = bounds
        self._clock = clock
        self._metrics = metrics
        self._recent_ids = recent_ids
        self._on_dispatchable = on_dispatchable
        self._lock = asyncio.Lock()
        self._loaded_for: str | None = None
        """The token under which the fleet was loaded; None if the fleet is invalid."""

    async def loaded(self) -> Fleet:
        """Return the fleet, loaded under the present lease. Raises NotLeadingError if the engine holds none."""
        if self._loaded_for is None or self._loaded_for != self._leadership.token:
            async with self._lock:
                await self._load()
        return self.fleet

    async def wait_idle(self) -> float:
        """Wait until no commit is in flight, and return the server's time. Later reads see all earlier decisions."""
        async with self._lock:
            return self._store.now

    async def commit(
        self,
        decide: Decide,
        *,
        fleet: Fleet | None = None,
        lookups: Lookups | None = None,
        trim: SourceTrim | None = None,
    ) -> list[Decision]:
        """Decide and commit; return the decisions as committed, or none if the queue of `trim` has moved.

        `fleet` is the fleet for which the lookups were read. If it has been loaded again since, the lookups are
        invalid, because an unknown commit may have come in between.

        Raises NotLeadingError if this engine does not lead or its fleet is out of date; ServerUnavailableError while
        Redis cannot serve.
        """
        task = asyncio.ensure_future(self._commit(decide, fleet, lookups, trim))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])  # an interrupted commit would have an unknown outcome
            if not task.cancelled():
                task.exception()
            raise

    async def _commit(
        self, decide: Decide, fleet: Fleet | None, lookups: Lookups | None, trim: SourceTrim | None
    ) -> list[Decision]:
        async with self._lock:
            token = await self._load()
            if fleet is not None and fleet is not self.fleet:
                raise NotLeadingError("the fleet has been loaded again: lookups for the old one are invalid")
            failures: dict[int, Failure] = {}
            while True:
                draft = Draft(self.fleet, self._store.now, lookups)
                try:
                    decisions = decide(draft, failures)
                except DecisionError as error:
                    log.exception("decision_failed", number=error.number)
                    _add_failure(failures, error.number, Failure("internal_error", f"{error.__cause__!r:.200}"))
                    continue
                batch = Batch(self._store.keys, self._bounds, decisions, draft.seen_ids())
                commit_id = str(uuid_utils.uuid7())
                began = self._clock.monotonic()
                reply = await self._send(batch, token, commit_id, trim)
                code = reply.code.name.lower()
                if reply.code in {CommitCode.APPLIED, CommitCode.REPLAYED}:
                    self.ledger = commit_id
                    draft.apply()
                    if self.fleet.dispatchable:
                        self._on_dispatchable()
                    self._metrics.committed(decisions, batch.facts, self._clock.monotonic() - began, code)
                    if reply.details:
                        log.error("commit_incomplete", commit=commit_id, failed=reply.details)
                    return decisions
                self._metrics.commits.labels(code).inc()
                if reply.code is CommitCode.SOURCE_MOVED:
                    return []
                self._add_failures(batch, reply, failures)

    def _add_failures(self, batch: Batch, reply: CommitReply, failures: dict[int, Failure]) -> None:
        """Add the decisions that stopped a commit to the failures; raise if no decision did."""
        if reply.code is CommitCode.WRONG_TYPE:
            users = batch.users_of_keys(reply.details)
            if SHARED in users:
                raise ServerUnavailableError(
                    "wrong_type", f"{users[SHARED][0]} has the wrong type: repair or remove it"
                )
            for number, keys in users.items():
                earlier = failures[number].keys if number in failures else ()
                _add_failure(failures, number, wrong_type(*dict.fromkeys((*earlier, *keys))))
        elif reply.code is CommitCode.SCORE_MOVED:
            for number in set(map(batch.decision_of_watch, reply.details)):
                _add_failure(failures, number, Failure("score_moved", "the score has moved since it was read"))
        else:
            self._loaded_for = None
            log.warning("fleet_dropped", reason=reply.code.name.lower())
            if reply.code is CommitCode.FENCED:
                self._leadership.lose()
            raise NotLeadingError(f"the commit was refused: {reply.code.name}")

    async def _send(self, batch: Batch, token: str, commit_id: str, trim: SourceTrim | None) -> CommitReply:
        """Send a commit; send it again if there is no reply.

        An error such as OOM or READONLY is a reply: nothing was written. Without any reply the outcome stays unknown,
        and the next load of the fleet shows it.
        """
        keys, arguments = batch.call(token, commit_id, self.ledger, trim)
        attempts_left, unknown = _MAX_ATTEMPTS, False
        while True:
            attempts_left -= 1
            try:
                return await self._store.commit(keys, arguments)
            except ServerUnavailableError as error:
                unanswered = error.outage in _UNKNOWN_OUTCOME
                unknown |= unanswered
                if not unanswered or not attempts_left or self._leadership.token != token:
                    if unknown:
                        self._loaded_for = None
                    raise
                log.warning("commit_unanswered", commit=commit_id, outage=error.outage)
            await asyncio.sleep(_RESEND_AFTER_S)

    async def _load(self) -> str:
        """Load the fleet unless it was loaded under the present token; return the token."""
        token = self._leadership.token
        if token is None:
            raise NotLeadingError("this engine does not hold the lease")
        if self._loaded_for != token:
            began = self._clock.monotonic()
            await self._store.read_time()
            await self._store.probe_permissions()
            self.fleet, self.ledger, damaged = await self._store.load_fleet(self._recent_ids)
            self.fleet.loaded_at = self._store.now
            self._loaded_for = token
            self._on_dispatchable()
            log.info(
                "fleet_loaded",
                agents=len(self.fleet.agents),
                commands=len(self.fleet.commands),
                damaged=damaged,
                seconds=round(self._clock.monotonic() - began, 3),
            )
        return token


def _add_failure(failures: dict[int, Failure], number: int, failure: Failure) -> None:
    if failures.get(number) == failure:  # the decision knew of this failure, and failed again
        raise RuntimeError(f"decision {number} cannot be committed: {failure.code}: {failure.reason}")
    failures[number] = failure
