"""Read-only view of a fleet, for the CLI and the doctor.

Damaged records are left out. All methods raise `ServerUnavailableError` while the server cannot serve.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Final, TypeAlias

import msgspec

from aism_engine.clock import SystemClock
from aism_engine.domain.agents.agent import AgentRecord, Held
from aism_engine.domain.agents.silence import score_in_seconds
from aism_engine.domain.commands.command import Command
from aism_engine.domain.effects import DeadLetter
from aism_engine.domain.text import natural_key
from aism_engine.errors import AismError, ServerUnavailableError
from aism_engine.ops.audit_log import entry_time, line_from_entry
from aism_engine.ops.views import AgentView, Member, Overview
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.lease import LeaseStatus
from aism_engine.store.reads import FleetReader, read_dead_letter
from aism_engine.store.records import AGENTS, CHUNK, chunks, each_record, read_fleet_hold, text

_QUEUES: Final = {"responses": "response_queue", "requests": "request_queue"} | {
    name: name for name in ("fanout", "deadlines", "dead_letters")
}
"""Published names of the queues in an overview, and their names in store/keys.py."""
_RATES_OVER_S: Final = 10.0
_RATES_OVER_COMMITS: Final = 1000
"""Rates are measured over the shorter of this time and this number of commits."""

_MAX_AGE_S: Final = 1e10
"""Three centuries. A heartbeat with a larger age has a score that is not a timestamp."""

Report: TypeAlias = Callable[[str], None]
"""Receives a line of text about the progress of a long read, or about a lost or restored connection."""


class Inspector:
    """Reads one fleet."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._reader = FleetReader(client, keys, SystemClock())

    # --- agents -------------------------------------------------------------------------------------------------------

    async def agents(self) -> list[AgentView]:
        """Read all agents, sorted by id: `a-2` before `a-10`."""
        return await self._read_agents(await self._agent_ids())

    async def agent(self, agent_id: str) -> AgentView | None:
        return next(iter(await self._read_agents([agent_id])), None)

    async def _agent_ids(self) -> list[str]:
        return sorted(map(text, await self._client.smembers(self._keys.index)), key=natural_key)

    async def _read_agents(self, ids: Sequence[str]) -> list[AgentView]:
        reader, commands = self._reader, defaultdict[str, list[Command]](list)
        for command in await self.open_commands():
            commands[command.agent_id].append(command)
        silent, views = await reader.silent_agents(), []
        for chunk in chunks(ids):
            lengths = await reader.read_lengths(("LLEN", self._keys.commands(agent_id)) for agent_id in chunk)
            queued = dict(zip(chunk, lengths, strict=True))
            measurements, scores = await reader.measurements(chunk), await reader.heartbeat_scores(chunk)
            now = await reader.read_time()
            for agent in await self._agent_records(chunk):
                agent_id, score = agent.agent_id, scores[agent.agent_id]
                view = AgentView(
                    agent=agent,
                    heartbeat_age_s=_heartbeat_age_s(score, now),
                    queued=queued[agent_id],
                    commands=commands[agent_id],
                    measurements=measurements[agent_id],
                    marked_silent_at=silent.get(agent_id),
                )
                views.append(view)
        return views

    async def agent_records(self, limit: int, report: Report | None = None) -> list[AgentRecord]:
        """Read the records of at most `limit` agents, without heartbeats, measurements and commands."""
        return await self._agent_records((await self._agent_ids())[:limit], report)

    async def _agent_records(self, ids: Sequence[str], report: Report | None = None) -> list[AgentRecord]:
        agents = []
        async for agent in each_record(self._client, ids, self._keys.agent, AGENTS):
            agents.append(agent)
            if report is not None and len(agents) % CHUNK == 0:
                report(f"{len(agents)} of {len(ids)} agents read")
        return agents

    # --- commands -----------------------------------------------------------------------------------------------------

    async def open_commands(self, report: Report | None = None) -> list[Command]:
        """Read the open commands, oldest first. They are found by their deadlines."""
        members = await self._client.zrange(self._keys.deadlines, 0, -1)
        ids = [text(member).removeprefix("command:") for member in members if member.startswith(b"command:")]
        return [command for command in await self._commands(ids, report) if command.open]

    async def all_commands(self, report: Report | None = None) -> list[Command]:
        """Read the open commands and the ended ones that are still kept, oldest first. Scans all keys of the server."""
        ids, start = [], len(self._keys.command(""))
        async for key in self._client.scan_iter(match=f"{self._keys.command('')}*", count=CHUNK):
            ids.append(text(key)[start:])
            if report is not None and len(ids) % CHUNK == 0:
                report(f"{len(ids)} commands found")
        return await self._commands(ids, report)

    async def _commands(self, ids: Sequence[str], report: Report | None) -> list[Command]:
        found: list[Command] = []
        for chunk in chunks(ids):
            found += (await self._reader.commands(chunk)).values()
            if report is not None:
                report(f"{len(found)} of {len(ids)} commands read")
        return sorted(found, key=lambda command: command.accepted_at)

    async def command(self, command_id: str) -> dict[str, str]:
        """Read all fields of a command's record; empty if there is none."""
        return await self._record(self._keys.command(command_id))

    async def record(self, record_id: str) -> dict[str, str]:
        """Read all fields of the record of a command or a group. Raises AismError if there is none."""
        if found := await self.command(record_id) or await self.group(record_id):
            return found
        raise AismError(
            f"there is no command or group {record_id}: the id is wrong, commands.retention has passed, or the server "
            "has lost its data. aism-engine commands list --ended shows what is kept"
        )

    async def group(self, group_id: str) -> dict[str, str]:
        """Read all fields of the record of a request to many agents; empty if there is none."""
        return await self._record(self._keys.group(group_id))

    async def missing(self, group_id: str) -> list[Member]:
        """Read the members of a group that have not ended, sorted by agent."""
        found: dict[str, Member] = {}
        # Targets are added at the start of the list and removed from its end, so reading pages from its start misses
        # only the targets that are removed meanwhile. Their commands are read afterwards.
        for start in count(0, CHUNK):
            page = await self._client.lrange(self._keys.fanout, start, start + CHUNK - 1)
            for raw in page:
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    target = msgspec.json.decode(raw, type=Member)
                    if target.group_id == group_id:
                        found[target.name] = target
            if len(page) < CHUNK:
                break
        for command in await self.open_commands():
            if command.group_id == group_id:
                member = Member(group_id, command.agent_id, command.command_id, command.status.value)
                found[member.name] = member
        return [found[name] for name in sorted(found, key=natural_key)]

    async def _record(self, key: str) -> dict[str, str]:
        record = await self._client.hgetall(key)
        return {text(name): text(value) for name, value in record.items()}

    # --- dead letters -------------------------------------------------------------------------------------------------

    async def dead_letters(self, since: str = "-", until: str = "+") -> AsyncIterator[tuple[str, DeadLetter]]:
        """Yield the dead letters between two ids of their stream, oldest first, each with its id."""
        while True:
            entries = await self._client.xrange(self._keys.dead_letters, since, until, count=CHUNK)
            for dead_letter_id, fields in entries:
                if (dead_letter := read_dead_letter(fields)) is not None:
                    yield text(dead_letter_id), dead_letter
            if len(entries) < CHUNK:
                return
            since = f"({text(entries[-1][0])}"

    # --- the fleet ----------------------------------------------------------------------------------------------------

    async def holds(self, *agent_ids: str) -> dict[str, Held]:
        """Read the hold of the fleet and, if the id of a known agent is given, the hold of that agent."""
        agents, fleet = await self._agent_records(agent_ids), await read_fleet_hold(self._client, self._keys)
        return {"agent": agents[0], "fleet": fleet} if agents else {"fleet": fleet}

    async def lease(self) -> LeaseStatus:
        """Read whether an engine leads. A lease that the user may not read counts as held."""
        try:
            return LeaseStatus.parse(*await self._client.execute_commands(LeaseStatus.reads(self._keys)))
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            return LeaseStatus("", None, 0.0)

    async def overview(self, report: Report | None = None) -> Overview:
        """Read agents, commands, queues and recent facts. The agents have neither heartbeats nor measurements."""
        keys, now, ids = self._keys, await self._reader.read_time(), await self._agent_ids()
        silent, agents = await self._reader.silent_agents(), await self._agent_records(ids, report)
        commands, by_agent = await self.open_commands(report), defaultdict[str, list[Command]](list)
        for command in commands:
            by_agent[command.agent_id].append(command)
        lease, held = await self.lease(), await read_fleet_hold(self._client, keys)
        lengths = await self._reader.lengths()
        return Overview(
            lease=lease,
            fleet_hold=held,
            agents=[
                AgentView(agent=agent, commands=by_agent[agent.agent_id], marked_silent_at=silent.get(agent.agent_id))
                for agent in agents
            ],
            queues={name: lengths[key] for name, key in _QUEUES.items() if key in lengths},
            rates=await self._rates(now),
            commands=commands,
        )

    async def _rates(self, now: float) -> dict[str, float]:
        since = now - _RATES_OVER_S
        oldest, limit = f"{since * 1000:.0f}", _RATES_OVER_COMMITS
        entries = await self._client.xrevrange(self._keys.audit, min=oldest, max="+", count=limit)
        if not entries:
            return {}
        if len(entries) == _RATES_OVER_COMMITS:
            since = entry_time(text(entries[-1][0]))
        counted = Counter[str]()
        for entry in entries:
            counted.update(fact["event"] for fact in line_from_entry(*entry).decoded_facts())
        span_s = max(now - since, 0.001)
        return {event: round(count / span_s, 1) for event, count in counted.most_common()}


def _heartbeat_age_s(score: float | None, now: float) -> float | None:
    age_s = now - score_in_seconds(score) if score is not None else None
    return age_s if age_s is not None and abs(age_s) <= _MAX_AGE_S else None
