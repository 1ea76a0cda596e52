"""Reads many records in one call. Damaged records are left out."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from math import isfinite
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from aism_engine.domain.agents.agent import HELD_TABLE, Held, decode_agent
from aism_engine.domain.commands.command import COMMAND_TABLE
from aism_engine.domain.commands.group import GROUP_TABLE
from aism_engine.domain.protocol.names import MAX_MEASUREMENT_NAME, is_measurement_name
from aism_engine.domain.records import RecordTable
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import READ_RECORDS, READ_STRINGS, Script

T = TypeVar("T")
CHUNK: Final = 1000
_FIELD_BYTES: Final = 65_536
"""Maximum length of a field that is read: labels may be long, and any client may have written anything."""
_RECORD_BYTES: Final = 4 * _FIELD_BYTES
"""Maximum length of the record of an agent. Labels, divergences and the context of a transition can make it long."""
MEASUREMENTS_CHUNK: Final = 250
"""Number of agents whose measurements one call reads.

If each agent has 64 measurements, a call takes 7 ms in the server, and as long in the event loop.
"""
_MEASUREMENT_NAMES: Final = 4096
"""Names of measurements in the cache: many agents share few names."""
_VALUES: Final = msgspec.msgpack.Decoder(list[str])
"""Decodes a record as read_records.lua packs it. Raises ValueError if a value is not UTF-8."""
_DAMAGED: Final = (KeyError, ValueError)
NO_VALUE: Final = msgspec.msgpack.encode([""])
"""What read_records.lua returns for a single field that has no value or cannot be read."""


async def read_records(client: Client, keys: Iterable[str], fields: Sequence[str]) -> list[bytes]:
    """Read the named fields of each hash; if `fields` is empty, the names and values of all its fields.

    Returns one packed record for each hash, in the format of read_records.lua.
    """
    keys = list(keys)
    found: list[bytes] = await READ_RECORDS(client, keys, [_FIELD_BYTES, *fields]) if keys else []
    return found


class RecordKind(NamedTuple, Generic[T]):
    """How the records of one kind are read: the script and its arguments, and how each of its replies is decoded.

    `decode` gets the id of the record, and raises KeyError or ValueError if the record is damaged.
    """

    script: Script
    arguments: Sequence[str | int]
    decode: Callable[[str, bytes], T]


def _hash_record(table: RecordTable[T]) -> RecordKind[T]:
    def decode(record_id: str, packed: bytes) -> T:
        return table.from_values(record_id, _VALUES.decode(packed))

    return RecordKind(READ_RECORDS, (_FIELD_BYTES, *table.fields), decode)


AGENTS: Final = RecordKind(READ_STRINGS, (_RECORD_BYTES,), decode_agent)
COMMANDS: Final = _hash_record(COMMAND_TABLE)
GROUPS: Final = _hash_record(GROUP_TABLE)


async def each_record(
    client: Client, ids: Iterable[str], key: Callable[[str], str], kind: RecordKind[T]
) -> AsyncIterator[T]:
    """Read any number of records. The server reads a page while we parse the one before it."""
    ahead: Any = None
    pages = list(chunks(list(ids)))
    try:
        for number, page in enumerate(pages):
            records = await (ahead or kind.script(client, list(map(key, page)), kind.arguments))
            ahead = None
            if number + 1 < len(pages) and not client.is_blocking:
                from asyncio import ensure_future  # noqa: PLC0415  slow to import

                from aism_engine.store.client import until_sent  # noqa: PLC0415  slow to import

                ahead = ensure_future(kind.script(client, list(map(key, pages[number + 1])), kind.arguments))
                await until_sent()
            for record_id, record in zip(page, records, strict=True):
                try:
                    found = kind.decode(record_id, record)
                except _DAMAGED:
                    continue
                yield found
    finally:
        if ahead is not None:
            ahead.cancel()


async def read_fleet_hold(client: Client, keys: Keys) -> Held:
    """Read the hold of the whole fleet.

    If `held_at`, `held_by` or `hold_reason` is damaged, only the mode of the hold is returned. If the mode is damaged,
    no hold is returned.
    """
    mode, *rest = [text(value or b"") for value in await client.hmget(keys.holds, HELD_TABLE.fields)]
    for values in (rest, [""] * len(rest)):
        with suppress(*_DAMAGED):
            return HELD_TABLE.from_values("", [mode, *values])
    return Held()


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Split items into chunks. The last one may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def pairs(values: Any) -> dict[bytes, bytes]:  # noqa: ANN401  redis-py returns a dict, a script a flat list
    return values if isinstance(values, dict) else dict(zip(values[::2], values[1::2], strict=True))


def text(value: bytes) -> str:
    """Decode a name that any client may have written.

    Bytes that are not UTF-8 are escaped with a backslash. No valid id contains a backslash.
    """
    return value.decode(errors="backslashreplace")


async def read_measurements(
    client: Client, agent_ids: Iterable[str], key: Callable[[str], str]
) -> dict[str, dict[str, float]]:
    """Read the measurements of any number of agents. A damaged hash counts as empty."""
    found: dict[str, dict[str, float]] = {}
    for ids in chunks(list(agent_ids), MEASUREMENTS_CHUNK):
        records = await read_records(client, map(key, ids), ())
        found.update(zip(ids, map(_measurements_of, records), strict=True))
    return found


def _measurements_of(packed: bytes) -> dict[str, float]:
    """Decode the pairs that are measurements: a valid name and a finite decimal number."""
    try:
        values = _VALUES.decode(packed)
    except _DAMAGED:
        return {}
    found: dict[str, float] = {}
    for raw_name, value in zip(values[::2], values[1::2], strict=True):
        if len(raw_name) <= MAX_MEASUREMENT_NAME and (name := _measurement_name(raw_name)):
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
