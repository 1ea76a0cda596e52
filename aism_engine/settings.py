"""The settings: one struct per section of the settings file, with defaults and descriptions.

Durations are seconds here; a file may write them with a unit. Sizes are bytes. The sections that decisions depend on
are in `domain/policy.py`. `config.py` loads the settings from files, environment and flags.
"""

from typing import Annotated, Literal

from msgspec import Meta, field

from aism_engine.domain.policy import (
    AgentsSettings,
    Bytes,
    CommandsSettings,
    Count,
    DivergenceSettings,
    LivenessSettings,
    MailSettings,
    MeasurementsSettings,
    Name,
    ProtocolSettings,
    Seconds,
    Section,
)
from aism_engine.domain.protocol.names import PREFIX
from aism_engine.durations import format_duration
from aism_engine.server_url import parse_url

Url = Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")]
Address = Annotated[str, Meta(pattern=r"^\S+:\d{1,5}\Z")]
Prefix = Annotated[str, Meta(pattern=rf"^{PREFIX}\Z")]
Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]


class RedisSettings(Section, frozen=True):
    """Connection to the Redis server."""

    url: Annotated[Url, "URL of the server: redis://, rediss:// (TLS) or unix://"] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[Prefix, "First part of every key and channel; one prefix is one fleet"] = "aism"
    protocol: Annotated[Literal[2, 3], "Version of the Redis serialization protocol (RESP): 2 or 3"] = 2
    connect_timeout: Annotated[Seconds, "Maximum time to connect"] = 2.0
    socket_timeout: Annotated[Seconds, "Maximum time to wait for a reply"] = 3.0
    retry_backoff_max: Annotated[Seconds, "Maximum time between attempts to reach the server"] = 1.0
    sentinels: Annotated[
        tuple[Address, ...], "Sentinels that name the primary, each host:port; empty: connect to url"
    ] = ()
    sentinel_master: Annotated[str, "Name of the primary in the configuration of the sentinels"] = ""
    sentinel_password: Annotated[str, "Password of the sentinels; empty: none"] = ""

    def __post_init__(self) -> None:
        try:
            server = parse_url(self.url)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None
        if self.sentinels and not self.sentinel_master:
            raise ValueError("sentinel_master: expected the name of the primary, because sentinels are set")
        if self.sentinels and server.path:
            raise ValueError("url: expected redis:// or rediss://, because sentinels are set")


class HttpSettings(Section, frozen=True):
    """The HTTP endpoints: /metrics, /livez and /readyz."""

    enabled: Annotated[bool, "Whether to serve HTTP"] = True
    host: Annotated[Name, "Address to listen on"] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535), "Port to listen on; 0: any free port"] = 9464


class LeaseSettings(Section, frozen=True):
    """Leader election: which of several engines writes."""

    ttl: Annotated[Seconds, "Time until a lease expires: a crashed leader is replaced after at most that time"] = 5.0
    renew_interval: Annotated[Seconds, "Time between renewals; less than half of ttl"] = 1.0

    def __post_init__(self) -> None:
        if self.renew_interval >= self.ttl / 2:
            given = format_duration(self.renew_interval)
            expected = f"expected less than half of ttl ({format_duration(self.ttl)})"
            raise ValueError(f"renew_interval: {expected}, got {given}")


class QueueSettings(Section, frozen=True):
    """How a queue consumer reads its queue."""

    batch_messages: Annotated[Count, "Maximum number of messages in one commit"] = 128
    batch_bytes: Annotated[Bytes, "Maximum number of bytes read for one commit"] = 4_194_304
    poll_interval: Annotated[Seconds, "Time between polls while the blocking read (BLMOVE) is denied or fails"] = 0.25


class ResponseConsumerSettings(QueueSettings, frozen=True):
    """Reads what agents send."""

    batch_messages: Annotated[Count, "Maximum number of messages in one commit"] = 512
    poll_interval: Annotated[Seconds, "Time between polls while the blocking read (BLMOVE) is denied or fails"] = 0.05


class RequestConsumerSettings(QueueSettings, frozen=True):
    """Reads what operators request."""


class FanoutSettings(QueueSettings, frozen=True):
    """Applies a request for many agents to each of them."""


class DispatcherSettings(Section, frozen=True):
    """Delivers commands to agents."""

    poll_interval: Annotated[Seconds, "Time between checks of what agents have taken"] = 0.5
    batch: Annotated[Count, "Agents whose lists are checked, or filled, per step"] = 1000


class TimekeeperSettings(Section, frozen=True):
    """Acts on deadlines."""

    poll_interval: Annotated[Seconds, "Time between checks of the deadlines"] = 0.5
    grace: Annotated[Seconds, "Time after a start or an outage before any deadline is acted on"] = 3.0
    batch: Annotated[Count, "Maximum number of deadlines in one commit"] = 256


class RegistrarSettings(Section, frozen=True):
    """Finds new agents, and reads what agents wrote to their own keys."""

    poll_interval: Annotated[Seconds, "Time between checks for new heartbeats"] = 1.0
    metadata_interval: Annotated[Seconds, "Minimum time between two readings of all metadata and states"] = 60.0
    batch: Annotated[Count, "Agents read per step"] = 1000


