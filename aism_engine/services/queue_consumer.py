"""Reads a queue: peek at the oldest messages, look up what the decisions need, decide, commit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aism_engine.domain.dead_letters import dead_letter_oversized
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.effects import DeadLetterSource
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import MalformedError
from aism_engine.domain.text import DIGESTED_BYTES
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.services.base import Service, ServiceContext
from aism_engine.services.queue_watch import QueueWatch
from aism_engine.services.wakeup import Watermark
from aism_engine.settings import QueueSettings
from aism_engine.store.client import until_sent
from aism_engine.store.store import Peek
from aism_engine.store.writer import DecisionError, Failures

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class QueueHandler(Generic[M]):
    """How the messages of one queue are decoded and decided."""

    name: str
    """Name of the component, in logs and metrics."""
    source: DeadLetterSource
    """Name of the queue: its attribute in `Keys`, and the source of its dead letters."""
    decode: Callable[[Policy, Sequence[bytes]], list[M | MalformedError]]
    """Decodes a batch: each message, or the reason why it cannot be decoded."""
    look_up: Callable[[ServiceContext, Fleet, Sequence[M]], Awaitable[Lookups]]
    """Reads what the decisions on these messages need and the fleet in memory does not hold."""
    decide: Callable[[Draft, Policy, M, bytes], Decision]
    dead_letter: Callable[[Draft, Policy, MalformedError, bytes], Decision]
    """Decides on a message that cannot be decoded or committed."""


class QueueConsumer(Service, Generic[M]):
    """Applies each message of a queue once, or dead-letters it.

    While the queue is empty, the consumer sleeps until its wakeup is set: by its watch, or by a notification. The watch
    usually knows the message, which is then applied without a peek. While the queue holds more than one batch, the
    consumer prefetches the next batch during each commit. It also mutes its wakeup then, and unmutes it when the queue
    is empty: see `Wakeup`.
    """

    def __init__(
        self,
        context: ServiceContext,
        handler: QueueHandler[M],
        settings: QueueSettings,
        watch: QueueWatch,
        watermark: Watermark | None = None,
    ) -> None:
        """`watermark` is updated with how far the queue has been applied."""
        super().__init__(context)
        self.name = handler.name
        self._handler = handler
        self._queue: str = getattr(context.store.keys, handler.source)
        self._settings = settings
        self._watch = watch
        self._wakeup = watch.wakeup
        self._watched: bytes | None = None
        """The oldest message, if the watch has found it and nothing was read since."""
        self._watermark = watermark
        self._prefetched: asyncio.Future[tuple[Peek, list[M | MalformedError]]] | None = None
        self._prefetch_ledger = ""
        """Ledger id that the prefetched batch must carry to still be valid."""

    async def run_once(self) -> bool:
        try:
            return await self._step()
        except (NotLeadingError, ServerUnavailableError):
            await self._drop_prefetched()  # it follows a batch that was not applied
            raise

    async def wait(self) -> None:
        max_bytes = self._policy.protocol.max_message_bytes
        found = await self._watch.wait(self._settings.poll_interval, max_bytes)
        # The message that the watch returns may have been applied meanwhile. The commit detects this by the digest, if
        # the digest covers the whole message. The digest of a longer message could equal that of the next message, so
        # the consumer peeks at the queue instead.
        self._watched = found if found is not None and len(found) <= DIGESTED_BYTES else None

    async def _step(self) -> bool:
        started_at = self._clock.monotonic()
        fleet = await self._writer.loaded()
        peek, messages = await self._next_batch()
        if not peek.messages:
            was_muted = self._wakeup.muted
            if was_muted:
                await self._wakeup.unmute()
            self._record_step(started_at)
            return was_muted  # messages that arrive while muted wake nobody: peek again
        if peek.length > len(peek.messages):
            await self._prefetch(len(peek.messages))
            if not self._wakeup.muted:
                await self._wakeup.mute()

        def decide(draft: Draft, failures: Failures) -> list[Decision]:
            if peek.oversized:
                return [self._decide_oversized(draft, peek)]
            return self._decide(draft, self._refuse(messages, failures) if failures else messages, peek.messages)

        decoded = [message for message in messages if type(message) is not MalformedError]
        lookups = await self._handler.look_up(self._context, fleet, decoded)
        decisions = await self._writer.commit(decide, fleet=fleet, lookups=lookups, trim=peek.trim)
        if not decisions:  # the queue had changed, so the messages that the prefetch skipped are not applied yet
            await self._drop_prefetched()
        if self._watermark is not None:
            self._watermark.advance(len(decisions))
        self._record_step(started_at, decisions)
        return True

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _next_batch(self) -> tuple[Peek, list[M | MalformedError]]:
        """Return the message that the watch has found, or the prefetched batch if it is valid, else a new one.

        The prefetched batch is invalid if another commit reached Redis before the peek of the prefetch.
        """
        watched, self._watched = self._watched, None
        if watched is not None:  # the commit checks that it is still the oldest one
            return Peek(self._queue, [watched], "", 1), self._handler.decode(self._policy, [watched])
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None:
            batch = await prefetched
            if batch[0].ledger == self._prefetch_ledger:
                return batch
        self._wakeup.clear()
        return await self._fetch(skip=0)

    async def _prefetch(self, skip: int) -> None:
        """Start to read the next batch while the current one is decided and committed."""
        self._prefetch_ledger = self._writer.ledger
        self._prefetched = asyncio.ensure_future(self._fetch(skip))
        await until_sent()  # so that the peek is sent before the commit

    async def _fetch(self, skip: int) -> tuple[Peek, list[M | MalformedError]]:
        """Peek and decode. The oldest `skip` messages are left out: they are the current batch."""
        settings, asked_at = self._settings, self._clock.monotonic()
        peek = await self._store.peek(
            self._queue,
            max_messages=settings.batch_messages,
            max_bytes=settings.batch_bytes,
            max_message_bytes=self._policy.protocol.max_message_bytes,
            skip=skip,
        )
        if self._watermark is not None:
            self._watermark.observe(asked_at, peek.length)
        return peek._replace(length=peek.length - skip), self._handler.decode(self._policy, peek.messages)

    async def release(self) -> None:
        self._watched = None
        await self._watch.close()
        await self._drop_prefetched()

    async def _drop_prefetched(self) -> None:
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None:
            prefetched.cancel()
            await asyncio.gather(prefetched, return_exceptions=True)

    # --- deciding -----------------------------------------------------------------------------------------------------

    def _decide(self, draft: Draft, messages: Sequence[M | MalformedError], raws: Sequence[bytes]) -> list[Decision]:
        decide, dead_letter, policy = self._handler.decide, self._handler.dead_letter, self._policy
        decisions: list[Decision] = []
        try:
            for message, raw in zip(messages, raws, strict=True):
                if isinstance(message, MalformedError):
                    decisions.append(dead_letter(draft, policy, message, raw))
                else:
                    decisions.append(decide(draft, policy, message, raw))
        except Exception as error:
            raise DecisionError(len(decisions)) from error
        return decisions

    def _decide_oversized(self, draft: Draft, peek: Peek) -> Decision:
        size = int(peek.oversized.rpartition(":")[2])
        return dead_letter_oversized(draft, self._policy, peek.messages[0], peek.oversized, size, self._handler.source)

    def _refuse(self, messages: Sequence[M | MalformedError], failures: Failures) -> list[M | MalformedError]:
        """Replace each message whose decision cannot be committed with a MalformedError that holds the reason."""
        refused = list(messages)
        for number, failure in self._fail_unknown_agents(failures, messages).items():
            ids = getattr(messages[number], "agent_id", None), getattr(messages[number], "id", None)
            refused[number] = MalformedError(failure.code, failure.reason, *ids)
        return refused

    def _fail_unknown_agents(self, failures: Failures, messages: Sequence[M | MalformedError]) -> Failures:
        """If an unknown agent could not be added, fail all its messages: each of them would try to add it again."""
        keys, agent_ids = self._store.keys, [getattr(message, "agent_id", None) for message in messages]
        failed_agents = {
            agent_id: failure
            for number, failure in failures.items()
            if (agent_id := agent_ids[number]) is not None
            and agent_id not in self._writer.fleet.agents
            and not {keys.agent(agent_id), keys.state(agent_id)}.isdisjoint(failure.keys)
        }
        extended = {number: failed_agents[each] for number, each in enumerate(agent_ids) if each in failed_agents}
        return extended | dict(failures)
