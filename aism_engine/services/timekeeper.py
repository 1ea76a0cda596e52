"""The timekeeper: what is due."""

import asyncio
from typing import Final

from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.commands.deadlines import decide_deadline
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Lookups
from aism_engine.services.base import Service, ServiceContext
from aism_engine.store.writer import one_by_one

_MOST_BYTES: Final = 4_194_304
"""Of commands that are taken out of their lists in one commit: an arbitrary number."""
_IDLE: Final = frozenset({"unchanged", "refused"})
_BLIND_S: Final = 1.0
"""So much longer than usual between two looks: we have been blind. An arbitrary number."""


class Timekeeper(Service):
    """Acts on deadlines that have come, once everything is read that was said before them: a success in the queue beats
    them. After a spell in which nobody could say anything (Redis away, a start) everybody has a grace to say it.
    """

    name = "timekeeper"

    def __init__(self, context: ServiceContext, *, poll_interval_s: float, grace_s: float, batch: int) -> None:
        super().__init__(context)
        self._poll_interval_s = poll_interval_s
        self._grace_s = grace_s
        self._batch = batch
        self._looked_at = self._acts_from = float("-inf")

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        now = await self._store.read_time()
        if began - self._looked_at > self._poll_interval_s + _BLIND_S:
            self._acts_from = self._clock.monotonic() + self._grace_s
        self._looked_at = began
        if began < self._acts_from:
            return False
        unread_s = (
            began - self._context.watermark.applied_until
        )  # however far behind the consumer is: time goes on for it alone
        due = await self._store.due(now - unread_s, self._batch)
        if not due:
            self._record_step(began, ())
            return False
        again = [name for member, _ in due if _is_to_be_sent_again(fleet.commands.get(name := _name(member)))]
        lookups = Lookups(bodies=await self._store.bodies(again, _MOST_BYTES))

        decide = one_by_one("deadline", due, self._decide, self._decide_again)
        decisions = await self._writer.write(decide, on=fleet, lookups=lookups)
        self._record_step(began, decisions)
        return any(decision.outcome not in _IDLE for decision in decisions) and len(due) == self._batch

    def _decide(self, draft: Draft, due: tuple[str, float]) -> Decision:
        return decide_deadline(draft, self._policy, *due)

    def _decide_again(self, draft: Draft, due: tuple[str, float], failure: tuple[str, str]) -> Decision:
        code, reason = failure
        if code == "score_moved":
            return Decision("deadline", "unchanged")
        if code != "wrong_type":
            return Decision("deadline", "refused", code)  # it stays due, and is told of each time
        is_record = self._store.keys.command(_name(due[0])) in reason
        return decide_deadline(
            draft, self._policy, *due, wrong_type_keys=frozenset({"record" if is_record else "list"})
        )

    async def wait(self) -> None:
        await asyncio.sleep(self._poll_interval_s)


def _name(member: str) -> str:
    return member.partition(":")[2]


def _is_to_be_sent_again(command: Command | None) -> bool:
    return command is not None and command.status is Status.WAITING
