"""Collects what the doctor checks: the server, the engine's environment, and the keys of the fleet. Writes nothing.

A command that the server denies is noted in `unchecked`, and is not an error: managed servers deny CONFIG, a strict ACL
denies more. All methods raise `ServerUnavailableError` while the server cannot serve.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import msgspec
from msgspec import Struct

from aism_engine.domain.agents.agent import Liveness
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor.environment import ENVIRONMENT_CHECKS, ConfigFile, EnvironmentFacts, SentinelFacts
from aism_engine.ops.doctor.findings import Finding, Severity
from aism_engine.ops.doctor.fleet import FLEET_CHECKS, FleetFacts
from aism_engine.ops.doctor.keyspace import KEYSPACE_CHECKS, KeyspaceFacts
from aism_engine.ops.doctor.keyspace_scan import KeyspaceScan
from aism_engine.ops.doctor.permissions import denied_commands, required_commands, skipping_errors_reported_elsewhere
from aism_engine.ops.doctor.server import CONFIG_NAMES, SERVER_CHECKS, ServerFacts
from aism_engine.ops.inspector import Inspector, Report
from aism_engine.settings import RedisSettings
from aism_engine.store.batch import Batch, Bounds
from aism_engine.store.client import connect
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.redis_exceptions import RedisError, ResponseError
from aism_engine.store.scripts import COMMIT, CommitCode

CODES: Final = SERVER_CHECKS.codes + ENVIRONMENT_CHECKS.codes + FLEET_CHECKS.codes + KEYSPACE_CHECKS.codes
_MAX_DATABASES: Final = 64
"""Other databases checked: an arbitrary number, servers have 16 by default."""
_ROUND_TRIPS: Final = 50
_COMMITS: Final = 20
"""Number of measurements: arbitrary numbers that take some milliseconds on a server nearby."""


class DoctorFacts(Struct, frozen=True):
    """Everything that was collected. `keyspace` is None if the keys were not scanned."""

    server: ServerFacts
    environment: EnvironmentFacts
    fleet: FleetFacts = msgspec.field(default_factory=FleetFacts)
    keyspace: KeyspaceFacts | None = None


def diagnose(facts: DoctorFacts) -> list[Finding]:
    """Run all checks, and return their findings, the most severe first."""
    findings = SERVER_CHECKS.run(facts.server) + ENVIRONMENT_CHECKS.run(facts.environment)
    findings += FLEET_CHECKS.run(facts.fleet)
    if facts.keyspace is not None:
        findings += KEYSPACE_CHECKS.run(facts.keyspace)
    return sorted(findings, key=lambda finding: list(Severity).index(finding.severity), reverse=True)


class FactCollector:
    """Collects the facts about one server and one fleet."""

    def __init__(self, client: Client, settings: RedisSettings) -> None:
        self._unchecked: dict[str, str] = {}
        """What the server denied, and its error."""
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.prefix)

    async def collect(
        self, config_file: ConfigFile | None = None, *, max_keys: int, report: Report | None = None
    ) -> DoctorFacts:
        """Collect everything. Scans at most `max_keys` keys of the server; with 0 there is no scan."""
        server_facts, environment_facts = await self.server(), await self._environment(config_file)
        fleet_facts = await self._fleet(max_keys, report)
        found = None
        if max_keys:
            with self._noting_denial("keys"):
                found = await KeyspaceScan(self._client, self._keys, max_keys=max_keys, report=report).run()
                found.other_databases = await self._other_databases(server_facts)
        unchecked = [f"{name}: {reason}" for name, reason in self._unchecked.items()]
        if found is not None and found.truncated:
            unchecked.append(f"keys: there are more than {max_keys} to scan (--max-keys)")
        environment_facts = msgspec.structs.replace(environment_facts, unchecked=unchecked)
        return DoctorFacts(server_facts, environment_facts, fleet_facts, found)

    async def server(self) -> ServerFacts:
        """Read INFO and CONFIG."""
        self._unchecked.clear()
        info = await self._ask("INFO") or {}
        config: dict[str, str] = {}
        for name in CONFIG_NAMES:
            if "CONFIG" in self._unchecked:
                break
            config |= await self._ask("CONFIG GET", name) or {}
        settings = self._settings
        return ServerFacts(info=info, config=config, prefix=settings.prefix, watched=bool(settings.sentinels))

    async def _other_databases(self, facts: ServerFacts) -> list[int]:
        """Find the other databases that hold a fleet of this prefix. Channels are shared by all databases."""
        own, found = int(self._client.connection_pool.connection_kwargs.get("db") or 0), []
        numbers = sorted(int(name[2:]) for name in facts.info if name[:2] == "db" and name[2:].isdigit())
        for number in [each for each in numbers if each != own][:_MAX_DATABASES]:
            client = connect(self._settings, "")
            client.connection_pool.connection_kwargs["db"] = number
            try:
                with self._noting_denial("SELECT"):
                    if await client.execute_command("EXISTS", self._keys.epoch):
                        found.append(number)
            finally:
                await client.aclose()
        return found

    async def _environment(self, config_file: ConfigFile | None) -> EnvironmentFacts:
        required = required_commands(self._keys, sentinels=bool(self._settings.sentinels))
        round_trips_s, clock_ahead_s = await self._round_trips()
        commits_s = await self._commits_s()
        denied = None
        with self._noting_denial("EVAL, MULTI"):
            denied = await denied_commands(self._client, required)
        return EnvironmentFacts(
            protocol=self._settings.protocol,
            clock_ahead_s=clock_ahead_s,
            round_trips_s=round_trips_s,
            commits_s=commits_s,
            required=required,
            denied=denied,
            sentinels=[await self._sentinel(address) for address in self._settings.sentinels],
            config_file=config_file,
        )

    async def _fleet(self, max_agents: int, report: Report | None) -> FleetFacts:
        """Read whether an engine leads, and which of at most `max_agents` agents are lost.

        A value stays None if its command is denied or its key has the wrong type. Other checks report these causes.
        """
        facts, inspector = FleetFacts(), Inspector(self._client, self._keys)
        with skipping_errors_reported_elsewhere():
            lease = await inspector.lease()
            facts.lease = lease if lease.token != "" else None
        if max_agents:
            with skipping_errors_reported_elsewhere():
                records = await inspector.agent_records(max_agents, report)
                facts.agents = len(records)
                for agent in records:
                    if agent.liveness is Liveness.LOST:
                        facts.lost.add(agent.agent_id)
        return facts

    @contextmanager
    def _noting_denial(self, name: str) -> Iterator[None]:
        """If the server denies a command of the block or does not know it, end the block, and note the error."""
        try:
            yield
        except (ServerUnavailableError, ResponseError) as error:
            if isinstance(error, ServerUnavailableError) and error.outage != "noperm":
                raise
            self._unchecked.setdefault(name, str(error.__cause__ or error))

    async def _ask(self, *command: str) -> Any:  # noqa: ANN401  the type depends on the command
        """Send a command. Return None if the server denies it."""
        reply = None
        with self._noting_denial(command[0].partition(" ")[0]):
            reply = await self._client.execute_command(*command)
        return reply  # noqa: RET504  None if the block ended early

    async def _round_trips(self) -> tuple[list[float], float | None]:
        """Read the server's clock several times. Return the durations, and how far that clock is ahead of ours.

        The fastest reply gives the most precise difference.
        """
        durations_s: list[float] = []
        ahead_s = None
        for _ in range(_ROUND_TRIPS):
            asked_at, began_at = time.time(), time.perf_counter()
            reply = await self._ask("TIME")
            if reply is None:
                break
            durations_s.append(time.perf_counter() - began_at)
            if durations_s[-1] == min(durations_s):
                ahead_s = int(reply[0]) + int(reply[1]) / 1_000_000 - (asked_at + durations_s[-1] / 2)
        return durations_s, ahead_s

    async def _commits_s(self) -> list[float]:
        """Time the commit script with a token that nobody holds, so that it is fenced before it writes."""
        durations_s = []
        with skipping_errors_reported_elsewhere():
            for _ in range(_COMMITS):
                batch = Batch(self._keys, Bounds(1, 1, 1), [])
                keys, arguments = batch.call(f"doctor:{uuid4()}", str(uuid4()), "", None)
                began_at = time.perf_counter()
                code, *_ = await COMMIT(self._client, keys, arguments)
                if code == CommitCode.FENCED:
                    durations_s.append(time.perf_counter() - began_at)
        return durations_s[1:]  # the first call may have loaded the script

    async def _sentinel(self, address: str) -> SentinelFacts:
        settings, name = self._settings, self._settings.sentinel_master
        password = f":{quote(settings.sentinel_password, safe='')}@" if settings.sentinel_password else ""
        scheme, _, rest = settings.url.partition("://")
        tls = "&".join(each for each in rest.partition("?")[2].split("&") if each.startswith("ssl_"))
        url = f"{scheme}://{password}{address}?{tls}"
        own = msgspec.structs.replace(settings, url=url, sentinels=(), protocol=2)
        client = connect(own, "", timeout_s=settings.connect_timeout)
        try:
            primary = await client.execute_command("SENTINEL MASTER", name)
            error = ""
            try:
                await client.execute_command("SENTINEL CKQUORUM", name)
            except ResponseError as refusal:
                error = str(refusal)
            return SentinelFacts(
                address=address,
                primary=f"{primary['ip']}:{primary['port']}",
                others=primary["num-other-sentinels"],
                error=error,
            )
        except (ServerUnavailableError, RedisError, KeyError) as failure:
            return SentinelFacts(address=address, error=str(failure))
        finally:
            await client.aclose()
