"""The census: agents that are known by nothing but a heartbeat, and what agents have written into their metadata since."""

import asyncio
from collections.abc import Callable

import structlog

from aism_engine.model.decisions.common import Decision, Rules
from aism_engine.model.decisions.signs import decide_first_beat, decide_metadata
from aism_engine.model.fleet import Draft, Fleet, Liveness, Lookups
from aism_engine.model.messages import is_identifier
from aism_engine.services.base import Context, Service
from aism_engine.store.writer import Failures

log = structlog.get_logger(component="census")


class Census(Service):
    """Walks over the heartbeats when their number has changed, and over everything once in `metadata_every_s`."""

    name = "census"

    def __init__(self, context: Context, *, interval_s: float, metadata_every_s: float, chunk: int) -> None:
        super().__init__(context)
        self._interval_s = interval_s
        self._metadata_every_s = metadata_every_s
        self._chunk = chunk
        self._counted = -1
        self._walked_at = float("-inf")

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        began = self._clock.monotonic()
        beating = await self._store.beating()
        due = began - self._walked_at >= self._metadata_every_s
        decisions: list[Decision] = []
        if beating != self._counted or due:
            decisions += await self._walk(fleet)
            self._counted = beating
        if due:
            decisions += await self._read_metadata(fleet)
            self._walked_at = began
        self._worked(began, decisions)
        return False

    async def wait(self) -> None:
        await asyncio.sleep(self._interval_s)

    async def _walk(self, fleet: Fleet) -> list[Decision]:
        decisions: list[Decision] = []
        strange: list[str] = []
        cursor = 0
        while True:
            cursor, page = await self._store.members(cursor, self._chunk)
            strange += (member for member in page if not is_identifier(member))
            new = {member for member in page if is_identifier(member) and _is_news(fleet, member)}
            decisions += await self._commit(new - fleet.agents.keys(), new, decide_first_beat)
            if cursor == 0:
                break
        if strange:
            log.warning("strange_heartbeats", count=len(strange), first=strange[0][:80])
        return decisions

    async def _read_metadata(self, fleet: Fleet) -> list[Decision]:
        decisions: list[Decision] = []
        known = list(fleet.agents)
        for start in range(0, len(known), self._chunk):
            page = set(known[start : start + self._chunk])
            sightings = await self._store.sightings(page)
            changed = {
                agent_id
                for agent_id, seen in sightings.items()
                if (agent := fleet.agents.get(agent_id)) and (seen.type, seen.labels) != (agent.type, agent.labels)
            }
            decisions += await self._commit(changed, changed, decide_metadata)
        return decisions

    async def _commit(
        self, strangers: set[str], agent_ids: set[str], decide_one: Callable[[Draft, Rules, str], Decision]
    ) -> list[Decision]:
        if not agent_ids:
            return []
        ids = sorted(agent_ids)

        def decide(draft: Draft, failures: Failures) -> list[Decision]:
            return [
                decide_one(draft, self._rules, agent_id) if number not in failures else Decision("census", "refused")
                for number, agent_id in enumerate(ids)
            ]

        lookups = Lookups(await self._store.sightings(strangers))
        decisions = await self._writer.write(decide, lookups=lookups)
        return [decision for decision in decisions if decision.outcome != "unchanged"]


def _is_news(fleet: Fleet, agent_id: str) -> bool:
    agent = fleet.agents.get(agent_id)
    return agent is None or agent.liveness is Liveness.UNKNOWN
