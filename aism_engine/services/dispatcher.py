"""The courier: hands out commands that wait for their agents, and sees which have left their lists."""

from collections.abc import Callable, Sequence

from aism_engine.domain.commands.delivery import command_id_of, decide_deliveries, decide_dispatch
from aism_engine.domain.commands.lifecycle import may_dispatch
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.services.base import Service, ServiceContext
from aism_engine.services.wakeup import Wakeup
from aism_engine.store.writer import one_by_one


class Dispatcher(Service):
    """Wakes up when an agent may have room for what waits, and looks into the lists on a timer, at so many a time."""

    name = "dispatcher"

    def __init__(self, context: ServiceContext, hint: Wakeup, *, poll_interval_s: float, batch: int) -> None:
        super().__init__(context)
        self._hint = hint
        self._poll_interval_s = poll_interval_s
        self._batch = batch
        self._round: list[str] = []
        """In whose lists there is still to be looked, before all are looked at again."""
        self._looked_at = float("-inf")

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        decisions = await self._hand_out(fleet)
        if began - self._looked_at >= self._poll_interval_s:
            decisions += await self._look(fleet)
            self._looked_at = began
        self._record_step(began, decisions)
        return bool(fleet.dispatchable)

    async def wait(self) -> None:
        await self._hint.wait(self._poll_interval_s)

    async def _hand_out(self, fleet: Fleet) -> list[Decision]:
        freed = [fleet.dispatchable.pop() for _ in range(min(self._batch, len(fleet.dispatchable)))]
        agent_ids = [agent_id for agent_id in freed if self._may_have_more(fleet, agent_id)]
        if not agent_ids:
            return []
        share = max(1, self._batch // len(agent_ids))
        try:
            return await self._commit(
                fleet, agent_ids, lambda draft, agent_id: decide_dispatch(draft, self._policy, agent_id, share)
            )
        except BaseException:
            fleet.dispatchable.update(agent_id for agent_id in agent_ids if agent_id in fleet.waiting)
            raise

    async def _look(self, fleet: Fleet) -> list[Decision]:
        """Measure what has been taken. What is pushed while we look counts the next time."""
        self._round = self._round or list(fleet.queued)
        agent_ids = [agent_id for agent_id in self._round[: self._batch] if agent_id in fleet.queued]
        self._round = self._round[self._batch :]
        until = fleet.last_seq
        heads = await self._store.heads(agent_ids)
        moved = [agent_id for agent_id, head in heads.items() if self._has_moved(fleet, agent_id, head, until)]
        if not moved:
            return []
        return await self._commit(
            fleet,
            moved,
            lambda draft, agent_id: decide_deliveries(draft, self._policy, agent_id, heads[agent_id], until),
        )

    def _may_have_more(self, fleet: Fleet, agent_id: str) -> bool:
        draft = Draft(fleet, self._store.now)
        agent = draft.agent(agent_id)
        ctx = DecisionContext(draft, self._policy, Decision("dispatch"), "engine")
        return agent is not None and bool(agent.waiting) and may_dispatch(ctx, agent)

    def _has_moved(self, fleet: Fleet, agent_id: str, head: bytes, until: int) -> bool:
        agent = fleet.agents.get(agent_id)
        if agent is None or (head and agent.queued and command_id_of(head) == agent.queued[0]):
            return False
        draft = Draft(fleet, self._store.now)
        return decide_deliveries(draft, self._policy, agent_id, head, until).outcome == "applied"

    async def _commit(
        self, fleet: Fleet, agent_ids: Sequence[str], decide_one: Callable[[Draft, str], Decision]
    ) -> list[Decision]:
        return await self._writer.write(one_by_one("dispatcher", agent_ids, decide_one), on=fleet)
