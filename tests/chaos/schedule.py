"""Which faults happen when: made from a seed, so that a trial can be repeated."""

import random
from dataclasses import dataclass
from typing import Final

SPAN_S: Final = 3.0
"""How long faults may begin; the load goes on for as long, and everything is calm after that."""
LEASE_S: Final = 1.0

KINDS: Final = {
    "kill_leader": 6,
    "kill_standby": 1,
    "kill_both": 2,
    "stop_leader": 4,
    "stop_both": 1,
    "terminate_leader": 2,
    "kill_server": 3,
    "stop_server": 2,
    "restart_server": 1,
    "client_kill": 2,
    "client_pause": 2,
    "script_flush": 2,
    "drop_reply": 5,
    "black_hole": 3,
    "black_hole_both": 1,
    "late_request": 3,
    "late_reply": 2,
    "starve_lease": 3,
    "reset": 2,
    "cut": 2,
    "delay": 2,
    "throttle": 1,
}
"""Every fault, and how often it is drawn. Signals go to processes; from `drop_reply` on it is the wires of the engines.
"""


@dataclass(frozen=True)
class Fault:
    """One fault: `kind`, when it begins (seconds into the trial), how long it lasts; 0 for those that are instants."""

    at: float
    kind: str
    for_s: float
    salt: int
    """For what is to be chosen when it happens."""


@dataclass(frozen=True)
class Plan:
    """One trial: its faults in order, and the settings of its engines that are drawn, too."""

    seed: int
    faults: tuple[Fault, ...]
    batch_messages: int
    protocol: int
    agents: int
    leisure: float
    """By how much agents speak less than they could: an engine that is idle at times does other things than a busy one.
    """


def plan(seed: int) -> Plan:
    """Draw a trial."""
    rng = random.Random(seed)
    faults = []
    for kind in rng.choices(list(KINDS), list(KINDS.values()), k=rng.randint(4, 8)):
        lasts = {
            "kill_leader": rng.uniform(0.0, 0.8),  # until it is started again
            "kill_standby": rng.uniform(0.0, 0.8),
            "kill_both": rng.uniform(0.0, 0.4),
            "terminate_leader": rng.uniform(0.0, 0.4),
            "stop_leader": LEASE_S * rng.uniform(1.1, 1.6),
            "stop_both": LEASE_S * rng.uniform(0.2, 1.3),
            "kill_server": rng.uniform(0.0, 0.5),  # until it is started again
            "stop_server": rng.uniform(0.1, 1.2),
            "client_pause": rng.uniform(0.1, 0.9),
            "black_hole": rng.uniform(0.1, 1.5),
            "black_hole_both": rng.uniform(0.1, 1.0),
            "starve_lease": LEASE_S * rng.uniform(1.2, 2.2),
            "late_request": rng.uniform(0.1, 1.5),
            "late_reply": rng.uniform(0.1, 1.0),
            "delay": rng.uniform(0.2, 1.0),
            "throttle": rng.uniform(0.2, 1.0),
        }.get(kind, 0.0)
        faults.append(Fault(rng.uniform(0.1, SPAN_S), kind, lasts, rng.getrandbits(32)))
    faults.sort(key=lambda fault: fault.at)
    return Plan(
        seed=seed,
        faults=tuple(faults),
        batch_messages=rng.choice((3, 20, 512)),
        protocol=rng.choice((2, 3)),
        agents=rng.randint(16, 32),
        leisure=rng.choice((1.0, 1.0, 6.0)),
    )
