"""The batches whose costs are counted. Each has 512 messages, one from each of 512 registered agents."""

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


def _measurements(batch: int) -> Batch:
    return Batch(list(measurements((batch + 1) * AGENTS, AGENTS).responses[batch * AGENTS :]))


def _refusals(batch: int) -> Batch:
    return Batch(list(refusals((batch + 1) * AGENTS, AGENTS).responses[batch * AGENTS :]))


def _about_commands(kind: str, batch: int) -> Batch:
    """Return responses about the commands of `_sends` with the same number. Each kind has message ids of its own."""
    first = (10 + batch) * AGENTS + (0 if kind == "ack" else 10**6)
    return Batch([response(first + n, kind, n, {}, command_id=f"c{batch}-{n}") for n in range(AGENTS)])


def _sends(batch: int) -> Batch:
    """Return requests that send a command to each agent."""
    payloads = [{"agent_id": agent_id(number), "command": {"type": "work"}} for number in range(AGENTS)]
    requests = [{"id": f"c{batch}-{n}", "type": "send", "payload": payload} for n, payload in enumerate(payloads)]
    return Batch(list(map(msgspec.json.encode, requests)), "request_queue")


_KNOWN: Final = [Batch(registrations(AGENTS)), *map(_heartbeats, range(100, 100 + _HEARTBEATS))]
_DONE: Final = [_sends(0), _about_commands("ack", 0), _about_commands("result", 0)]

# A batch of the same kind always comes before the one that is measured: it fills the caches.
WORKLOADS: Final = {
    "heartbeats": Workload(_KNOWN, _heartbeats(1)),
    "state_changes": Workload([*_KNOWN, *map(_transitions, (1, 2))], _transitions(3)),
    "refusals": Workload([*_KNOWN, _refusals(0)], _refusals(1), "refused"),
    "duplicates": Workload([*_KNOWN, *map(_transitions, (1, 1))], _transitions(1), "duplicate"),
    "measurements": Workload([*_KNOWN, _measurements(0)], _measurements(1)),
    "sends": Workload([*_KNOWN, *_DONE], _sends(1)),
    "acks": Workload([*_KNOWN, *_DONE, _sends(1)], _about_commands("ack", 1)),
    "results": Workload([*_KNOWN, *_DONE, _sends(1), _about_commands("ack", 1)], _about_commands("result", 1)),
}
