"""What agents only publish, turned into the messages that it stands for: the consumer will judge them."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from math import isfinite
from typing import Any, Final

import msgspec
import uuid_utils

from aism_engine.domain.protocol.codec import decode_as, encode
from aism_engine.domain.protocol.messages import MAX_MEASUREMENTS, Identifier, Measurements

_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Declared(msgspec.Struct):
    agent_id: Any = None
    new_state: Any = None


class _Measured(msgspec.Struct):
    agent_id: Identifier
    values: Measurements


class _Signed(msgspec.Struct):
    agent_id: Identifier


class _Claimed(msgspec.Struct):
    """A measurement in which something is wrong."""

    agent_id: Any = None
    values: Any = None


class Publications:
    """The messages of one batch, in the order in which they were published.

    Of what an agent measures, the latest value of each name is enough: measurements of one agent with no state change
    between them become one message. What is no measurement at all is passed on once in a while, so that its sender
    finds it buried with its reason; the rest is only counted, since a flood of it would wash other letters away.
    """

    def __init__(self, *, nonsense: int) -> None:
        """`nonsense` is how much of what is no measurement may be passed on."""
        self.messages: list[bytes] = []
        self.heard = Counter[str]()
        """What became of how many: `declaration`, `measurement`, `merged`, `malformed`."""
        self._nonsense = nonsense
        self._pending: list[tuple[str, dict[str, float]]] = []
        self._latest: dict[str, dict[str, float]] = {}

    def declare(self, published: bytes) -> None:
        """Take in a published state change. What is none goes on as it is, and will be buried: it could not be decoded,
        or is no object.
        """
        self._flush()
        self.heard["declaration"] += 1
        try:
            said = decode_as(_Declared, published)
        except _ERRORS:
            self.messages.append(published)
            return
        payload = {"target": said.new_state if isinstance(said.new_state, str) else None}
        self.messages.append(_message("state_transition", said.agent_id, payload, id=str(uuid_utils.uuid7())))

    def measure(self, published: bytes) -> None:
        """Take in a published measurement: `{"agent_id", "values": {name: number}}`."""
        try:
            said = decode_as(_Measured, published)
        except _ERRORS:
            self._pass_on(published)
            return
        if not all(map(isfinite, said.values.values())):
            self._pass_on(published)
            return
        latest = self._latest.get(said.agent_id)
        if latest is not None and len(latest.keys() | said.values.keys()) <= MAX_MEASUREMENTS:
            latest.update(said.values)
            self.heard["merged"] += 1
        else:
            self._latest[said.agent_id] = said.values
            self._pending.append((said.agent_id, said.values))
            self.heard["measurement"] += 1

    def close(self) -> list[bytes]:
        """Give all messages, the first one first."""
        self._flush()
        return self.messages

    def _flush(self) -> None:
        # Without an id: a ring of the last ids of an agent is for what it pushes, and may push again.
        self.messages += (_message("measurement", agent_id, values) for agent_id, values in self._pending)
        self._pending.clear()
        self._latest.clear()

    def _pass_on(self, published: bytes) -> None:
        self.heard["malformed"] += 1
        if self.heard["malformed"] > self._nonsense:
            return
        try:
            said = decode_as(_Claimed, published)
            self.messages.append(_message("measurement", said.agent_id, said.values))
        except (*_ERRORS, TypeError):  # MessagePack has values and keys that JSON has not
            self.messages.append(published)


def loudest(published: Iterable[bytes]) -> str | None:
    """Tell by whom most of it is, as far as it says."""
    counts = Counter[str]()
    for each in published:
        with suppress(*_ERRORS):
            counts[decode_as(_Signed, each).agent_id] += 1
    return max(counts, key=counts.__getitem__, default=None)


def _message(kind: str, agent_id: object, payload: object, **fields: str) -> bytes:
    agent_id = agent_id if isinstance(agent_id, str) else None
    return encode({"type": kind, "agent_id": agent_id, "payload": payload, "via": "pubsub", **fields})
