"""What can be set: a struct for each section of the file, with each default, and in words what it is.

Durations are seconds, sizes are bytes. How they are read is in config.py.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from aism_engine.redact import NOT_PLAIN, is_plain

# The upper bounds are arbitrary: they keep out infinity and slips of the hand, not big fleets.
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=536_870_912)]  # Redis takes no string of more than 512 MiB
Few = Annotated[int, Meta(ge=1, le=16)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Limit = Annotated[float, Meta(gt=0, le=1e15)]
Ratio = Annotated[float, Meta(gt=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]
Url = Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")]
Address = Annotated[str, Meta(pattern=r"^\S+:\d{1,5}\Z")]
Prefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._{}:-]{1,64}\Z")]
States = tuple[Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")], ...]
Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]
OnLost = Literal["hold", "fail"]
SilentAfter = Annotated[Seconds, Meta(description="No sign of life for so many seconds: silent")]
LostAfter = Annotated[Seconds, Meta(description="No sign of life for so many seconds: lost; more than silent_after")]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


class RedisSettings(Section, frozen=True):
    """The server, and how it is spoken to."""

    url: Annotated[Url, Meta(description="Server: redis://, rediss:// (TLS) or unix://")] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[Prefix, Meta(description="First part of every key and channel: the fleet's name")] = "aism"
    protocol: Annotated[Literal[2, 3], Meta(description="Version of the Redis protocol: 2 or 3")] = 2
    connect_timeout: Annotated[Seconds, Meta(description="Longest wait for a connection, in seconds")] = 2.0
    socket_timeout: Annotated[Seconds, Meta(description="Longest wait for a reply, in seconds")] = 3.0
    retry_backoff_max: Annotated[Seconds, Meta(description="Longest pause before reconnecting, in seconds")] = 1.0
    sentinels: Annotated[
        tuple[Address, ...],
        Meta(description="Sentinels to ask for the primary, each host:port; none: by url"),
    ] = ()
    sentinel_master: Annotated[str, Meta(description="Name of the primary at the sentinels")] = ""
    sentinel_password: Annotated[str, Meta(description="Password of the sentinels, if they want one")] = ""

    def __post_init__(self) -> None:
        if not is_plain(self.url):
            raise ValueError(f"url: {NOT_PLAIN}")
        if self.sentinels and not self.sentinel_master:
            raise ValueError("sentinel_master: must name the primary where there are sentinels")


class HttpSettings(Section, frozen=True):
    """The HTTP face: /metrics, /livez, /readyz."""

    enabled: Annotated[bool, Meta(description="Whether to serve HTTP at all")] = True
    host: Annotated[Name, Meta(description="Address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes any free one")] = 9464


class LeaseSettings(Section, frozen=True):
    """Leadership: which of several engines writes."""

    ttl: Annotated[Seconds, Meta(description="Seconds that a lease lasts: a crashed leader is replaced by then")] = 5.0
    renew_every: Annotated[Seconds, Meta(description="Seconds between renewals; less than half of ttl")] = 1.0

    def __post_init__(self) -> None:
        if self.renew_every >= self.ttl / 2:
            raise ValueError(f"renew_every: expected less than half of ttl ({self.ttl}), got {self.renew_every}")


class ConsumerSettings(Section, frozen=True):
    """Reads what agents say."""

    batch_messages: Annotated[Count, Meta(description="Most messages in one commit")] = 512
    batch_bytes: Annotated[Bytes, Meta(description="Most bytes read for one commit")] = 4_194_304
    max_message_bytes: Annotated[Bytes, Meta(description="A message of more bytes is set aside, unread")] = 1_048_576
    poll_interval: Annotated[Seconds, Meta(description="Seconds between looks when nothing wakes it")] = 0.05
    recent_ids: Annotated[Count, Meta(description="Message ids remembered per agent, to know a second copy")] = 64
    oversized_keep: Annotated[Count, Meta(description="Oversized messages kept whole")] = 16


class DispatcherSettings(Section, frozen=True):
    """Reads what operators ask for."""

    batch_messages: Annotated[Count, Meta(description="Most requests, or targets of one, in one commit")] = 128
    batch_bytes: Annotated[Bytes, Meta(description="Most bytes read for one commit")] = 4_194_304
    poll_interval: Annotated[Seconds, Meta(description="Seconds between looks when nothing wakes it")] = 0.25
    errands_interval: Annotated[Seconds, Meta(description="Seconds between looks at requests to many")] = 0.25
    reply_ttl: Annotated[Seconds, Meta(description="Seconds that a reply waits to be read")] = 300.0


class AgentsSettings(Section, frozen=True):
    """Who belongs to the fleet."""

    auto_register: Annotated[bool, Meta(description="Whether to take in an agent at first sight")] = True
    max_agents: Annotated[Count, Meta(description="Most agents known at a time")] = 200_000
    inbox_keep: Annotated[Count, Meta(description="Most unread messages of an agent; more are refused")] = 1000
    forget_after: Annotated[Seconds, Meta(description="An agent away for so many seconds is forgotten")] = 604_800.0
    metadata_every: Annotated[
        Seconds, Meta(description="Seconds between readings of the metadata hashes, at least")
    ] = 60.0


class MessagesSettings(Section, frozen=True):
    """What agents may send each other: see docs/protocol.md."""

    max_hops: Annotated[Count, Meta(description="Most messages of a thread that follow one another")] = 64
    pair_per_second: Annotated[Rate, Meta(description="Messages from one agent to another, in a second, lastingly")] = (
        10.0
    )
    pair_burst: Annotated[Count, Meta(description="Messages from one agent to another, at once")] = 100


class MeasurementsSettings(Section, frozen=True):
    """What agents measure: the latest value of each name is kept."""

    max_names: Annotated[Count, Meta(description="Most names kept of an agent; further ones are refused")] = 64
    heard_per_second: Annotated[
        Count, Meta(description="Most measurements heard on the channel in a second; more are left unheard")
    ] = 5000


class LivenessLimits(Section, frozen=True):
    """How long the agents of one type may be silent."""

    silent_after: SilentAfter
    lost_after: LostAfter

    def __post_init__(self) -> None:
        if self.lost_after <= self.silent_after:
            expected = f"expected more than silent_after ({self.silent_after})"
            raise ValueError(f"lost_after: {expected}, got {self.lost_after}")


class LivenessSettings(LivenessLimits, frozen=True):
    """Who is fresh, silent or lost, and when the engine doubts itself instead."""

    silent_after: SilentAfter = 15.0
    lost_after: LostAfter = 45.0
    scan_interval: Annotated[Seconds, Meta(description="Seconds between scans of the heartbeats")] = 1.0
    chunk: Annotated[Count, Meta(description="Heartbeats read at a time")] = 1000
    brake_ratio: Annotated[Ratio, Meta(description="Losses are slowed when more than this share is silent")] = 0.3
    brake_min_agents: Annotated[Count, Meta(description="Losses are slowed only among at least so many agents")] = 10
    full_ratio: Annotated[Ratio, Meta(description="Nobody is lost when more than this share is silent")] = 0.9
    losses_per_scan: Annotated[Count, Meta(description="Most agents lost in one scan while losses are slowed")] = 10
    by_type: Annotated[
        dict[str, LivenessLimits],
        Meta(description="Limits in seconds per agent type: { scribe = { silent_after = 60, lost_after = 180 } }"),
    ] = {}


class CommandsSettings(Section, frozen=True):
    """What is sent to agents, and how long it counts."""

    ttl: Annotated[Seconds, Meta(description="A command not done after so many seconds expires")] = 3600.0
    retention: Annotated[Seconds, Meta(description="Seconds that the record of an ended command is kept")] = 86_400.0
    max_result_bytes: Annotated[Bytes, Meta(description="Most bytes of a result kept in the record")] = 16_384
    max_queued: Annotated[Count, Meta(description="Most open commands per agent; more are refused")] = 1000
    max_in_flight: Annotated[Count, Meta(description="Most commands handed out to an agent; more wait")] = 32
    ack_timeout: Annotated[Seconds, Meta(description="Seconds from taking a command to its acknowledgement")] = 30.0
    timeout: Annotated[Seconds, Meta(description="Seconds of execution; then the command has failed")] = 3600.0
    extend_on_progress: Annotated[bool, Meta(description="Whether progress starts the execution's clock anew")] = True
    max_attempts: Annotated[Count, Meta(description="How often a command is sent to an agent that confirms")] = 5
    backoff_initial: Annotated[Seconds, Meta(description="Longest pause before the second attempt, in seconds")] = 1.0
    backoff_max: Annotated[Seconds, Meta(description="Longest pause before any attempt, in seconds")] = 60.0
    on_lost: Annotated[OnLost, Meta(description="When the agent is lost: hold the command until its ttl, or fail")] = (
        "hold"
    )
    delivery_interval: Annotated[Seconds, Meta(description="Seconds between looks at what agents have taken")] = 0.5
    delivery_batch: Annotated[Count, Meta(description="Most lists looked at, or handed out to, at a time")] = 1000


class TimekeeperSettings(Section, frozen=True):
    """Does what is due."""

    poll_interval: Annotated[Seconds, Meta(description="Seconds between looks at the deadlines")] = 0.5
    grace: Annotated[
        Seconds, Meta(description="Seconds after a start or an outage before anything due is done: agents speak first")
    ] = 3.0
    batch: Annotated[Count, Meta(description="Most deadlines in one commit")] = 256


class DivergenceSettings(Section, frozen=True):
    """Where what agents say and what is seen of them disagree: told of, and never punished. See docs/divergences.md."""

    interval: Annotated[Seconds, Meta(description="Seconds between looks")] = 1.0
    at_a_time: Annotated[Count, Meta(description="Agents looked at in one look; all are looked at in turns")] = 5000
    idle_at_work: Annotated[bool, Meta(description="Rule: says that it works, and does nothing")] = True
    working_states: Annotated[States, Meta(description="States in which an agent says that it works")] = ("deep_work",)
    idle_evidence_after: Annotated[Seconds, Meta(description="Doing nothing for so many seconds is evidence")] = 600.0
    beats_offline: Annotated[bool, Meta(description="Rule: says that it is away, and beats")] = True
    absent_states: Annotated[States, Meta(description="States in which an agent says that it is away")] = ("offline",)
    beating_after: Annotated[Seconds, Meta(description="Beating for so many seconds is evidence")] = 120.0
    forbidden_state: Annotated[bool, Meta(description="Rule: publishes a state that its machine forbids")] = True
    contradiction_after: Annotated[Seconds, Meta(description="Not moving on for so many seconds is evidence")] = 30.0
    never_acks: Annotated[bool, Meta(description="Rule: takes commands, and never confirms one")] = True
    unacked_commands: Annotated[Few, Meta(description="So many in a row are evidence; at most 16")] = 3
    never_finishes: Annotated[bool, Meta(description="Rule: confirms commands, and never finishes one")] = True
    unfinished_commands: Annotated[Few, Meta(description="So many in a row are evidence; at most 16")] = 3
    two_voices: Annotated[bool, Meta(description="Rule: two processes speak under one id")] = True
    instance_turns: Annotated[Few, Meta(description="So many returns of an instance are evidence; at most 16")] = 3
    clock_turns: Annotated[Few, Meta(description="So many changes between two clocks are evidence; at most 16")] = 6
    clock_difference: Annotated[Seconds, Meta(description="Seconds by which two clocks have to be apart")] = 10.0
    quiet_after: Annotated[Seconds, Meta(description="Turns count for so many seconds; without one it is over")] = 300.0
    undistilled: Annotated[bool, Meta(description="Rule: measures too large a context, and does not distill")] = True
    context_measurement: Annotated[Name, Meta(description="Measurement that tells its context")] = "context_tokens"
    context_limit: Annotated[Limit, Meta(description="Largest context, in the unit of that measurement")] = 150_000.0
    distill_states: Annotated[States, Meta(description="States in which an agent condenses it")] = ("distill",)
    distill_after: Annotated[Seconds, Meta(description="Above the limit for so many seconds is evidence")] = 120.0


class SamplerSettings(Section, frozen=True):
    """Reads depths for the metrics."""

    interval: Annotated[Seconds, Meta(description="Seconds between samples")] = 5.0
    label_values: Annotated[
        Count,
        Meta(description="Types of agents and of commands, states, measurements told apart; the rest is `other`"),
    ] = 50
    safety_interval: Annotated[
        Seconds, Meta(description="Seconds between looks at whether Redis can lose what it is given")
    ] = 300.0


class HistorySettings(Section, frozen=True):
    """What is kept, and told, of what happened."""

    audit_keep: Annotated[Count, Meta(description="Entries kept in the audit")] = 1_000_000
    audit_keep_max: Annotated[
        Count, Meta(description="Most entries kept for archives that are behind; at least audit_keep")
    ] = 2_000_000
    trim_every: Annotated[Seconds, Meta(description="Seconds between trimmings of the audit")] = 5.0
    archive_dir: Annotated[
        str, Meta(description="Directory of this engine's own archive of the audit; empty: none")
    ] = ""
    archive_every: Annotated[Seconds, Meta(description="Seconds between looks at what is to be archived")] = 1.0
    archive_forget_after: Annotated[
        Seconds, Meta(description="The audit is not kept for an archive silent for so many seconds")
    ] = 604_800.0
    dead_letters_keep: Annotated[Count, Meta(description="Dead letters kept")] = 10_000
    dead_letters_for: Annotated[Seconds, Meta(description="Seconds for which a dead letter is kept")] = 2_592_000.0
    events: Annotated[bool, Meta(description="Whether the engine publishes state changes and measurements")] = True

    def __post_init__(self) -> None:
        if self.audit_keep_max < self.audit_keep:
            expected = f"expected at least audit_keep ({self.audit_keep})"
            raise ValueError(f"audit_keep_max: {expected}, got {self.audit_keep_max}")


class MachinesSettings(Section, frozen=True):
    """The state machines, by agent type."""

    directory: Annotated[str, Meta(description="Directory of the machine files; empty: those shipped with us")] = ""
    default: Annotated[Name, Meta(description="Machine of agents that register")] = "journey"
    unregistered: Annotated[Name, Meta(description="Machine of agents that never do")] = "open"
    by_type: Annotated[dict[str, str], Meta(description='Machine per agent type: { scribe = "journey" }')] = {}


class SupervisorSettings(Section, frozen=True):
    """Restarts services that fail."""

    restarts: Annotated[int, Meta(ge=0, le=1_000_000, description="Failures of a service that are forgiven")] = 5
    healthy_after: Annotated[Seconds, Meta(description="Seconds without failure that restore the restarts")] = 60.0
    backoff_initial: Annotated[Seconds, Meta(description="Pause before the first restart, in seconds")] = 0.2
    backoff_max: Annotated[Seconds, Meta(description="Longest pause before a restart, in seconds")] = 10.0
    shutdown_timeout: Annotated[Seconds, Meta(description="Longest time to stop, in seconds")] = 10.0


class LogsSettings(Section, frozen=True):
    """What the engine says of itself."""

    level: Annotated[Level, Meta(description="Least level written: debug, info, warning or error")] = "info"
    format: Annotated[Format, Meta(description="json, console, or auto: console on a terminal, else json")] = "auto"
    queue: Annotated[Count, Meta(description="Most lines that wait for a slow reader; more are dropped")] = 10_000
    repeats: Annotated[Count, Meta(description="Most lines of the same event in ten seconds; the rest is counted")] = 20
    file: Annotated[str, Meta(description="File to write to, reopened at SIGUSR1; empty: standard error")] = ""


class Settings(Section, frozen=True):
    """Every section."""

    redis: RedisSettings = RedisSettings()
    http: HttpSettings = HttpSettings()
    lease: LeaseSettings = LeaseSettings()
    consumer: ConsumerSettings = ConsumerSettings()
    dispatcher: DispatcherSettings = DispatcherSettings()
    agents: AgentsSettings = AgentsSettings()
    messages: MessagesSettings = MessagesSettings()
    measurements: MeasurementsSettings = MeasurementsSettings()
    liveness: LivenessSettings = LivenessSettings()
    commands: CommandsSettings = CommandsSettings()
    timekeeper: TimekeeperSettings = TimekeeperSettings()
    divergence: DivergenceSettings = DivergenceSettings()
    sampler: SamplerSettings = SamplerSettings()
    history: HistorySettings = HistorySettings()
    machines: MachinesSettings = MachinesSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    logs: LogsSettings = LogsSettings()
