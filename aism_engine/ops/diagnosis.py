"""What the doctor reads: the server, the way to it, and what lies under the prefix. Nothing here writes.

What the server does not let us see is noted, and is no error: managed servers deny CONFIG, a careful ACL denies more.
All methods raise `ServerUnavailableError` while the server cannot serve.
"""

import secrets
import time
from typing import Any, Final
from urllib.parse import quote

import msgspec

from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.acl import needed, refused
from aism_engine.ops.doctor.examination import DoctorFacts
from aism_engine.ops.doctor.server import SETTINGS, Server
from aism_engine.ops.doctor.surroundings import ConfigFile, Sentinel, Surroundings
from aism_engine.ops.inspector import Tell
from aism_engine.ops.keyspace_scan import KeyspaceScan
from aism_engine.settings import RedisSettings
from aism_engine.store.batch import Argument
from aism_engine.store.client import Client, connect, naming_outages, where
from aism_engine.store.keys import Keys
from aism_engine.store.records import text
from aism_engine.store.redis_exceptions import RedisError, ResponseError
from aism_engine.store.scripts import COMMIT, CommitCode

_DATABASES: Final = 64
"""Looked at, besides our own: an arbitrary number, servers have 16."""
_PINGS: Final = 50
_TIMES: Final = 5
_COMMITS: Final = 20
"""How often each is measured: arbitrary numbers, which take some milliseconds beside a server that is near."""


