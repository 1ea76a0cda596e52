"""Janitor: trims the audit and the dead letters, and forgets archives and agents that have not reported for too long.

The audit is trimmed to `retention.audit_entries`, but entries that an archive has not stored yet are kept. Each commit
trims it to the hard bound `retention.audit_entries_max`, even if an archive is behind, so that memory is bounded.
"""

from typing import Final

import structlog
from msgspec.structs import asdict

from aism_engine.clock import iso
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.membership import decide_expired_agent
from aism_engine.domain.decision import Decision
from aism_engine.domain.fleet import Fleet
from aism_engine.ops.audit_log import entry_order
from aism_engine.ops.audit_retention import AuditRetention
from aism_engine.services.base import Service, ServiceContext, agents_in_batches
from aism_engine.settings import RetentionSettings
from aism_engine.store.scripts import TrimCode

log = structlog.get_logger(component="janitor")

_CHECK_SHARE: Final = 0.001
"""Pause between checks for expired agents, as a share of `absent_agent_ttl`: each check walks over the whole fleet."""


class Janitor(Service):
    """Removes old data once in `trim_interval`."""

    name = "janitor"
    times_idle_steps = True

    def __init__(self, context: ServiceContext, settings: RetentionSettings, audit: AuditRetention) -> None:
        super().__init__(context, settings.trim_interval)
        self._settings = settings
        self._audit = audit
        self._next_expiry_at = float("-inf")

    async def run_once(self) -> bool:
        started_at = self._clock.monotonic()
        token = self._context.leadership.token
        if token is None or not await self._trim(token):
            return False
        decisions: list[Decision] = []
        if started_at >= self._next_expiry_at:
            decisions = await self._forget_agents()
            self._next_expiry_at = started_at + _CHECK_SHARE * self._settings.absent_agent_ttl
        self._record_step(started_at, decisions)
        return False

    async def _trim(self, token: str) -> bool:
        """Trim the audit and the dead letters; return False if another engine leads."""
        before, removed, more = await self._oldest_cursor(), 0, True
        while more:
            code, count, more = await self._audit.trim_audit(token, self._settings.audit_entries, before)
            removed += count
        self._context.metrics.audit_trimmed.inc(removed)
        if code is TrimCode.FENCED:
            return False
        expired = await self._audit.trim_dead_letters(self._store.now - self._settings.dead_letter_ttl)
        self._context.metrics.dead_letters_trimmed.inc(expired)
        return True

    async def _oldest_cursor(self) -> str | None:
        """Return the oldest cursor of all archives that reported within `archive_ttl`, or None. Forget the others."""
        now, cursors = self._store.now, list[str]()
        for archive, published in (await self._audit.cursors()).items():
            if published is not None and now - published.at < self._settings.archive_ttl:
                cursors.append(published.cursor)
                continue
            await self._audit.remove_cursor(archive)
            details = {} if published is None else {**asdict(published), "at": iso(published.at)}
            log.warning("archive_forgotten", archive=archive, **details, consequence="the audit is not kept for it")
        return min(cursors, key=entry_order, default=None)

    async def _forget_agents(self) -> list[Decision]:
        """Forget agents that are not fresh and gave no sign of life for `absent_agent_ttl`."""
        fleet = await self._writer.loaded()
        before = self._store.now - self._settings.absent_agent_ttl
        decisions: list[Decision] = []
        async for agents in agents_in_batches(fleet, fleet.agents):
            overdue = [agent for agent in agents if _ttl_starts_at(fleet, agent) < before]
            # A heartbeat that the registrar or the reaper has not seen yet is a sign of life.
            scores = await self._store.heartbeat_scores([agent.agent_id for agent in overdue])
            expired = [agent.agent_id for agent in overdue if _is_unchanged(agent, scores[agent.agent_id])]
            decisions += await self._commit_each(fleet, "expired_agent", expired, decide_expired_agent)
        return decisions


def _is_unchanged(agent: AgentRecord, score: float | None) -> bool:
    """Return whether the agent has sent no heartbeat since it was lost or left."""
    return score is None or repr(score) == agent.lost_score


def _ttl_starts_at(fleet: Fleet, agent: AgentRecord) -> float:
    """Return the instant from which the ttl of an agent counts; infinity while the agent is fresh."""
    if agent.liveness is Liveness.FRESH:
        return float("inf")
    last_message_at = fleet.last_message_at.get(agent.agent_id, fleet.loaded_at)
    return max(agent.since, agent.first_seen_at, agent.lost_at, last_message_at)
