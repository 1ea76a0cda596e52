"""Reads many record hashes at once, each as one reply. Damaged records are left out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from math import isfinite
from typing import Final, TypeVar

import msgspec

from aism_engine.domain.agents.agent import AGENT_TABLE, AgentRecord
from aism_engine.domain.commands.command import COMMAND_TABLE, Command
from aism_engine.domain.commands.group import GROUP_TABLE, Group
from aism_engine.domain.protocol.names import is_measurement_name
from aism_engine.store.client import Client, naming_outages
from aism_engine.store.scripts import READ_RECORDS

T = TypeVar("T")
CHUNK: Final = 1000
_SEND_ITERATIONS: Final = 3
"""Iterations of the event loop that redis-py needs to send a request."""
_FIELD_BYTES: Final = 65_536
"""Maximum length of a field that is read: labels may be long, and any client may have written anything."""
MEASUREMENTS_CHUNK: Final = 250
"""Agents whose measurements are read at once: with 64 names each, 7 ms of the server and as much of the event loop."""
_MEASUREMENT_NAMES: Final = 4096
"""Names of measurements in the cache: many agents share few names."""
_VALUES = msgspec.msgpack.Decoder(list[str])
"""Decodes a record as read_records.lua packs it. Raises ValueError if a value is not UTF-8."""


class Records:
    """Reads the records of one fleet. Raises `ServerUnavailableError` while the server cannot serve."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, keys: Iterable[str], fields: Sequence[str]) -> list[bytes]:
        """Read some fields of each hash, or names and values of all fields; packed, for the functions below."""
        with naming_outages():
            found: list[bytes] = await READ_RECORDS(self._client, list(keys), [_FIELD_BYTES, *fields])
        return found

    async def each(
        self,
        ids: Sequence[str],
        key: Callable[[str], str],
        fields: Sequence[str],
        parse: Callable[[str, bytes], T | None],
        *,
        chunk: int = CHUNK,
    ) -> AsyncIterator[T]:
        """Read any number of records, `chunk` at a time. The server reads a page while we parse the one before it."""
        ahead: asyncio.Future[list[bytes]] | None = None
        pages = list(chunks(ids, chunk))
        try:
            for number, page in enumerate(pages):
                records = await (ahead or self.read(map(key, page), fields))
                ahead = None
                if number + 1 < len(pages):
                    ahead = asyncio.ensure_future(self.read(map(key, pages[number + 1]), fields))
                    for _ in range(_SEND_ITERATIONS):
                        await asyncio.sleep(0)
                for name, packed in zip(page, records, strict=True):
                    if (found := parse(name, packed)) is not None:
                        yield found
        finally:
            if ahead is not None:
                ahead.cancel()


def chunks(ids: Sequence[str], size: int = CHUNK) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def text(value: bytes) -> str:
    """Decode a name that any client may have written. Bytes that are not UTF-8 are escaped, so it is no agent id."""
    return value.decode(errors="backslashreplace")


def is_empty(packed: bytes) -> bool:
    """Return whether a record that was read with one field has no value, or cannot be read."""
    return packed == _EMPTY


_EMPTY: Final = msgspec.msgpack.encode([""])


def agent_of(agent_id: str, packed: bytes) -> AgentRecord | None:
    try:
        return AGENT_TABLE.from_values(agent_id, _VALUES.decode(packed))
    except (KeyError, ValueError, msgspec.DecodeError):
        return None


def command_of(command_id: str, packed: bytes) -> Command | None:
    try:
        return COMMAND_TABLE.from_values(command_id, _VALUES.decode(packed))
    except (KeyError, ValueError):
        return None


def group_of(group_id: str, packed: bytes) -> Group | None:
    try:
        return GROUP_TABLE.from_values(group_id, _VALUES.decode(packed))
    except (KeyError, ValueError):
        return None


def measurements_of(agent_id: str, packed: bytes) -> tuple[str, dict[str, float]] | None:
    try:
        values = _VALUES.decode(packed)
    except (ValueError, msgspec.DecodeError):
        return None
    measured = measurements_in(zip(values[::2], values[1::2], strict=True))
    return (agent_id, measured) if measured else None


def measurements_in(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Return the pairs that are measurements: a valid name and a finite decimal number."""
    found: dict[str, float] = {}
    for raw_name, value in pairs:
        if name := _measurement_name(raw_name):
            try:
                number = float(value)
            except ValueError:
                continue
            if isfinite(number):
                found[name] = number
    return found


@lru_cache(_MEASUREMENT_NAMES)
def _measurement_name(name: str) -> str:
    """Return the name, as one string shared by all agents; empty if it is not a valid name."""
    return name if is_measurement_name(name) else ""
