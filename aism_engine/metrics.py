"""Defines all Prometheus metrics of the engine. docs/metrics.md lists them, and a test compares the two.

An id is never a label. The values of a label are a closed set, or a bounded number of names and `other`.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from aism_engine import __version__
from aism_engine.domain.commands.command import ENDED, StatusChange
from aism_engine.domain.decision import Decision
from aism_engine.domain.effects import Fact
from aism_engine.metric_labels import OTHER, PAIRS_PER_VALUE, BoundedLabel, CountGauge, MeasurementStats

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Histogram buckets for the work of the engine."""
_LONG_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Histogram buckets for the work of agents."""
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FLEET_MODES: Final = ("normal", "partial", "full")
"""Modes of the brake, which limits losses: see `Mode` in domain/agents/silence.py."""

# By default the client also exports the time at which each counter was created. That is a fifth of the size of a
# scrape, and no alert or panel reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]


def start_at_zero(counter: Counter, values: Iterable[str]) -> None:
    """Export a counter as 0 for each value of its label. `increase` does not see a counter that starts at 1."""
    for value in values:
        counter.labels(value)


def _observe_all(histogram: Histogram, values: Iterable[float]) -> None:
    for value in values:
        histogram.observe(value)


class Metrics:
    """All metrics of one engine, in a registry of its own, so that two engines can run in one process.

    `label_values` is how many agent types, states and command types keep their own label value.
    """

    def __init__(self, *, label_values: int = 50) -> None:  # noqa: PLR0915  one statement per metric
        self.registry = CollectorRegistry()
        self._started: set[str] = set()
        types, states, rules = (BoundedLabel(label_values, OTHER) for _ in range(3))
        self._command_types = BoundedLabel(label_values, OTHER)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"aism_{name}", documentation, labels, registry=self.registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"aism_{name}", documentation, labels, registry=self.registry)

        def histogram(name: str, documentation: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(f"aism_{name}", documentation, labels, registry=self.registry, buckets=buckets)

        # --- process and leadership
        ProcessCollector(registry=self.registry)
        gauge("build_info", "Version of the engine, as a label; always 1", "version").labels(__version__).set(1)
        self.leader = gauge("leader", "1 if this engine leads, else 0")
        self.epoch = gauge("lease_epoch", "Epoch of the lease, as last seen")
        self.event_loop_lag = histogram("event_loop_lag_seconds", "Delay of timers in the event loop")
        self.log_lines_dropped = counter("log_lines_dropped", "Log lines that were not written")
        self.machine_reloads = counter("machine_reloads", "Reloads of the state machines", "outcome")

        # --- Redis
        self.redis_up = gauge("redis_up", "1 if Redis serves this engine, else 0")
        self.redis_unsafe = gauge("redis_unsafe", "1 if the doctor reports this finding as a danger, else 0", "code")
        self.redis_outages = counter("redis_outages", "Outages of Redis that began, by kind", "outage")
        self.clock_jump = gauge(
            "redis_clock_jump_seconds", "Jump of the server's clock in seconds, negative if it jumped back, or 0"
        )

        # --- services
        self.service_up = gauge("service_up", "1 if the service runs, else 0", "service")
        self.service_failures = counter(
            "service_failures", "Failures of a service: it raised an exception or returned", "service"
        )
        self.service_restarts = counter("service_restarts", "Restarts of a service", "service")
        self.last_success = gauge(
            "service_last_success_timestamp_seconds", "Unix time at which a service last completed a step", "service"
        )
        self.step_duration = histogram(
            "service_step_duration_seconds",
            "Duration of a step of a service. Services that mostly find nothing to do count only steps with decisions",
            "service",
        )

        # --- decisions and commits
        self.decisions = counter("decisions", "Decisions that services made", "service", "type", "outcome")
        self.commits = counter("commits", "Commits, by the reply of the server", "code")
        self.commit_duration = histogram("commit_duration_seconds", "Time from sending a commit to its reply")
        self.commit_decisions = histogram("commit_decisions", "Number of decisions in one commit", buckets=_COUNTS)
        self.audit_events = counter("audit_events", "Events written to the audit", "event")
        self.publications = counter("publications", "Publications that the listener received", "outcome")

        # --- queues and dead letters
        self.queue_depth = gauge("queue_depth", "Number of entries in a queue, a stream or an index", "queue")
        self.oldest_response_age = gauge("oldest_response_age_seconds", "Age of the oldest unread response, or 0")
        self.oldest_undelivered_age = gauge(
            "oldest_undelivered_command_age_seconds", "Time for which the oldest undelivered command has been due, or 0"
        )
        self.dead_letters = counter("dead_letters", "Messages and commands that were dead-lettered", "code")
        self.dead_letters_trimmed = counter("dead_letters_trimmed", "Dead letters removed because of their age")

        # --- agents
        self.agents = gauge("agents", "Agents, by liveness", "liveness")
        self.agents_in_state = CountGauge(
            gauge("agents_in_state", "Agents, by type and state", "type", "state"), types, states
        )
        self.agents_held = gauge("agents_held", "Agents with a hold of their own, by hold", "hold")
        self.fleet_held = gauge("fleet_held", "1 for the hold of the whole fleet, else 0", "hold")
        self.agents_waiting = gauge("agents_waiting_for_human", "Agents whose state waits for a human")
        self.longest_wait = gauge(
            "longest_wait_for_human_seconds", "Longest time for which an agent waits for a human, or 0"
        )
        self.agents_silent = gauge("agents_silent", "Agents that are silent but not lost, as of the last scan")
        self.agents_skewed = gauge("agents_clock_skewed", "Agents whose clock is ahead or behind", "direction")
        self.invalid_heartbeat_members = gauge(
            "invalid_heartbeat_members", "Members of the heartbeats that are not valid agent ids"
        )
        self.fleet_mode = gauge("fleet_mode", "1 for the current mode of loss detection, else 0", "mode")
        self.divergences_open = CountGauge(
            gauge("divergences_open", "Open divergences, as of the last pass", "rule", "type"), rules, types
        )
        counted = "Agents with a measurement of this name, except those that left or are lost"
        self.measurements = MeasurementStats(
            types,
            PAIRS_PER_VALUE * label_values,
            count=gauge("measurement_agents", counted, "type", "name"),
            mean=gauge("measurement_mean", "Mean of the latest values", "type", "name"),
            low=gauge("measurement_min", "Minimum of the latest values", "type", "name"),
            high=gauge("measurement_max", "Maximum of the latest values", "type", "name"),
        )

        # --- commands
        self.commands_open = gauge("commands_open", "Commands that have not ended")
        self.status_changes = counter("command_status_changes", "Status changes of commands", "type", "status")
        self.status_duration = histogram(
            "command_status_duration_seconds",
            "Time from one status of a command to the next",
            *("before", "after"),
            buckets=_LONG_SECONDS,
        )
        self.command_duration = histogram(
            "command_duration_seconds", "Time from acceptance of a command to its end", "outcome", buckets=_LONG_SECONDS
        )

        # --- audit and archive
        self.audit_trimmed = counter("audit_entries_trimmed", "Entries that the leader removed from the audit")
        self.archive_up = gauge("archive_up", "1 if this engine can write its archive, else 0")
        self.archive_entries = counter("archive_entries", "Audit entries written to the archive")
        self.archive_bytes = counter("archive_bytes", "Bytes written to the archive, before compression")
        self.archive_behind = gauge(
            "archive_behind_entries", "Audit entries that are not archived yet; NaN if the number is not known"
        )
        self.archive_lag = gauge("archive_lag_seconds", "Age of the last archived entry, or 0 if nothing waits")
        self.archive_gaps = counter("archive_gaps", "Gaps in the archive: entries trimmed before they were archived")
        self.archive_lost = counter("archive_lost_entries", "Entries in the gaps, if their number is known")
        self.archive_errors = counter("archive_errors", "Errors of the archive", "cause")

        start_at_zero(self.machine_reloads, ("applied", "refused"))
        start_at_zero(self.publications, ("declaration", "measurement", "merged", "malformed", "dropped"))

    # --- observers that components call -------------------------------------------------------------------------------

    def committed(self, decisions: Sequence[Decision], facts: Iterable[Fact], seconds: float, code: str) -> None:
        """Count a commit. `code` is the name of a `CommitCode` in lower case."""
        self.commits.labels(code).inc()
        self.commit_duration.observe(seconds)
        self.commit_decisions.observe(len(decisions))
        for event, count in Tally(fact.event for fact in facts).items():
            self.audit_events.labels(event).inc(count)
        self._count_status_changes([change for decision in decisions for change in decision.status_changes])

    def _count_status_changes(self, changes: Sequence[StatusChange]) -> None:
        """Count the changes of one commit. A labelled metric is looked up once for all changes of one kind."""
        by_kind: dict[tuple[str, str, str], list[StatusChange]] = {}
        for change in changes:
            by_kind.setdefault((change.type, change.before, change.after), []).append(change)
        for (command_type, before, after), same in by_kind.items():
            self.status_changes.labels(self._command_types(command_type), after).inc(len(same))
            if before and (durations := [each.seconds for each in same if each.seconds is not None]):
                _observe_all(self.status_duration.labels(before, after), durations)
            if after in ENDED:
                _observe_all(self.command_duration.labels(after), [each.age_s for each in same])

    def record_step(self, service: str, seconds: float | None, decisions: Sequence[Decision], at: float) -> None:
        """Count one step of a service and its decisions. `seconds` is None for a step that is not timed."""
        if seconds is not None:
            self.step_duration.labels(service).observe(seconds)
        outcomes = Tally((decision.kind, decision.outcome, decision.code) for decision in decisions)
        for (kind, outcome, code), count in outcomes.items():
            self.decisions.labels(service, kind, outcome).inc(count)
            if outcome == "dead_lettered":
                self.dead_letters.labels(code).inc(count)
        self.last_success.labels(service).set(at)

    def started(self, name: str) -> None:
        self.service_up.labels(name).set(1)
        self.service_restarts.labels(name).inc(name in self._started)
        self._started.add(name)
        start_at_zero(self.service_failures, (name,))

    def failed(self, name: str, _error: BaseException) -> None:
        self.service_up.labels(name).set(0)
        self.service_failures.labels(name).inc()

    def stopped(self, name: str) -> None:
        self.service_up.labels(name).set(0)

    def set_fleet_mode(self, mode: str) -> None:
        for name in FLEET_MODES:
            self.fleet_mode.labels(name).set(name == mode)
