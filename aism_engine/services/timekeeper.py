"""The timekeeper: what is due."""

import asyncio

from aism_engine.model.decisions.common import Decision
from aism_engine.model.decisions.due import decide_due
from aism_engine.model.fleet import Draft, Lookups
from aism_engine.services.base import Context, Service
from aism_engine.store.writer import Failures


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
        due = await self._store.due(await self._store.read_time(), self._batch)
        if not due:
            self._worked(began, ())
            return False
        if not await self._context.backlog.wait_passed(began, timeout_s=10 * self._poll_interval_s):
            return False
        command_ids = [member.partition(":")[2] for member, _ in due if member.startswith("ttl:")]
        lookups = Lookups(commands=await self._store.commands(command_ids))

        def decide(draft: Draft, failures: Failures) -> list[Decision]:
            return [
                Decision("deadline", "unchanged")
                if failures.get(number, ("",))[0] == "score_moved"
                else decide_due(draft, self._rules, member, at, spoilt=number in failures)
                for number, (member, at) in enumerate(due)
            ]

        self._worked(began, await self._writer.write(decide, lookups=lookups))
        return len(due) == self._batch

    async def wait(self) -> None:
        await asyncio.sleep(self._poll_interval_s)
