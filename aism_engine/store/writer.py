"""The one who writes: decides over a draft of the fleet, commits, and makes the draft the fleet.

What is guaranteed. All of a batch is written or nothing, once, in the order of the commits. A commit whose reply was
lost is sent again as it is: its id in the ledger tells whether it was written. Two services never decide at the same
time.

What can fail. Another engine has led (FENCED), or the ledger is neither ours nor the one before (OUT_OF_STEP: another
wrote, or the server went back in time): the fleet in memory is void, is dropped, and is loaded again before the next
decision. The tail of the queue is not what was peeked: the caller peeks again. A key has the wrong type, a heartbeat
has moved, a decision raises: everything is decided again, and the one that failed is told why, so that it can bury its
message and let the others go on.

What is not guaranteed. That a commit is written before the caller is cancelled: it is finished then, and the
cancellation goes on after it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

import structlog
import uuid_utils

from aism_engine.clock import Clock
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.effects import Fact
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.store.batch import SHARED, Batch, Bounds, SourceTrim
from aism_engine.store.leadership import Leadership
from aism_engine.store.scripts import CommitCode
from aism_engine.store.store import CommitReply, Store

log = structlog.get_logger(component="writer")

_SILENCES: Final = frozenset({"connection", "timeout", "refused"})
"""Outages that leave it unknown whether what was sent was done."""
_ATTEMPTS: Final = 3
"""How often a commit is sent at most: an arbitrary number. Past it the fleet is loaded again, which is as safe, but
slow.
"""

T = TypeVar("T")
Failures: TypeAlias = Mapping[int, tuple[str, str]]
"""What could not be committed before: the number of a decision, to its code and the reason."""
Decide: TypeAlias = Callable[[Draft, Failures], list[Decision]]


def wrong_type(*keys: str) -> tuple[str, str]:
    """Give the failure of a decision that would have written keys of the wrong type."""
    if len(keys) == 1:
        return "wrong_type", f"the key {keys[0]} has the wrong type"
    return "wrong_type", f"the keys {', '.join(keys)} have the wrong type"


class DecisionError(Exception):
    """Decision `number` raised: decide all of them again, that one knowing that it failed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"decision {number} raised")
        self.number = number


def one_by_one(
    kind: str,
    things: Sequence[T],
    decide_one: Callable[[Draft, T], Decision],
    failed: Callable[[Draft, T, tuple[str, str]], Decision] | None = None,
) -> Decide:
    """Decide on many things by themselves. Where one cannot be committed, or raises, the others go on, and `failed`
    says what becomes of it: unless told, a refusal of this kind that changes nothing.
    """

    def decide(draft: Draft, failures: Failures) -> list[Decision]:
        decisions = []
        for number, thing in enumerate(things):
            failure = failures.get(number)
            try:
                if failure is None:
                    decision = decide_one(draft, thing)
                elif failed is None:
                    decision = Decision(kind, "refused", failure[0])
                else:
                    decision = failed(draft, thing, failure)
            except Exception as error:
                raise DecisionError(number) from error
            decisions.append(decision)
        return decisions

    return decide


class CommitObserver(Protocol):
    """Hears of every commit: what was decided, which facts were recorded, how long it took, what was answered."""

    def committed(self, decisions: list[Decision], facts: list[Fact], seconds: float, code: str) -> None: ...

    def refused(self, code: str) -> None: ...


