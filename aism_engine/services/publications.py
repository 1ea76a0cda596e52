"""Converts published state changes and measurements into messages for the response queue."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from math import isfinite
from typing import Any

import msgspec
import uuid_utils

from aism_engine.domain.protocol.codec import decode_as, encode
from aism_engine.domain.protocol.messages import MAX_MEASUREMENTS, Identifier, Measurements
from aism_engine.domain.protocol.name_forms import MEASUREMENT_NAMES


class _Publication(msgspec.Struct):
    """A state change or a measurement whose fields may have any type."""

    agent_id: Any = None
    new_state: Any = None
    values: Any = None


class _Publisher(msgspec.Struct):
    agent_id: Identifier


class _Measurement(_Publisher):
    values: Measurements

    def __post_init__(self) -> None:
        if not (MEASUREMENT_NAMES.match_all(self.values) and all(map(isfinite, self.values.values()))):
            raise ValueError("a name or a value is invalid")


class Publications:
    """The messages made from one batch, in the order of publication.

    Only the latest value of each measurement matters: the measurements of one agent with no state change in between are
    merged into one message. At most `max_malformed` malformed measurements become messages: the consumer dead-letters
    them, and the reason tells the publisher what is wrong. Further ones are only counted, because a flood of them would
    displace all other dead letters.
    """

    def __init__(self, *, max_malformed: int) -> None:
        self.messages: list[bytes] = []
        self.counts = Counter[str]()
        """Publications by outcome: `declaration`, `measurement`, `merged`, `malformed`, `dropped`."""
        self._max_malformed = max_malformed
        self._pending: list[tuple[str, dict[str, float]]] = []
        self._latest: dict[str, dict[str, float]] = {}

    def add_state_change(self, published: bytes) -> None:
        """Add a published state change. One that cannot be decoded is passed on as it is, and dead-lettered later."""
        self._flush()
        self.counts["declaration"] += 1
        try:
            change = decode_as(_Publication, published)
        except (ValueError, RecursionError):
            self.messages.append(published)
            return
        payload = {"target": change.new_state if isinstance(change.new_state, str) else None}
        self.messages.append(_message("state_transition", change.agent_id, payload, id=str(uuid_utils.uuid7())))

    def add_measurement(self, published: bytes) -> None:
        """Add a published measurement: `{"agent_id", "values": {name: number}}`."""
        try:
            measurement = decode_as(_Measurement, published)
        except (ValueError, RecursionError):
            self._add_malformed(published)
            return
        latest = self._latest.get(measurement.agent_id)
        if latest is not None and len(latest.keys() | measurement.values.keys()) <= MAX_MEASUREMENTS:
            latest.update(measurement.values)
            self.counts["merged"] += 1
        else:
            self._latest[measurement.agent_id] = measurement.values
            self._pending.append((measurement.agent_id, measurement.values))
            self.counts["measurement"] += 1

    def finish(self) -> list[bytes]:
        """Return all messages, oldest first."""
        self._flush()
        return self.messages

    def _flush(self) -> None:
        # Only state changes get an id, which becomes the `cause` of their events. Ids are not needed to detect
        # duplicates, because each publication is queued once.
        self.messages += (_message("measurement", agent_id, values) for agent_id, values in self._pending)
        self._pending.clear()
        self._latest.clear()

    def _add_malformed(self, published: bytes) -> None:
        self.counts["malformed"] += 1
        if self.counts["malformed"] > self._max_malformed:
            return
        try:
            malformed = decode_as(_Publication, published)
            self.messages.append(_message("measurement", malformed.agent_id, malformed.values))
        except (ValueError, RecursionError, TypeError):  # MessagePack has values and keys that JSON cannot express
            self.messages.append(published)


def noisiest_publisher(published: Iterable[bytes]) -> str | None:
    """Return the agent id that occurs most often; None if no publication has one."""
    counts = Counter[str]()
    for each in published:
        with suppress(ValueError, RecursionError):
            counts[decode_as(_Publisher, each).agent_id] += 1
    return max(counts, key=counts.__getitem__, default=None)


def _message(kind: str, agent_id: object, payload: object, **fields: str) -> bytes:
    agent_id = agent_id if isinstance(agent_id, str) else None
    return encode({"type": kind, "agent_id": agent_id, "payload": payload, "via": "channel", **fields})
