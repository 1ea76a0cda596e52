"""The policy that decisions apply: the state machines, and the sections of the settings that decisions read.

These structs *are* sections of the settings file, so a limit has one name and one default. `aism_engine/settings.py`
adds the sections that only services read.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

from aism_engine.domain.commands.command import OnLost
from aism_engine.domain.machines.machine import Machines
from aism_engine.durations import format_duration

# The upper bounds are arbitrary: they reject infinity and typos, not large fleets.
DURATION: Final = Meta(gt=0, le=1e9)
"""Marks a setting that may also be written with a unit: `500ms`, `2h`."""
Seconds = Annotated[float, DURATION]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=536_870_912)]  # the largest string that Redis stores is 512 MiB
SmallCount = Annotated[int, Meta(ge=1, le=16)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Limit = Annotated[float, Meta(gt=0, le=1e15)]
Ratio = Annotated[float, Meta(gt=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]
States = tuple[Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")], ...]

AdmissionWay: TypeAlias = Literal["heartbeat", "response", "channel", "request"]
"""How an unknown agent is first seen: it has sent a heartbeat or a response, has published, or a request names it."""

SilentAfter = Annotated[Seconds, "Time without a sign of life until an agent is silent"]
LostAfter = Annotated[Seconds, "Time without a sign of life until an agent is lost; more than silent_after"]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the settings file. Durations are seconds, sizes are bytes."""


class ProtocolSettings(Section, frozen=True):
    """Limits of the protocol: messages, replies, events."""

    max_message_bytes: Annotated[Bytes, "Largest message that is read; a larger one is moved to the oversized list"] = (
        1_048_576
    )
    recent_ids: Annotated[Count, "Message ids remembered per agent, to recognise duplicates"] = 64
    reply_ttl: Annotated[Seconds, "Time until an unread reply is deleted"] = 300.0
    publish_events: Annotated[bool, "Whether the engine publishes state changes and measurements"] = True


class AgentsSettings(Section, frozen=True):
    """Which agents belong to the fleet."""

    auto_register: Annotated[
        bool | tuple[AdmissionWay, ...],
        "Whether unregistered agents join, or a list of allowed ways: heartbeat, response, channel, request",
    ] = True
    max_agents: Annotated[Count, "Maximum number of known agents"] = 200_000

    def admits_by(self, way: AdmissionWay) -> bool:
        """Return whether an agent that has not registered is added when it is first seen in this way."""
        return self.auto_register if isinstance(self.auto_register, bool) else way in self.auto_register


class CommandsSettings(Section, frozen=True):
    """Defaults and limits of commands."""

    ttl: Annotated[Seconds, "Time until an unfinished command expires"] = 3600.0
    retention: Annotated[Seconds, "Time for which the record of an ended command is kept"] = 86_400.0
    max_result_bytes: Annotated[Bytes, "Largest result that is kept in the record"] = 16_384
    max_queued: Annotated[Count, "Maximum number of open commands per agent"] = 1000
    max_in_flight: Annotated[Count, "Maximum number of commands in flight per agent"] = 32
    ack_timeout: Annotated[Seconds, "Time from delivery to acknowledgement"] = 30.0
    timeout: Annotated[Seconds, "Execution time after which the command fails"] = 3600.0
    extend_on_progress: Annotated[bool, "Whether a progress message restarts the execution timeout"] = True
    max_attempts: Annotated[Count, "Maximum number of deliveries to an agent that acknowledges commands"] = 5
    backoff_initial: Annotated[
        Seconds, "Upper limit of the random pause before the second attempt; doubles with each attempt"
    ] = 1.0
    backoff_max: Annotated[Seconds, "Upper limit of the random pause before any attempt"] = 60.0
    on_lost: Annotated[OnLost, "When the agent is lost: hold the command until its ttl, or fail it"] = "hold"


class MailSettings(Section, frozen=True):
    """Limits of messages from one agent to another. See docs/protocol.md."""

    max_hops: Annotated[Count, "Maximum number of hops in one thread"] = 64
    pair_per_second: Annotated[Rate, "Sustained messages per second from one agent to one other agent"] = 10.0
    pair_burst: Annotated[Count, "Messages that one agent may send to one other at once"] = 100
    max_unread: Annotated[Count, "Maximum number of unread messages of an agent"] = 1000


class MeasurementsSettings(Section, frozen=True):
    """What agents measure. The latest value of each name is kept."""

    max_names: Annotated[Count, "Maximum number of measurement names kept per agent"] = 64
    published_per_second: Annotated[Count, "Maximum number of published measurements read per second"] = 5000


