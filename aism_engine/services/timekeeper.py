"""Acts on deadlines that are due."""

from collections.abc import Sequence
from typing import Final, TypeAlias

from aism_engine.domain.commands.command import Status
from aism_engine.domain.commands.deadlines import KeyKind, decide_deadline
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Lookups
from aism_engine.services.base import Service, ServiceContext
from aism_engine.settings import TimekeeperSettings
from aism_engine.store.writer import Failure, decide_each

_Due: TypeAlias = tuple[str, float]
"""Member and instant of a deadline."""
_BODY_BYTES: Final = 4_194_304
"""Limit of the command bodies that are read for one commit: an arbitrary number."""
_NO_PROGRESS: Final = frozenset({"unchanged", "refused"})
_BLIND_S: Final = 1.0
"""Longest normal delay of a check: an arbitrary number."""


class Timekeeper(Service):
    """Acts on a deadline once all responses that were queued when it was due are applied: a queued result wins.

    After a gap in which no agent could respond (a start, an outage), all deadlines are deferred by `grace` seconds.
    """

    name = "timekeeper"

    def __init__(self, context: ServiceContext, settings: TimekeeperSettings) -> None:
        super().__init__(context, settings.poll_interval)
        self._settings = settings
        self._max_gap_s = settings.poll_interval + _BLIND_S
        """A longer time between two checks is a blind spell."""
        self._checked_at = self._acts_from = float("-inf")

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        started_at, now = self._clock.monotonic(), self._store.now
        due = await self._store.due_deadlines(now, self._settings.batch)
        if started_at - self._checked_at > self._max_gap_s:
            self._acts_from = self._clock.monotonic() + self._settings.grace
        self._checked_at = started_at
        may_act = started_at >= self._acts_from
        due = await self._answered(due, now, started_at) if due and may_act else []
        if not due:  # most steps
            self._record_step(started_at)
            return False
        commands = [command for member, _ in due if (command := fleet.commands.get(_id_of(member))) is not None]
        waiting = [command.command_id for command in commands if command.status is Status.WAITING]
        lookups = Lookups(bodies=await self._store.command_bodies(waiting, _BODY_BYTES))
        decide = decide_each("deadline", due, self._decide, self._decide_failed)
        decisions = await self._writer.commit(decide, fleet=fleet, lookups=lookups)
        self._record_step(started_at, decisions)
        return len(due) == self._settings.batch and any(each.outcome not in _NO_PROGRESS for each in decisions)

    async def _answered(self, due: Sequence[_Due], now: float, at: float) -> list[_Due]:
        """Return the deadlines that may be acted on: all responses queued up to the instant of a deadline are applied.

        `at` is the monotonic instant of `now`. After a blind spell return none: the next step defers all deadlines.
        """
        watermark = self._context.watermark
        await watermark.refresh(at)
        if self._clock.monotonic() - at > self._max_gap_s:
            return []
        until = now - (at - watermark.applied_until)
        return [(member, due_at) for member, due_at in due if due_at <= until]

    def _decide(self, draft: Draft, due: _Due) -> Decision:
        return decide_deadline(draft, self._policy, *due)

    def _decide_failed(self, draft: Draft, due: _Due, failure: Failure) -> Decision:
        if failure.code == "score_moved":
            return Decision("deadline", "unchanged")
        if failure.code != "wrong_type":
            return Decision("deadline", "refused", failure.code)  # it stays due and is counted at each check
        wrong_type_keys = {self._kind_of(name, _id_of(due[0])) for name in failure.keys}
        return decide_deadline(draft, self._policy, *due, wrong_type_keys=wrong_type_keys)

    def _kind_of(self, name: str, command_id: str) -> KeyKind:
        keys = self._store.keys
        if name == keys.command(command_id):
            return "record"
        return "group" if name.startswith(keys.group("")) else "list"


def _id_of(member: str) -> str:
    return member.partition(":")[2]
