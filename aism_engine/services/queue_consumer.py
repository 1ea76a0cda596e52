"""What the consumer and the dispatcher have in common: peek at the tail of a queue, look up, decide, commit."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.effects import DeadLetterSource
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.protocol.codec import MalformedError
from aism_engine.domain.responses import dead_letter_oversized
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext
from aism_engine.services.wakeup import Wakeup
from aism_engine.store.store import Peek
from aism_engine.store.writer import DecisionError, Failures, wrong_type

_TURNS: Final = 3
"""Turns of the loop that redis-py needs to send a request: it shall be on its way before the deciding begins."""

M = TypeVar("M")


class QueueLimits(NamedTuple):
    """How much is read at a time: messages, bytes of them all, bytes of one; and after how many seconds unasked."""

    messages: int
    bytes: int
    message_bytes: int
    poll_interval_s: float


class QueueConsumer(Service, Generic[M]):
    """A service that reads a queue. Idle, it sleeps until its hint rings or it is time to poll; busy, it drains."""

    def __init__(
        self,
        context: ServiceContext,
        hint: Wakeup,
        source: DeadLetterSource,
        limits: QueueLimits,
        decode: Callable[[bytes], M],
    ) -> None:
        super().__init__(context)
        self._hint = hint
        self._source = source
        self._queue = getattr(context.store.keys, source)
        self._limits = limits
        self._decode = decode
        self._ahead_of = ""
        """The last commit before the one that what is read ahead was read behind."""
        self._ahead: asyncio.Future[tuple[Peek, list[M | MalformedError]]] | None = None

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._drop_ahead()

    async def run_once(self) -> bool:
        try:
            return await self._step()
        except (NotLeadingError, ServerUnavailableError):
            await self._drop_ahead()  # it was read behind what is not applied
            raise

    async def _step(self) -> bool:
        began = self._clock.monotonic()
        fleet = await self._writer.loaded()
        peek, messages = await self._next()
        if not peek.messages:
            was_muted = self._hint.muted
            if was_muted:
                await self._hint.unmute()
            self._record_step(began, ())
            return was_muted  # what came while it was muted was not announced: look once more
        if peek.length > len(peek.messages):
            # There is more: it is fetched and decoded while the server is busy with this commit, past which it skips.
            # It counts only if the server has read it before that commit, and is dropped if that comes to nothing.
            self._ahead_of = self._writer.ledger
            self._ahead = asyncio.ensure_future(self._fetch(len(peek.messages)))
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if not self._hint.muted:
                await self._hint.mute()

        def decide(draft: Draft, failures: Failures) -> list[Decision]:
            if peek.oversized:
                return [self._decide_oversized(draft, peek)]
            if failures:
                failures = self._with_strangers(failures, messages)
            return [
                self._decide_one(draft, number, message, peek.messages[number], failures.get(number))
                for number, message in enumerate(messages)
            ]

        understood = [message for message in messages if not isinstance(message, MalformedError)]
        lookups = await self.look_up(fleet, understood)
        decisions = await self._writer.write(decide, on=fleet, lookups=lookups, taken=peek.taken)
        if not decisions:
            await self._drop_ahead()
        self.applied(len(decisions))
        self._record_step(began, decisions)
        return True

    def _with_strangers(self, failures: Failures, messages: Sequence[M | MalformedError]) -> Failures:
        """Blame all messages of a stranger that cannot be taken in: each of them would only try that again."""
        keys, agents = self._store.keys, [getattr(message, "agent_id", None) for message in messages]
        barred = {
            agent: failure
            for number, failure in failures.items()
            if (agent := agents[number]) is not None
            and agent not in self._writer.fleet.agents
            and failure in {wrong_type(keys.agent(agent)), wrong_type(keys.state(agent))}
        }
        return {number: barred[agent] for number, agent in enumerate(agents) if agent in barred} | dict(failures)

    async def _next(self) -> tuple[Peek, list[M | MalformedError]]:
        """Take what was read ahead, if it was read before the commit that it skips, or read now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            batch = await ahead
            if batch[0].ledger == self._ahead_of:
                return batch
        return await self._fetch(0)

    async def _fetch(self, skip: int) -> tuple[Peek, list[M | MalformedError]]:
        """Peek, and decode what is there; the oldest `skip` are in hand already."""
        limits, began = self._limits, self._clock.monotonic()
        peek = await self._store.peek(
            self._queue, most=limits.messages, most_bytes=limits.bytes, limit=limits.message_bytes, skip=skip
        )
        self.seen(began, peek.length)
        return peek._replace(length=peek.length - skip), [self._read(raw) for raw in peek.messages]

    async def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()

    async def on_standby(self) -> None:
        await self._drop_ahead()

    async def wait(self) -> None:
        await self._hint.wait(self._limits.poll_interval_s)

    @abstractmethod
    async def look_up(self, fleet: Fleet, messages: Sequence[M]) -> Lookups:
        """Read from Redis what the decisions on these messages have to know, and the fleet does not hold."""

    @abstractmethod
    def decide(self, draft: Draft, message: M, raw: bytes) -> Decision:
        """Decide on one message."""

    @abstractmethod
    def dead_letter(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        """Give up on one message."""

    def seen(self, at: float, length: int) -> None:
        """Note how much lies in the queue."""

    def applied(self, count: int) -> None:
        """Note how much was taken from it."""

    def _read(self, raw: bytes) -> M | MalformedError:
        try:
            return self._decode(raw)
        except MalformedError as error:
            return error

    def _decide_one(
        self, draft: Draft, number: int, message: M | MalformedError, raw: bytes, failure: tuple[str, str] | None
    ) -> Decision:
        if failure is not None:
            message = MalformedError(*failure, getattr(message, "agent_id", None), getattr(message, "id", None))
        try:
            if isinstance(message, MalformedError):
                return self.dead_letter(draft, message, raw)
            return self.decide(draft, message, raw)
        except Exception as error:
            raise DecisionError(number) from error

    def _decide_oversized(self, draft: Draft, peek: Peek) -> Decision:
        size = int(peek.oversized.rpartition(":")[2])
        return dead_letter_oversized(draft, self._policy, peek.messages[0], peek.oversized, size, self._source)
