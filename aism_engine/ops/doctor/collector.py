"""Collects the facts that the doctor checks: the server, the way to it, and the keys of the fleet. Writes nothing.

What the server denies is noted in `unchecked`, and is not an error: managed servers deny CONFIG, a strict ACL denies
more. All methods raise `ServerUnavailableError` while the server cannot serve.
"""

import secrets
import time
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct

from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor import environment, keyspace, server
from aism_engine.ops.doctor.environment import ConfigFile, EnvironmentFacts, SentinelFacts
from aism_engine.ops.doctor.findings import Finding, Severity, run_checks
from aism_engine.ops.doctor.keyspace import KeyspaceFacts
from aism_engine.ops.doctor.keyspace_scan import KeyspaceScan
from aism_engine.ops.doctor.permissions import denied_commands, required_commands
from aism_engine.ops.doctor.server import CONFIG_NAMES, ServerFacts
from aism_engine.ops.inspector import Report
from aism_engine.settings import RedisSettings
from aism_engine.store.batch import Argument
from aism_engine.store.client import Client, connect, naming_outages, where
from aism_engine.store.keys import Keys
from aism_engine.store.records import text
from aism_engine.store.redis_exceptions import RedisError, ResponseError
from aism_engine.store.scripts import COMMIT, CommitCode

CODES: Final = tuple(check.code for module in (server, environment, keyspace) for check in module.CHECKS)
_WORST_FIRST: Final = (Severity.DANGER, Severity.WARNING, Severity.NOTE, Severity.OK)
_MAX_DATABASES: Final = 64
"""Other databases checked: an arbitrary number, servers have 16 by default."""
_PINGS: Final = 50
_CLOCK_READS: Final = 5
_COMMITS: Final = 20
"""Number of measurements: arbitrary numbers that take some milliseconds on a server nearby."""


class DoctorFacts(Struct, frozen=True):
    """Everything that was collected. `keyspace` is None if the keys were not scanned."""

    server: ServerFacts
    environment: EnvironmentFacts
    keyspace: KeyspaceFacts | None = None