class Writer:
    """Holds the fleet, and the lock under which it changes."""

    def __init__(  # noqa: PLR0913  everything it stands on
        self,
        store: Store,
        leadership: Leadership,
        bounds: Bounds,
        clock: Clock,
        observer: CommitObserver,
        *,
        recent_ids: int,
        resend_after_s: float = 0.1,
        on_dispatchable: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._leadership = leadership
        self._bounds = bounds
        self._clock = clock
        self._observer = observer
        self._recent_ids = recent_ids
        self._resend_after_s = resend_after_s
        self._on_dispatchable = on_dispatchable
        self._lock = asyncio.Lock()
        self._fleet = Fleet()
        self._loaded_for: str | None = None
        self._ledger = ""

    @property
    def fleet(self) -> Fleet:
        """The fleet as last committed: to read, never to write."""
        return self._fleet

    async def loaded(self) -> Fleet:
        """Give the fleet, loaded for the lease that we hold now. Raises NotLeadingError where we hold none."""
        if self._loaded_for is None or self._loaded_for != self._leadership.token:
            async with self._lock:
                await self._load()
        return self._fleet

    @property
    def ledger(self) -> str:
        """The id of the last commit that we know of."""
        return self._ledger

    async def quiet(self) -> float:
        """Wait until no commit is in flight; gives the server's time. What is read then shows all that was decided."""
        async with self._lock:
            return self._store.now

    async def write(
        self,
        decide: Decide,
        *,
        on: Fleet | None = None,
        lookups: Lookups | None = None,
        taken: SourceTrim | None = None,
    ) -> list[Decision]:
        """Decide and commit, whole; gives the decisions as they were committed, none if the queue has moved meanwhile.

        `on` is the fleet beside which the lookups were read: once it has been loaded again they are void, for a commit
        of which we did not know may have come in between.

        Raises NotLeadingError where what was decided is void, ServerUnavailableError where Redis does not take it.
        """
        work = asyncio.ensure_future(self._write(decide, on, lookups, taken))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])  # the commit in hand is finished, or we would not know whether it was
            if not work.cancelled():
                work.exception()
            raise

    async def _write(
        self, decide: Decide, on: Fleet | None, lookups: Lookups | None, taken: SourceTrim | None
    ) -> list[Decision]:
        async with self._lock:
            token = await self._load()
            if on is not None and on is not self._fleet:
                raise NotLeadingError("the fleet has been loaded again: what was read beside the old one is void")
            failures: dict[int, tuple[str, str]] = {}
            while True:
                draft = Draft(self._fleet, self._store.now, lookups)
                try:
                    decisions = decide(draft, failures)
                except DecisionError as error:
                    log.exception("decision_failed", number=error.number)
                    _blame(failures, error.number, "internal_error", f"{error.__cause__!r:.200}")
                    continue
                batch = Batch(self._store.keys, self._bounds)
                batch.add(decisions)
                batch.add_message_ids(draft.seen_ids())
                commit_id = str(uuid_utils.uuid7())
                began = self._clock.monotonic()
                reply = await self._send(batch, token, commit_id, taken)
                code = reply.code
                if code in {CommitCode.APPLIED, CommitCode.REPLAYED}:
                    self._ledger = commit_id
                    draft.apply()
                    if self._fleet.dispatchable:
                        self._on_dispatchable()
                    self._observer.committed(decisions, batch.facts, self._clock.monotonic() - began, code.name.lower())
                    if reply.details:
                        log.error("commit_incomplete", commit=commit_id, failed=reply.details)
                    return decisions
                self._observer.refused(code.name.lower())
                if code is CommitCode.SOURCE_MOVED:
                    return []
                self._learn(batch, reply, failures)

    def _learn(self, batch: Batch, reply: CommitReply, failures: dict[int, tuple[str, str]]) -> None:
        """Note which decisions stood in the way of a commit; raise where none of them did."""
        if reply.code is CommitCode.WRONG_TYPE:
            keys: dict[int, list[str]] = {}
            for key, numbers in batch.owners_of_keys(reply.details).items():
                if SHARED in numbers:
                    raise ServerUnavailableError("wrong_type", f"{key} has the wrong type: mend it or remove it")
                for number in numbers:
                    keys.setdefault(number, []).append(key)
            for number, wrong in keys.items():
                _blame(failures, number, *wrong_type(*wrong))
        elif reply.code is CommitCode.SCORE_MOVED:
            for number in set(map(batch.owner_of_watch, reply.details)):
                _blame(failures, number, "score_moved", "it has moved since it was read")
        else:
            self._invalidate(reply.code)

    async def _send(self, batch: Batch, token: str, commit_id: str, taken: SourceTrim | None) -> CommitReply:
        """Send a commit; where there is no answer to it, send it again.

        An answer that says no (OOM, READONLY, …) is an answer: nothing was written. After silence it remains unknown,
        and once we give up, the next load of the fleet will show.
        """
        keys, arguments = batch.call(token, commit_id, self._ledger, taken)
        left, unknown = _ATTEMPTS, False
        while True:
            left -= 1
            try:
                return await self._store.commit(keys, arguments)
            except ServerUnavailableError as error:
                silent = error.outage in _SILENCES
                unknown |= silent
                if not silent or not left or self._leadership.token != token:
                    if unknown:
                        self._loaded_for = None
                    raise
                log.warning("commit_unanswered", commit=commit_id, outage=error.outage)
            await asyncio.sleep(self._resend_after_s)

    async def _load(self) -> str:
        token = self._leadership.token
        if token is None:
            raise NotLeadingError("this engine does not hold the lease")
        if self._loaded_for != token:
            began = self._clock.monotonic()
            await self._store.read_time()
            await self._store.probe()
            self._fleet, self._ledger, damaged = await self._store.load(self._recent_ids)
            self._fleet.loaded_at = self._store.now
            self._loaded_for = token
            self._on_dispatchable()
            log.info(
                "fleet_loaded",
                agents=len(self._fleet.agents),
                commands=len(self._fleet.commands),
                damaged=damaged,
                seconds=round(self._clock.monotonic() - began, 3),
            )
        return token

    def _invalidate(self, code: CommitCode) -> None:
        """Drop everything in hand."""
        self._loaded_for = None
        log.warning("fleet_dropped", reason=code.name.lower())
        if code is CommitCode.FENCED:
            self._leadership.lose()
        raise NotLeadingError(f"the commit was refused: {code.name}")


def _blame(failures: dict[int, tuple[str, str]], number: int, code: str, reason: str) -> None:
    if failures.get(number) == (code, reason):  # it was told so, and did it again
        raise RuntimeError(f"decision {number} cannot be committed: {code}: {reason}; before: {failures[number]}")
    failures[number] = (code, reason)
