"""The timekeeper: what is due."""

import asyncio
from typing import Final

from aism_engine.model.decisions.common import Decision
from aism_engine.model.decisions.due import decide_due
from aism_engine.model.fleet import Draft, Lookups
from aism_engine.services.base import Context, Service
from aism_engine.store.writer import Failures

_MOST_BYTES: Final = 4_194_304
"""Of commands that are taken out of their lists in one commit: an arbitrary number."""


class Timekeeper(Service):
    """Acts on deadlines that have come, once everything is read that was said before them: a success in the queue beats
    them.
    """

    name = "timekeeper"

    def __init__(self, context: Context, *, poll_interval_s: float, batch: int) -> None:
        super().__init__(context)
        self._poll_interval_s = poll_interval_s
        self._batch = batch

    async def run_once(self) -> bool:
        await self._writer.loaded()
        began = self._clock.monotonic()
        now = await self._store.read_time()
        unread_s = began - self._context.backlog.passed  # however far behind the consumer is: time goes on for it alone
        due = await self._store.due(now - unread_s, self._batch)
        if not due:
            self._worked(began, ())
            return False
        command_ids = [member.partition(":")[2] for member, _ in due]
        bodies = await self._store.bodies(command_ids, _MOST_BYTES)
        due = due[: len(bodies)]
        lookups = Lookups(commands=await self._store.commands(list(bodies)), bodies=bodies)

        def decide(draft: Draft, failures: Failures) -> list[Decision]:
            return [
                Decision("deadline", "unchanged")
                if failures.get(number, ("",))[0] == "score_moved"
                else decide_due(draft, self._rules, member, at, spoilt=number in failures)
                for number, (member, at) in enumerate(due)
            ]

        self._worked(began, await self._writer.write(decide, lookups=lookups))
        return len(command_ids) == self._batch or len(due) < len(command_ids)

    async def wait(self) -> None:
        await asyncio.sleep(self._poll_interval_s)
