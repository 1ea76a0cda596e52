"""The census: who is known by nothing but a heartbeat, what agents have written themselves, whom to forget."""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import structlog

from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.presence import (
    decide_expired_agent,
    decide_first_heartbeat,
    decide_heartbeat_removed,
    decide_snapshot,
    decide_state_repair,
)
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.machines.state_rules import needs_repair
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.services.base import Service, ServiceContext
from aism_engine.services.wakeup import Wakeup
from aism_engine.store.writer import one_by_one

log = structlog.get_logger(component="registrar")

_WALK_SHARE: Final = 0.1
_ROUND_SHARE: Final = 0.01
"""Of the time, what it may take to go over the heartbeats while their number changes, and over everything."""
_LONGEST: Final = 10
"""Times `metadata_every_s`, the longest rest, also where a round took long because we were stopped in it."""


class Registrar(Service):
    """Walks over the heartbeats when their number has changed, and over everything once in `metadata_every_s`; of a
    large fleet less often, so that it takes no more than its share of the time.
    """

    name = "registrar"
    polls = False

    def __init__(
        self, context: ServiceContext, *, interval_s: float, metadata_every_s: float, forget_after_s: float, chunk: int
    ) -> None:
        super().__init__(context)
        self._forget_after_s = forget_after_s
        self._interval_s = interval_s
        self._metadata_every_s = metadata_every_s
        self._chunk = chunk
        self._hint = Wakeup()
        self._counted = -1
        self._strange = 0
        self._walk_at = self._round_at = float("-inf")
        """Not before these instants it goes over the heartbeats, or over everything, again."""
        self._written_s = 0.0
        """How long the step in hand has waited for its commits: they are work, not looking."""

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        beating = await self._store.beating()
        due, self._written_s = began >= self._round_at, 0.0
        decisions: list[Decision] = []
        if due or (beating != self._counted and began >= self._walk_at):
            self._counted = beating
            decisions += await self._walk(fleet)
            self._walk_at = self._clock.monotonic() + min(self._metadata_every_s, self._looked_s(began) / _WALK_SHARE)
        if due:
            decisions += await self._look_at_all(fleet)
            decisions += await self._set_right(fleet)
            decisions += await self._forget_the_long_gone(fleet)
            rest_s = min(_LONGEST * self._metadata_every_s, self._looked_s(began) / _ROUND_SHARE)
            self._round_at = began + max(self._metadata_every_s, rest_s)
        self._record_step(began, decisions)
        return False

    async def wait(self) -> None:
        await self._hint.wait(self._interval_s)

    def look_again(self) -> None:
        """Go over everything once more, now: the machines have changed."""
        self._round_at = float("-inf")
        self._hint.set()

    def _looked_s(self, began: float) -> float:
        return self._clock.monotonic() - began - self._written_s

    async def _walk(self, fleet: Fleet) -> list[Decision]:
        decisions: list[Decision] = []
        strange, first, cursor = 0, "", 0
        missing = {agent.agent_id for agent in fleet.agents.values() if agent.liveness is Liveness.FRESH}
        while True:
            cursor, page = await self._store.members(cursor, self._chunk)
            missing.difference_update(page)  # `-=` would go over all that are missing, for each page
            news: dict[str, float] = {}
            for member, score in page.items():
                agent = fleet.agents.get(member)
                if agent is None and not is_identifier(member):
                    strange, first = strange + 1, first or member
                elif _is_news(agent):
                    news[member] = score
            unknown = [member for member in news if member not in fleet.agents]
            lookups = Lookups(await self._store.snapshots(unknown))
            decisions += await self._commit(fleet, news, lookups, partial(decide_first_heartbeat, scores=news))
            if cursor == 0:
                break
        if strange and strange != self._strange:
            log.warning("invalid_heartbeat_members", count=strange, first=first[:80])
        self._tell_strange(strange)
        return decisions + await self._unwatch(fleet, sorted(missing))

    async def _unwatch(self, fleet: Fleet, missing: list[str]) -> list[Decision]:
        """See to those whose heartbeat was removed by hand: of nothing nobody can say that it stands still."""
        decisions: list[Decision] = []
        for start in range(0, len(missing), self._chunk):
            scores = await self._store.scores(missing[start : start + self._chunk])
            gone = [agent_id for agent_id, score in scores.items() if score is None]
            decisions += await self._commit(fleet, gone, Lookups(), decide_heartbeat_removed)
        if decisions:
            self._counted = -1  # one that beats has put it there again, maybe before we counted
        return decisions

    def _tell_strange(self, count: int) -> None:
        self._strange = count
        self._context.metrics.invalid_heartbeat_members.set(count)

    async def on_standby(self) -> None:
        self._tell_strange(0)

    async def _look_at_all(self, fleet: Fleet) -> list[Decision]:
        """Compare what agents have written by their own hand with what we hold of them."""
        decisions: list[Decision] = []
        known = list(fleet.agents)
        for start in range(0, len(known), self._chunk):
            looked_at = await self._writer.quiet()
            lookups = Lookups(await self._store.snapshots(known[start : start + self._chunk]))
            changed = {
                agent_id
                for agent_id, seen in lookups.snapshots.items()
                if (agent := fleet.agents.get(agent_id))
                and (seen.type or agent.type, seen.labels, seen.state) != (agent.type, agent.labels, agent.state)
            }
            decisions += await self._commit(fleet, changed, lookups, decide_snapshot, looked_at)
        return decisions

    async def _set_right(self, fleet: Fleet) -> list[Decision]:
        """Look for agents that do not go with their machine: it may have changed since they came where they are."""
        decisions: list[Decision] = []
        known, now = list(fleet.agents), self._store.now
        for start in range(0, len(known), self._chunk):
            agents = [agent for each in known[start : start + self._chunk] if (agent := fleet.agents.get(each))]
            amiss = [agent.agent_id for agent in agents if needs_repair(self._policy, agent, now)]
            decisions += await self._commit(fleet, amiss, Lookups(), decide_state_repair)
            await asyncio.sleep(0)
        return decisions

    async def _forget_the_long_gone(self, fleet: Fleet) -> list[Decision]:
        before = self._store.now - self._forget_after_s
        gone = [
            agent.agent_id
            for agent in fleet.agents.values()
            if agent.liveness is not Liveness.FRESH
            and max(
                agent.since,
                agent.first_seen_at,
                agent.lost_at,
                fleet.last_message_at.get(agent.agent_id, fleet.loaded_at),
            )
            < before
        ]
        decisions: list[Decision] = []
        for start in range(0, len(gone), self._chunk):
            decisions += await self._commit(fleet, gone[start : start + self._chunk], Lookups(), decide_expired_agent)
        return decisions

    async def _commit(
        self,
        fleet: Fleet,
        agent_ids: Collection[str],
        lookups: Lookups,
        decide_one: Callable[..., Decision],
        *arguments: float,
    ) -> list[Decision]:
        if not agent_ids:
            return []

        def decide(draft: Draft, agent_id: str) -> Decision:
            return decide_one(draft, self._policy, agent_id, *arguments)

        began = self._clock.monotonic()
        decisions = await self._writer.write(
            one_by_one("registrar", sorted(agent_ids), decide), on=fleet, lookups=lookups
        )
        self._written_s += self._clock.monotonic() - began
        return [decision for decision in decisions if decision.outcome != "unchanged"]


def _is_news(agent: AgentRecord | None) -> bool:
    if agent is None or agent.liveness is Liveness.UNKNOWN:
        return True
    return agent.liveness is Liveness.LEFT and agent.lost_score is None
