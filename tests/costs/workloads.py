"""The batches of which the costs are counted: 512 messages, one of each of 512 registered agents."""

from typing import Final, Literal, NamedTuple

import msgspec

from bench.workloads import agent_id, measurements, refusals, registrations, response, transition

AGENTS: Final = 512
_HEARTBEATS: Final = 3
RECENT_IDS: Final = 1 + _HEARTBEATS
"""`protocol.recent_ids` of the engine: so few that each id that a measured batch adds displaces an older one."""


class Batch(NamedTuple):
    """Messages of one queue."""

    messages: list[bytes]
    queue: Literal["response_queue", "request_queue"] = "response_queue"


class Workload(NamedTuple):
    """What the engine applies before, and the batch that is measured."""

    before: list[Batch]
    measured: Batch
    outcome: str = "applied"
    """The outcome of each message of the measured batch."""


def _heartbeats(batch: int) -> Batch:
    return Batch([response(batch * AGENTS + number, "heartbeat", number, {}) for number in range(AGENTS)])


def _transitions(batch: int) -> Batch:
    """Return state changes. The machine allows them if the batches are numbered from 1."""
    return Batch([transition(batch * AGENTS + number, AGENTS) for number in range(AGENTS)])


def _about_commands(kind: str, first: int) -> Batch:
    return Batch([response(first + number, kind, number, {}, command_id=f"c{number}") for number in range(AGENTS)])


def _measurements(batch: int) -> Batch:
    return Batch(list(measurements((batch + 1) * AGENTS, AGENTS).responses[batch * AGENTS :]))


def _send(number: int) -> bytes:
    payload = {"agent_id": agent_id(number), "command": {"type": "work"}}
    return msgspec.json.encode({"id": f"c{number}", "type": "send", "payload": payload})


_KNOWN: Final = [Batch(registrations(AGENTS)), *map(_heartbeats, range(100, 100 + _HEARTBEATS))]
_SENDS: Final = Batch([_send(number) for number in range(AGENTS)], "request_queue")
_ACKS: Final = _about_commands("ack", 10_000)

WORKLOADS: Final = {
    "heartbeats": Workload(_KNOWN, _heartbeats(1)),
    "state_changes": Workload([*_KNOWN, _transitions(1)], _transitions(2)),
    "refusals": Workload(_KNOWN, Batch(list(refusals(AGENTS, AGENTS).responses)), "refused"),
    "duplicates": Workload([*_KNOWN, _transitions(1)], _transitions(1), "duplicate"),
    "measurements": Workload([*_KNOWN, _measurements(0)], _measurements(1)),
    "sends": Workload(_KNOWN, _SENDS),
    "acks": Workload([*_KNOWN, _SENDS], _ACKS),
    "results": Workload([*_KNOWN, _SENDS, _ACKS], _about_commands("result", 20_000)),
}
