"""Registrar: adds agents that are known only by a heartbeat, and applies what agents write to their own keys."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import structlog

from aism_engine.domain.agents.agent import AgentRecord, AgentSnapshot, Liveness
from aism_engine.domain.agents.liveness import decide_first_heartbeat, decide_heartbeat_removed
from aism_engine.domain.agents.state_changes import decide_snapshot, decide_state_repair
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.machines.state_rules import needs_repair
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.services.base import Service, ServiceContext, agents_in_batches
from aism_engine.services.wakeup import Wakeup
from aism_engine.settings import RegistrarSettings
from aism_engine.store.records import chunks

log = structlog.get_logger(component="registrar")

_HEARTBEATS_SHARE: Final = 0.1
"""Largest share of the time for passes over the heartbeats while their number changes."""
_FULL_PASS_SHARE: Final = 0.01
"""Largest share of the time for full passes."""
_MAX_REST_INTERVALS: Final = 10
"""Longest rest, in multiples of `metadata_interval`.

The limit is needed if the process is suspended during a pass: the measured duration of the pass is then far too long.
"""


class Registrar(Service):
    """Reads all heartbeats when their number has changed.

    A full pass, once in `metadata_interval`, reads all heartbeats and also the keys of all agents.

    Each step looks up the heartbeats of up to `batch` agents that are not watched yet. An agent is watched, and can be
    lost, once the engine has found its heartbeat. In a large fleet full passes are less frequent, so that they take at
    most `_FULL_PASS_SHARE` of the time.
    """

    name = "registrar"
    times_idle_steps = True

    def __init__(self, context: ServiceContext, settings: RegistrarSettings) -> None:
        super().__init__(context)
        self._settings = settings
        self._wakeup = Wakeup()
        self._heartbeats = -1
        self._invalid = 0
        self._unwatched: list[str] = []
        """Agents that are not watched, and whose heartbeat the current pass has not looked up yet."""
        self._next_heartbeats_at = self._next_full_pass_at = float("-inf")
        self._commit_s = 0.0
        """Seconds that the current step spent in commits, which do not count towards the shares."""

    async def run_once(self) -> bool:
        fleet = await self._writer.loaded()
        started_at = self._clock.monotonic()
        # The engine removes the heartbeat of an agent that it forgets. The number of forgotten agents is added, so that
        # the sum changes even if one heartbeat was removed and another one is new.
        heartbeats = await self._store.heartbeat_count() + fleet.forgotten
        is_full_pass, self._commit_s = started_at >= self._next_full_pass_at, 0.0
        await self._watch(fleet)
        interval_s = self._settings.metadata_interval
        if is_full_pass or (heartbeats != self._heartbeats and started_at >= self._next_heartbeats_at):
            are_removed = await self._read_heartbeats(fleet)
            # Not before the pass: one that an outage interrupts is made again. So is one that has found that heartbeats
            # were removed, because the number may be the same as before when agents have added theirs again.
            self._heartbeats = -1 if are_removed else heartbeats
            rest_s = min(interval_s, self._read_s(started_at) / _HEARTBEATS_SHARE)
            self._next_heartbeats_at = self._clock.monotonic() + rest_s
        if is_full_pass:
            await self._read_snapshots(fleet)
            await self._repair_states(fleet)
            rest_s = min(_MAX_REST_INTERVALS * interval_s, self._read_s(started_at) / _FULL_PASS_SHARE)
            self._next_full_pass_at = started_at + max(interval_s, rest_s)
        self._record_step(started_at)
        return False

    async def wait(self) -> None:
        await self._wakeup.wait(self._settings.poll_interval)

    async def release(self) -> None:
        self._show_invalid(0)

    def request_full_pass(self) -> None:
        """Make a full pass now, because the machines have changed."""
        self._next_full_pass_at = float("-inf")
        self._wakeup.set()

    def _read_s(self, started_at: float) -> float:
        return self._clock.monotonic() - started_at - self._commit_s

    async def _watch(self, fleet: Fleet) -> None:
        """Look up the heartbeats of the next agents that are not watched yet.

        An agent that registers again may already have a heartbeat. Then the number of heartbeats does not change, and
        only the next full pass would find it.
        """
        self._unwatched = self._unwatched or list(fleet.awaiting_heartbeat)
        agent_ids = [each for each in self._unwatched[: self._settings.batch] if each in fleet.awaiting_heartbeat]
        self._unwatched = self._unwatched[self._settings.batch :]
        scores = await self._store.heartbeat_scores(agent_ids)
        found = {agent_id: score for agent_id, score in scores.items() if score is not None}
        await self._commit(fleet, found, partial(decide_first_heartbeat, scores=found))

    async def _read_heartbeats(self, fleet: Fleet) -> bool:
        """Add the agents that are known only by their heartbeats. Return whether heartbeats were removed."""
        invalid, example, cursor = 0, "", 0
        missing = {agent.agent_id for agent in fleet.agents.values() if agent.liveness is Liveness.FRESH}
        while True:
            cursor, page = await self._store.scan_heartbeats(cursor, self._settings.batch)
            missing.difference_update(page)  # `-=` would iterate over `missing` for each page
            new: dict[str, float] = {}
            for member, score in page.items():
                agent = fleet.agents.get(member)
                if agent is None and not is_identifier(member):
                    invalid, example = invalid + 1, example or member
                elif agent is None or agent.awaits_heartbeat:
                    new[member] = score
            lookups = Lookups(await self._store.snapshots([member for member in new if member not in fleet.agents]))
            await self._commit(fleet, new, partial(decide_first_heartbeat, scores=new), lookups)
            if cursor == 0:
                break
        if invalid and invalid != self._invalid:
            log.warning("invalid_heartbeat_members", count=invalid, first=example[:80])
        self._show_invalid(invalid)
        return await self._unwatch_removed(fleet, sorted(missing))

    async def _unwatch_removed(self, fleet: Fleet, missing: list[str]) -> bool:
        """Stop watching agents whose heartbeat was removed: without a score, silence cannot be measured."""
        are_removed = False
        for agent_ids in chunks(missing, self._settings.batch):
            scores = await self._store.heartbeat_scores(agent_ids)
            removed = [agent_id for agent_id, score in scores.items() if score is None]
            are_removed |= bool(await self._commit(fleet, removed, decide_heartbeat_removed))
        return are_removed

    def _show_invalid(self, count: int) -> None:
        self._invalid = count
        self._context.metrics.invalid_heartbeat_members.set(count)

    async def _read_snapshots(self, fleet: Fleet) -> None:
        """Compare what agents wrote to their own keys with their records."""
        for agent_ids in chunks(list(fleet.agents), self._settings.batch):
            read_at = await self._writer.wait_idle()
            lookups = Lookups(await self._store.snapshots(agent_ids))
            changed = {
                agent_id
                for agent_id, seen in lookups.snapshots.items()
                if (agent := fleet.agents.get(agent_id)) and not _agrees(agent, seen)
            }
            await self._commit(fleet, changed, partial(decide_snapshot, read_at=read_at), lookups)

    async def _repair_states(self, fleet: Fleet) -> None:
        """Repair agents that contradict their machine, which may have changed since they entered their state."""
        now = self._store.now
        async for agents in agents_in_batches(fleet, fleet.agents, self._settings.batch):
            to_repair = [agent.agent_id for agent in agents if needs_repair(self._policy, agent, now)]
            await self._commit(fleet, to_repair, decide_state_repair)

    async def _commit(
        self,
        fleet: Fleet,
        agent_ids: Collection[str],
        decide_one: Callable[[Draft, Policy, str], Decision],
        lookups: Lookups | None = None,
    ) -> bool:
        """Commit, count the decisions that changed something, and return whether there are any.

        A pass has too many decisions to count all of them at its end.
        """
        started_at = self._clock.monotonic()
        decisions = await self._commit_each(fleet, "registrar", sorted(agent_ids), decide_one, lookups)
        self._commit_s += self._clock.monotonic() - started_at
        changed = [decision for decision in decisions if decision.outcome != "unchanged"]
        self._context.metrics.record_step(self.name, None, changed, self._clock.wall())
        return bool(changed)


def _agrees(agent: AgentRecord, seen: AgentSnapshot) -> bool:
    """Return whether nothing has to be decided: the keys of the agent say what the fleet in memory says."""
    if not seen.is_recorded or (agent.registered and not seen.has_metadata):
        return False
    return (seen.type or agent.type, seen.labels, seen.state) == (agent.type, agent.labels, agent.state)
