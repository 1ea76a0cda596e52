"""Which faults happen when: made from a seed, so that a trial can be repeated."""

import random
from dataclasses import dataclass
from typing import Final

SPAN_S: Final = 3.0
"""How long faults may begin; the load goes on for as long, and everything is calm after that."""
_LEASE_S: Final = 1.0
_LONG_LEASE_S: Final = 2.5
"""A failover is over before such a lease is: the leader goes on under the same epoch, on a server that has gone back in
time. Whoever replaces a leader that is killed needs less than the five seconds of G5 even so.
"""

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
"""Every fault of one server, and how often it is drawn. Signals go to processes; from `drop_reply` on it is the wires
of the engines.
"""

FAILOVERS: Final = {"failover_kill": 2, "failover_stop": 1, "failover_order": 1}
"""How a primary is lost, where there is a replica that takes its place: by kill -9, by SIGSTOP for longer than
sentinels wait, by SENTINEL FAILOVER.
"""
BESIDE: Final = {
    "kill_leader": 4,
    "kill_standby": 1,
    "kill_both": 1,
    "stop_leader": 3,
    "stop_both": 1,
    "terminate_leader": 1,
    "client_kill": 2,
    "script_flush": 1,
}
"""What happens beside failovers. Nothing here makes the server slow: sentinels would take it for dead."""
_SENTINELS_EVERY: Final = 5
"""One of so many seeds is for a trial with failovers: whoever takes a few in a row has some of them."""


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
    sentinels: bool
    """Whether there are a replica and sentinels, and so failovers, or one server behind wires."""
    faults: tuple[Fault, ...]
    lease_s: float
    batch_messages: int
    protocol: int
    agents: int
    leisure: float
    """By how much agents speak less than they could: an engine that is idle at times does other things than a busy one.
    """


def plan(seed: int) -> Plan:
    """Draw a trial."""
    rng = random.Random(seed)
    sentinels = seed % _SENTINELS_EVERY == 0
    lease_s = rng.choice((_LEASE_S, _LONG_LEASE_S)) if sentinels else _LEASE_S
    faults = []
    for kind in _with_failovers(rng, seed) if sentinels else _drawn(rng, KINDS, rng.randint(4, 8)):
        lasts = {
            "kill_leader": rng.uniform(0.0, 0.8),  # until it is started again
            "kill_standby": rng.uniform(0.0, 0.8),
            "kill_both": rng.uniform(0.0, 0.4),
            "terminate_leader": rng.uniform(0.0, 0.4),
            "stop_leader": lease_s * rng.uniform(1.1, 1.6),
            "stop_both": lease_s * rng.uniform(0.2, 1.3),
            "kill_server": rng.uniform(0.0, 0.5),  # until it is started again
            "stop_server": rng.uniform(0.1, 1.2),
            "client_pause": rng.uniform(0.1, 0.9),
            "black_hole": rng.uniform(0.1, 1.5),
            "black_hole_both": rng.uniform(0.1, 1.0),
            "starve_lease": lease_s * rng.uniform(1.2, 2.2),
            "late_request": rng.uniform(0.1, 1.5),
            "late_reply": rng.uniform(0.1, 1.0),
            "delay": rng.uniform(0.2, 1.0),
            "throttle": rng.uniform(0.2, 1.0),
            "failover_kill": rng.uniform(0.0, 0.8),  # from the promotion until the old primary comes back
            "failover_stop": rng.uniform(0.0, 0.8),
        }.get(kind, 0.0)
        faults.append(Fault(rng.uniform(0.1, SPAN_S), kind, lasts, rng.getrandbits(32)))
    faults.sort(key=lambda fault: fault.at)
    return Plan(
        seed=seed,
        sentinels=sentinels,
        faults=tuple(faults),
        lease_s=lease_s,
        batch_messages=rng.choice((3, 20, 512)),
        protocol=rng.choice((2, 3)),
        agents=rng.randint(16, 32),
        leisure=rng.choice((1.0, 1.0, 6.0)),
    )


def _with_failovers(rng: random.Random, seed: int) -> list[str]:
    """One or two, which happen one after the other however they are drawn, and some of what else there is. The first is
    of each kind in turn: a few trials are enough to have them all.
    """
    first = list(FAILOVERS)[seed // _SENTINELS_EVERY % len(FAILOVERS)]
    return [first, *_drawn(rng, FAILOVERS, rng.choice((0, 0, 1))), *_drawn(rng, BESIDE, rng.randint(3, 5))]


def _drawn(rng: random.Random, kinds: dict[str, int], count: int) -> list[str]:
    return rng.choices(list(kinds), list(kinds.values()), k=count)