class Diagnosis:
    """Looks at one server, as one fleet has it."""

    def __init__(self, client: Client, settings: RedisSettings) -> None:
        self._silent: dict[str, str] = {}
        """What may not be looked at, and the words of the server."""
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.prefix)

    async def facts(self, config_file: ConfigFile | None = None, *, most: int, tell: Tell | None = None) -> DoctorFacts:
        """Read everything. `most` keys of the server are walked over; with 0 none is."""
        server, surroundings, keyspace = await self.server(), await self._surroundings(config_file), None
        try:
            keyspace = await KeyspaceScan(self._client, self._keys, most=most, tell=tell).walk() if most else None
            if keyspace is not None:
                keyspace.twins = await self._twins(server)
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            self._silent["keys"] = str(error)
        except ResponseError as error:
            self._silent["keys"] = str(error)
        silent = [f"{name}: {words}" for name, words in self._silent.items()]
        if keyspace is not None and keyspace.more:
            silent.append(f"keys: there are more than {most} to walk over (--max-keys)")
        return DoctorFacts(server, msgspec.structs.replace(surroundings, silent=silent), keyspace)

    async def server(self) -> Server:
        """Read what the server says of itself."""
        self._silent.clear()
        info = await self._ask("INFO") or {}
        config: dict[str, str] = {}
        for name in SETTINGS:
            if "CONFIG" in self._silent:
                break
            found = await self._ask("CONFIG", "GET", name)
            config |= {text(key): text(value) for key, value in _pairs(found)}
        settings = self._settings
        return Server(info=info, config=config, prefix=settings.prefix, watched=bool(settings.sentinels))

    async def _twins(self, server: Server) -> list[int]:
        """Find the other databases in which there is a fleet of our prefix: to channels, all databases are one."""
        own, found = int(self._client.connection_pool.connection_kwargs.get("db") or 0), []
        numbers = sorted(int(name[2:]) for name in server.info if name[:2] == "db" and name[2:].isdigit())
        for number in [each for each in numbers if each != own][:_DATABASES]:
            client = connect(self._settings, "")
            client.connection_pool.connection_kwargs["db"] = number
            try:
                with naming_outages():
                    if await client.execute_command("EXISTS", self._keys.epoch):
                        found.append(number)
            except ServerUnavailableError as error:
                if error.outage != "noperm":
                    raise
                self._silent["SELECT"] = str(error.__cause__)
            finally:
                await client.aclose()
        return found

    async def _surroundings(self, config_file: ConfigFile | None) -> Surroundings:
        """Measure the way to the server, ask for our rights, and ask the sentinels."""
        commands = needed(self._keys, sentinels=bool(self._settings.sentinels))
        clock_ahead_s = await self._clock()
        pings_s = [await self._seconds("PING") for _ in range(_PINGS)]
        commits_s = await self._commits()
        try:
            missing = await refused(self._client, commands)
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            missing = None
            self._silent["EVAL, MULTI"] = str(error)
        sentinels = [await self._sentinel(address) for address in self._settings.sentinels]
        return Surroundings(
            where=where(self._settings),
            protocol=self._settings.protocol,
            clock_ahead_s=clock_ahead_s,
            pings_s=[each for each in pings_s if each is not None],
            commits_s=commits_s,
            needed=commands,
            refused=missing,
            sentinels=sentinels,
            config_file=config_file,
        )

    async def _ask(self, *words: str | int) -> Any:  # noqa: ANN401  a reply is what the command makes it
        """Ask the server; None, with a note, where it refuses to tell."""
        try:
            with naming_outages():
                return await self._client.execute_command(*words)
        except ServerUnavailableError as error:
            if error.outage != "noperm":
                raise
            reason: Exception = error.__cause__ if isinstance(error.__cause__, Exception) else error
        except ResponseError as error:
            reason = error
        self._silent.setdefault(str(words[0]), str(reason))
        return None

    # --- the way there ------------------------------------------------------------------------------------------------

    async def _seconds(self, *words: str) -> float | None:
        began = time.perf_counter()
        answer = await self._ask(*words)
        return None if answer is None else time.perf_counter() - began

    async def _clock(self) -> float | None:
        """Compare the clocks, by the fastest of some answers: it leaves the least doubt."""
        best: tuple[float, float] | None = None
        for _ in range(_TIMES):
            began = time.time()
            answer = await self._ask("TIME")
            ended = time.time()
            if answer is None:
                return None
            ahead_s = int(answer[0]) + int(answer[1]) / 1_000_000 - (began + ended) / 2
            best = min(best or (ended - began, ahead_s), (ended - began, ahead_s))
        return None if best is None else best[1]

    async def _commits(self) -> list[float]:
        """Call the script of commits under a token that nobody ever has: it is fenced off before it writes."""
        keys, found = self._keys, []
        for _ in range(_COMMITS):
            token = f"doctor:{secrets.token_hex(8)}"
            arguments: list[Argument] = [token, secrets.token_hex(8), "", "", 0, "", "", 0, 0, 0, 0]
            began = time.perf_counter()
            try:
                with naming_outages():
                    code, *_ = await COMMIT(
                        self._client, [keys.epoch, keys.ledger, keys.response_queue, keys.oversized], arguments
                    )
            except (ServerUnavailableError, ResponseError):
                break  # a right is missing, or a key has the wrong type: both are told of elsewhere
            if code == CommitCode.FENCED:
                found.append(time.perf_counter() - began)
        return found[1:]  # the first may have loaded the script

    async def _sentinel(self, address: str) -> Sentinel:
        settings = self._settings
        password = f":{quote(settings.sentinel_password, safe='')}@" if settings.sentinel_password else ""
        at = msgspec.structs.replace(settings, url=f"redis://{password}{address}", sentinels=(), protocol=2)
        client = connect(at, "", timeout_s=settings.connect_timeout)
        try:
            with naming_outages():
                told = dict(_pairs(await client.execute_command("SENTINEL", "MASTER", settings.sentinel_master)))
            trouble = ""
            try:
                await client.execute_command("SENTINEL", "CKQUORUM", settings.sentinel_master)
            except ResponseError as error:
                trouble = str(error)
            return Sentinel(
                address=address,
                primary=f"{text(told[b'ip'])}:{text(told[b'port'])}",
                others=int(told[b"num-other-sentinels"]),
                quorum=int(told[b"quorum"]),
                trouble=trouble,
            )
        except (ServerUnavailableError, RedisError, KeyError) as error:
            return Sentinel(address=address, trouble=str(error))
        finally:
            await client.aclose()


def _pairs(found: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401
    """Read a table, which is a list to RESP2."""
    if isinstance(found, dict):
        return [(_raw(name), _raw(value)) for name, value in found.items()]
    return list(zip(found[::2], found[1::2], strict=True)) if found else []


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