class LivenessLimits(Section, frozen=True):
    """How long the agents of one type may be silent."""

    silent_after: SilentAfter
    lost_after: LostAfter

    def __post_init__(self) -> None:
        if self.lost_after <= self.silent_after:
            expected = f"expected more than silent_after ({format_duration(self.silent_after)})"
            raise ValueError(f"lost_after: {expected}, got {format_duration(self.lost_after)}")


class LivenessSettings(LivenessLimits, frozen=True):
    """When an agent is silent or lost, and when the engine limits losses because it may be wrong itself."""

    silent_after: SilentAfter = 15.0
    lost_after: LostAfter = 45.0
    scan_interval: Annotated[Seconds, "Time between scans of the heartbeats"] = 1.0
    batch: Annotated[Count, "Heartbeats read per step"] = 1000
    brake_ratio: Annotated[Ratio, "Share of silent agents above which losses are rate-limited"] = 0.3
    brake_min_agents: Annotated[Count, "Number of watched agents below which losses are never limited"] = 10
    brake_full_ratio: Annotated[Ratio, "Share of silent agents above which nobody is lost"] = 0.9
    brake_losses_per_scan: Annotated[Count, "Maximum number of losses per scan while they are rate-limited"] = 10
    by_type: Annotated[
        dict[str, LivenessLimits],
        'Limits per agent type: { scribe = { silent_after = "60s", lost_after = "3m" } }',
    ] = field(default_factory=dict)

    def limits(self, agent_type: str) -> LivenessLimits:
        return self.by_type.get(agent_type, self)


class DivergenceSettings(Section, frozen=True):
    """When an agent's declarations and what the engine measures disagree. See docs/divergences.md."""

    poll_interval: Annotated[Seconds, "Time between checks"] = 1.0
    batch: Annotated[Count, "Agents checked per step"] = 5000
    idle_at_work: Annotated[bool, "Rule: declares a working state and shows no activity"] = True
    working_states: Annotated[States, "States that mean that the agent works"] = ("deep_work",)
    idle_evidence_after: Annotated[Seconds, "Time without activity that counts as evidence"] = 600.0
    heartbeat_while_absent: Annotated[bool, "Rule: declares an absent state and sends heartbeats"] = True
    absent_states: Annotated[States, "States that mean that the agent is absent"] = ("offline",)
    heartbeat_evidence_after: Annotated[Seconds, "Time of continued heartbeats that counts as evidence"] = 120.0
    forbidden_state: Annotated[bool, "Rule: publishes a state that its machine does not allow"] = True
    forbidden_evidence_after: Annotated[Seconds, "Time without a further transition that counts as evidence"] = 30.0
    never_acks: Annotated[bool, "Rule: takes commands and never acknowledges one"] = True
    unacked_commands: Annotated[SmallCount, "Number of consecutive commands that counts as evidence"] = 3
    never_finishes: Annotated[bool, "Rule: acknowledges commands and never finishes one"] = True
    unfinished_commands: Annotated[SmallCount, "Number of consecutive commands that counts as evidence"] = 3
    duplicate_instance: Annotated[bool, "Rule: two instances respond under one agent id"] = True
    instance_switches: Annotated[SmallCount, "Number of returns to an earlier instance that counts as evidence"] = 3
    switch_window: Annotated[
        Seconds, "Time for which a return counts; after this time without one, the divergence closes"
    ] = 300.0
    context_too_large: Annotated[bool, "Rule: measures too large a context and does not condense it"] = True
    context_measurement: Annotated[Name, "Measurement that reports the context size"] = "context_tokens"
    context_limit: Annotated[Limit, "Largest context, in the unit of that measurement"] = 150_000.0
    distill_states: Annotated[States, "States in which an agent condenses its context"] = ("distill",)
    context_evidence_after: Annotated[Seconds, "Time above the limit that counts as evidence"] = 120.0


class Policy(Struct, frozen=True, kw_only=True):
    """Everything that a decision depends on besides the fleet."""

    machines: Machines
    protocol: ProtocolSettings = ProtocolSettings()
    agents: AgentsSettings = AgentsSettings()
    commands: CommandsSettings = CommandsSettings()
    mail: MailSettings = MailSettings()
    measurements: MeasurementsSettings = MeasurementsSettings()
    divergence: DivergenceSettings = DivergenceSettings()
    handlers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Handlers of further response types, each a `responses.ResponseHandler`."""