def diagnose(facts: DoctorFacts) -> list[Finding]:
    """Run all checks, and return their findings, the most severe first."""
    findings = server.check_server(facts.server) + run_checks(environment.CHECKS, facts.environment)
    if facts.keyspace is not None:
        findings += run_checks(keyspace.CHECKS, facts.keyspace)
    return sorted(findings, key=lambda finding: _WORST_FIRST.index(finding.severity))


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
        found = None
        try:
            if max_keys:
                found = await KeyspaceScan(self._client, self._keys, max_keys=max_keys, report=report).run()
                found.other_databases = await self._other_databases(server_facts)
        except ServerUnavailableError as error:
            self._note_denied("keys", error)
        except ResponseError as error:
            self._unchecked["keys"] = str(error)
        unchecked = [f"{name}: {reason}" for name, reason in self._unchecked.items()]
        if found is not None and found.truncated:
            unchecked.append(f"keys: there are more than {max_keys} to scan (--max-keys)")
        return DoctorFacts(server_facts, msgspec.structs.replace(environment_facts, unchecked=unchecked), found)

    async def server(self) -> ServerFacts:
        """Read INFO and CONFIG."""
        self._unchecked.clear()
        info = await self._ask("INFO") or {}
        config: dict[str, str] = {}
        for name in CONFIG_NAMES:
            if "CONFIG" in self._unchecked:
                break
            pairs = _pairs(await self._ask("CONFIG", "GET", name))
            config |= {text(key): text(value) for key, value in pairs}
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
                with naming_outages():
                    if await client.execute_command("EXISTS", self._keys.epoch):
                        found.append(number)
            except ServerUnavailableError as error:
                self._note_denied("SELECT", error)
            finally:
                await client.aclose()
        return found

    async def _environment(self, config_file: ConfigFile | None) -> EnvironmentFacts:
        required = required_commands(self._keys, sentinels=bool(self._settings.sentinels))
        clock_ahead_s = await self._clock_ahead_s()
        pings_s = [await self._ping_s() for _ in range(_PINGS)]
        commits_s = await self._commits_s()
        denied = None
        try:
            denied = await denied_commands(self._client, required)
        except ServerUnavailableError as error:
            self._note_denied("EVAL, MULTI", error)
        return EnvironmentFacts(
            server=where(self._settings),
            protocol=self._settings.protocol,
            clock_ahead_s=clock_ahead_s,
            pings_s=[each for each in pings_s if each is not None],
            commits_s=commits_s,
            required=required,
            denied=denied,
            sentinels=[await self._sentinel(address) for address in self._settings.sentinels],
            config_file=config_file,
        )

    def _note_denied(self, name: str, error: ServerUnavailableError) -> None:
        """Note that the server denied something. Raises the error again if it is another one."""
        if error.outage != "noperm":
            raise error
        self._unchecked.setdefault(name, str(error.__cause__ or error))

    async def _ask(self, *command: str) -> Any:  # noqa: ANN401  the type depends on the command
        """Send a command; return None, and note it, if the server denies it."""
        try:
            with naming_outages():
                return await self._client.execute_command(*command)
        except ServerUnavailableError as error:
            self._note_denied(command[0], error)
        except ResponseError as error:
            self._unchecked.setdefault(command[0], str(error))
        return None

    async def _ping_s(self) -> float | None:
        began_at = time.perf_counter()
        reply = await self._ask("PING")
        return None if reply is None else time.perf_counter() - began_at

    async def _clock_ahead_s(self) -> float | None:
        """Compare the clocks by the fastest of several replies, which is the most precise."""
        measured: list[tuple[float, float]] = []
        for _ in range(_CLOCK_READS):
            began_at = time.time()
            reply = await self._ask("TIME")
            ended_at = time.time()
            if reply is None:
                return None
            ahead_s = int(reply[0]) + int(reply[1]) / 1_000_000 - (began_at + ended_at) / 2
            measured.append((ended_at - began_at, ahead_s))
        return min(measured)[1]

    async def _commits_s(self) -> list[float]:
        """Time the commit script with a token that nobody holds, so that it is fenced before it writes."""
        keys, durations_s = self._keys, []
        for _ in range(_COMMITS):
            token = f"doctor:{secrets.token_hex(8)}"
            arguments: list[Argument] = [token, secrets.token_hex(8), "", "", 0, "", "", 0, 0, 0, 0, 0]
            began_at = time.perf_counter()
            try:
                with naming_outages():
                    code, *_ = await COMMIT(
                        self._client, [keys.epoch, keys.ledger, keys.response_queue, keys.oversized], arguments
                    )
            except (ServerUnavailableError, ResponseError):
                break  # a denied command or a key of the wrong type: other checks report both
            if code == CommitCode.FENCED:
                durations_s.append(time.perf_counter() - began_at)
        return durations_s[1:]  # the first call may have loaded the script

    async def _sentinel(self, address: str) -> SentinelFacts:
        settings, name = self._settings, self._settings.sentinel_master
        password = f":{quote(settings.sentinel_password, safe='')}@" if settings.sentinel_password else ""
        own = msgspec.structs.replace(settings, url=f"redis://{password}{address}", sentinels=(), protocol=2)
        client = connect(own, "", timeout_s=settings.connect_timeout)
        try:
            with naming_outages():
                primary = dict(_pairs(await client.execute_command("SENTINEL", "MASTER", name)))
            error = ""
            try:
                await client.execute_command("SENTINEL", "CKQUORUM", name)
            except ResponseError as refusal:
                error = str(refusal)
            return SentinelFacts(
                address=address,
                primary=f"{text(primary[b'ip'])}:{text(primary[b'port'])}",
                others=int(primary[b"num-other-sentinels"]),
                quorum=int(primary[b"quorum"]),
                error=error,
            )
        except (ServerUnavailableError, RedisError, KeyError) as failure:
            return SentinelFacts(address=address, error=str(failure))
        finally:
            await client.aclose()


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401
    """Return the pairs of a mapping, which RESP2 sends as a flat list."""
    if isinstance(reply, dict):
        return [(_encoded(name), _encoded(value)) for name, value in reply.items()]
    return list(zip(reply[::2], reply[1::2], strict=True)) if reply else []


def _encoded(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
