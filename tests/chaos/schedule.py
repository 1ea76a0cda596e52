"""Which faults happen when. A plan is made from a seed, so that a trial can be repeated."""

import random
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

SPAN_S: Final = 3.0
"""Faults begin within this time. The load lasts until the last one is over."""
_LEASE_S: Final = 1.0
_LONG_LEASE_S: Final = 2.5
"""Outlasts a failover: the leader continues with the same epoch, on a server that lost its latest writes."""
_FAULTS: Final = 6
"""Faults of a trial with one server: with that many, four trials in a row have every kind."""
_SENTINELS_EVERY: Final = 5
"""Every fifth seed is a trial with failovers."""

FAULTS: Final = (
    *("kill_leader", "drop_reply", "suspend_leader", "kill_server", "starve_lease", "late_request"),
    *("black_hole", "kill_both", "client_kill", "suspend_server", "delay", "drop_reply"),
    *("kill_leader", "late_reply", "client_pause", "terminate_leader", "reset", "cut"),
    *("script_flush", "throttle", "restart_server", "kill_standby", "black_hole_both", "suspend_both"),
)
"""The faults of one server and its engines, in the order in which trials have them; frequent ones stand here twice."""
FAILOVERS: Final = ("failover_kill", "failover_suspend", "failover_order")
"""How a primary with a replica is lost: by kill -9, by SIGSTOP for longer than sentinels wait, by SENTINEL FAILOVER."""
BESIDE: Final = (
    *("kill_leader", "kill_leader", "kill_both", "kill_standby", "suspend_leader", "suspend_leader", "suspend_both"),
    *("terminate_leader", "client_kill", "script_flush"),
)
"""Faults beside failovers."""
_DURATIONS_S: Final = {
    **dict.fromkeys(("kill_leader", "kill_standby", "failover_kill", "failover_suspend"), (0.0, 0.8)),
    **dict.fromkeys(("kill_both", "terminate_leader"), (0.0, 0.4)),
    **dict.fromkeys(("black_hole", "late_request"), (0.1, 1.5)),
    **dict.fromkeys(("black_hole_both", "late_reply", "delay", "throttle", "client_pause"), (0.1, 1.0)),
    "kill_server": (0.0, 0.5),
    "suspend_server": (0.1, 1.2),
    "drop_reply": (0.3, 0.3),
}
"""How long a fault lasts, at least and at most. What was killed is started again after that time. Others: no time."""
_DURATIONS_IN_LEASES: Final = {"suspend_leader": (1.1, 1.6), "suspend_both": (0.2, 1.3), "starve_lease": (1.2, 2.2)}


@dataclass(frozen=True)
class Fault:
    """One fault: it begins `at` seconds into the trial and lasts `for_s` seconds; `seed` decides its details."""

    at: float
    kind: str
    for_s: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """One trial: its faults in order, and what varies in the settings of its engines."""

    seed: int
    sentinels: bool
    """Whether there are a replica and sentinels, and so failovers, or one server behind proxies."""
    faults: tuple[Fault, ...]
    lease_s: float
    batch_messages: int
    protocol: int
    agents: int
    pause_factor: float
    """How much slower than possible agents send: an engine that is idle at times behaves differently."""


def plan(seed: int) -> Plan:
    """Make the plan of a trial."""
    rng = random.Random(seed)
    sentinels = seed % _SENTINELS_EVERY == 0
    lease_s = rng.choice((_LEASE_S, _LONG_LEASE_S)) if sentinels else _LEASE_S
    if sentinels:
        first = FAILOVERS[seed // _SENTINELS_EVERY % len(FAILOVERS)]  # a few trials have all kinds
        kinds = [first, *rng.choices(FAILOVERS, k=rng.randint(0, 1)), *rng.choices(BESIDE, k=rng.randint(3, 5))]
    else:
        start = _FAULTS * (seed - seed // _SENTINELS_EVERY) % len(FAULTS)
        kinds = list(islice(cycle(FAULTS), start, start + _FAULTS))
    durations_s = _DURATIONS_S | {
        kind: (shortest * lease_s, longest * lease_s) for kind, (shortest, longest) in _DURATIONS_IN_LEASES.items()
    }
    faults = (
        Fault(rng.uniform(0.1, SPAN_S), kind, rng.uniform(*durations_s.get(kind, (0.0, 0.0))), rng.getrandbits(32))
        for kind in kinds
    )
    return Plan(
        seed=seed,
        sentinels=sentinels,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        lease_s=lease_s,
        batch_messages=rng.choice((3, 20, 512)),
        protocol=rng.choice((2, 3)),
        agents=rng.randint(16, 32),
        pause_factor=rng.choice((1.0, 1.0, 6.0)),
    )
