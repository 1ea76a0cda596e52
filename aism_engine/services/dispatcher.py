"""Delivers commands: pushes waiting commands to their agents' lists, and detects which ones the agents have taken."""

from functools import partial

from aism_engine.domain.commands.delivery import command_id_of, decide_deliveries, decide_dispatch, may_dispatch
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.policy import Policy
from aism_engine.services.base import Service, ServiceContext
from aism_engine.settings import DispatcherSettings


class Dispatcher(Service):
    """Dispatches when an agent may take more commands, and checks `batch` lists per poll interval for deliveries."""

    name = "dispatcher"

    def __init__(self, context: ServiceContext, settings: DispatcherSettings) -> None:
        super().__init__(context)
        self._settings = settings
        self._unchecked: list[str] = []
        """Agents whose lists are not checked yet in this pass."""
        self._checked_at = float("-inf")

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        started_at = self._clock.monotonic()
        decisions = await self._dispatch(fleet)
        if started_at - self._checked_at >= self._settings.poll_interval:
            decisions += await self._check_deliveries(fleet)
            self._checked_at = started_at
        self._record_step(started_at, decisions)
        return bool(fleet.dispatchable)

    async def wait(self) -> None:
        await self._context.wakeups.dispatcher.wait(self._settings.poll_interval)

    async def _dispatch(self, fleet: Fleet) -> list[Decision]:
        batch = self._settings.batch
        candidates = [fleet.dispatchable.pop() for _ in range(min(batch, len(fleet.dispatchable)))]
        agent_ids = [agent_id for agent_id in candidates if self._may_dispatch(fleet, agent_id)]
        share = max(1, batch // max(1, len(agent_ids)))
        try:
            return await self._commit_each(fleet, "dispatcher", agent_ids, partial(decide_dispatch, limit=share))
        except BaseException:
            fleet.dispatchable.update(agent_id for agent_id in agent_ids if agent_id in fleet.waiting)
            raise

    async def _check_deliveries(self, fleet: Fleet) -> list[Decision]:
        """Detect which commands have left the lists of the next agents.

        Commands that are pushed during the check are left to the next one.
        """
        batch = self._settings.batch
        self._unchecked = self._unchecked or list(fleet.queued)
        agent_ids = [agent_id for agent_id in self._unchecked[:batch] if agent_id in fleet.queued]
        self._unchecked = self._unchecked[batch:]
        last_seq = fleet.last_seq
        # A head is the beginning of the oldest command in a list. A `cancel` before it is skipped.
        heads = await self._store.list_heads(agent_ids)
        changed = [each for each, head in heads.items() if self._has_deliveries(fleet, each, head, last_seq)]

        def decide_one(draft: Draft, policy: Policy, agent_id: str) -> Decision:
            return decide_deliveries(draft, policy, agent_id, heads[agent_id], last_seq)

        return await self._commit_each(fleet, "dispatcher", changed, decide_one)

    def _may_dispatch(self, fleet: Fleet, agent_id: str) -> bool:
        draft = Draft(fleet, self._store.now)
        agent = draft.agent(agent_id)
        ctx = DecisionContext(draft, self._policy, Decision("dispatch"), "engine")
        return agent is not None and agent_id in fleet.waiting and may_dispatch(ctx, agent)

    def _has_deliveries(self, fleet: Fleet, agent_id: str, head: bytes, last_seq: int) -> bool:
        agent = fleet.agents.get(agent_id)
        queued = fleet.command_index(agent_id).queued
        if agent is None or (head and queued and command_id_of(head) == queued[0]):
            return False
        draft = Draft(fleet, self._store.now)
        return decide_deliveries(draft, self._policy, agent_id, head, last_seq).outcome == "applied"