class RetentionSettings(Section, frozen=True):
    """How much history is kept in Redis, and for how long. The janitor trims the rest."""

    trim_interval: Annotated[Seconds, "Time between runs of the janitor"] = 5.0
    audit_entries: Annotated[Count, "Number of audit entries that are kept"] = 1_000_000
    audit_entries_max: Annotated[
        Count, "Maximum number of audit entries while an archive is behind; at least audit_entries"
    ] = 2_000_000
    dead_letter_entries: Annotated[Count, "Number of dead letters that are kept"] = 10_000
    dead_letter_ttl: Annotated[Seconds, "Time until a dead letter is removed"] = 2_592_000.0
    oversized_messages: Annotated[Count, "Number of oversized messages that are kept whole"] = 16
    absent_agent_ttl: Annotated[
        Seconds, "Time without a sign of life until a lost, left or unknown agent is forgotten"
    ] = 604_800.0
    archive_ttl: Annotated[
        Seconds, "Time without a report from an archive until the audit is no longer kept for it"
    ] = 604_800.0

    def __post_init__(self) -> None:
        if self.audit_entries_max < self.audit_entries:
            expected = f"expected at least audit_entries ({self.audit_entries})"
            raise ValueError(f"audit_entries_max: {expected}, got {self.audit_entries_max}")


class ArchiveSettings(Section, frozen=True):
    """The archive: a copy of the audit on the disk of this engine."""

    directory: Annotated[str, "Directory of the archive; empty: no archive"] = ""
    poll_interval: Annotated[Seconds, "Time between reads of new audit entries"] = 1.0


class SamplerSettings(Section, frozen=True):
    """Samples queue depths, counts and the safety of the server for the metrics."""

    poll_interval: Annotated[Seconds, "Time between samples"] = 5.0
    label_values: Annotated[Count, "Distinct values per metric label; further ones are counted as `other`"] = 50
    safety_interval: Annotated[Seconds, "Time between checks whether the Redis configuration can lose data"] = 300.0


class MachinesSettings(Section, frozen=True):
    """The state machines of the agent types."""

    directory: Annotated[str, "Directory of your own machine files; empty: only the shipped machines"] = ""
    default: Annotated[Name, "Machine of registered agents"] = "journey"
    unregistered: Annotated[Name, "Machine of agents that never registered"] = "open"
    by_type: Annotated[dict[str, str], 'Machine per agent type: { scribe = "journey" }'] = field(default_factory=dict)


class SupervisorSettings(Section, frozen=True):
    """Restarts components that fail."""

    restarts: Annotated[
        int, Meta(ge=0, le=1_000_000), "Maximum number of restarts of one component without a healthy run"
    ] = 5
    healthy_after: Annotated[Seconds, "Time after which a run is healthy; then all restarts are available again"] = 60.0
    backoff_initial: Annotated[Seconds, "Maximum time before the first restart; doubles with each failure"] = 0.2
    backoff_max: Annotated[Seconds, "Maximum time before any restart"] = 10.0
    shutdown_timeout: Annotated[Seconds, "Maximum time to stop"] = 10.0


class LogsSettings(Section, frozen=True):
    """The log of the engine."""

    level: Annotated[Level, "Minimum level: debug, info, warning or error"] = "info"
    format: Annotated[Format, "json, console, or auto: console on a terminal, else json"] = "auto"
    queue_size: Annotated[Count, "Maximum number of lines that wait to be written; more are dropped"] = 10_000
    max_repeats: Annotated[Count, "Maximum lines of one event in ten seconds; the rest is counted"] = 20
    file: Annotated[str, "File to write to, reopened at SIGUSR1; empty: standard error"] = ""


class Settings(Section, frozen=True):
    """All sections."""

    redis: RedisSettings = RedisSettings()
    http: HttpSettings = HttpSettings()
    lease: LeaseSettings = LeaseSettings()
    protocol: ProtocolSettings = ProtocolSettings()
    response_consumer: ResponseConsumerSettings = ResponseConsumerSettings()
    request_consumer: RequestConsumerSettings = RequestConsumerSettings()
    fanout: FanoutSettings = FanoutSettings()
    dispatcher: DispatcherSettings = DispatcherSettings()
    timekeeper: TimekeeperSettings = TimekeeperSettings()
    agents: AgentsSettings = AgentsSettings()
    registrar: RegistrarSettings = RegistrarSettings()
    commands: CommandsSettings = CommandsSettings()
    mail: MailSettings = MailSettings()
    measurements: MeasurementsSettings = MeasurementsSettings()
    liveness: LivenessSettings = LivenessSettings()
    divergence: DivergenceSettings = DivergenceSettings()
    sampler: SamplerSettings = SamplerSettings()
    retention: RetentionSettings = RetentionSettings()
    archive: ArchiveSettings = ArchiveSettings()
    machines: MachinesSettings = MachinesSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    logs: LogsSettings = LogsSettings()
