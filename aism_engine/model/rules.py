"""The rules that decisions obey, beside the machines: what the settings say, in the words of the model."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field

from aism_engine.model.commands import OnLost
from aism_engine.model.divergence import Thresholds
from aism_engine.model.machine import Machines


class Rules(Struct, frozen=True, kw_only=True):
    """The settings that decisions depend on. Durations in seconds."""

    machines: Machines
    auto_register: bool = True
    max_agents: int = 200_000
    command_ttl_s: float = 3600.0
    retention_s: float = 86_400.0
    max_result_bytes: int = 16_384
    max_queued: int = 1000
    max_in_flight: int = 32
    ack_timeout_s: float = 30.0
    timeout_s: float = 3600.0
    extend_on_progress: bool = True
    max_attempts: int = 5
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 60.0
    on_lost: OnLost = "hold"
    reply_ttl_s: float = 300.0
    inbox_keep: int = 1000
    max_measures: int = 64
    max_hops: int = 64
    pair_per_s: float = 10.0
    pair_burst: int = 100
    events: bool = True
    divergence: Thresholds = Thresholds()
    handlers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """What to do with responses of types that are not ours: see `responses.Handler`."""
