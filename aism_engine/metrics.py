"""What the engine tells Prometheus: the catalogue is docs/metrics.md, which a test compares with what is here.

No id is ever a label. A label comes from a closed set, or is one of few names and `other`.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from aism_engine import __version__
from aism_engine.domain.commands.command import ENDED, StatusChange
from aism_engine.domain.decision import Decision
from aism_engine.domain.effects import Fact
from aism_engine.metric_labels import BoundedLabel, BoundedLabelPair, CountGauge, MeasurementStats

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""For what agents do: they take their time."""
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FLEET_MODES: Final = ("normal", "partial", "full")

disable_created_metrics()  # type: ignore[no-untyped-call]  # a fifth of a scrape, to say of each counter when it was first seen: nobody asks


def from_zero(counter: Counter, values: Iterable[str]) -> None:
    """Show what has not been counted yet as 0: a counter that begins at 1 has, to Prometheus, not grown."""
    for value in values:
        counter.labels(value)


class Metrics:
    """All metrics of one engine, in a registry of their own, so that two engines can live in one process."""

    def __init__(self, *, names: int = 50) -> None:  # noqa: PLR0915  a list
        """`names` is how many types of agents and of commands, states and measurements are told apart, each."""
        self.registry = CollectorRegistry()
        types, states, self._command_types = BoundedLabel(names), BoundedLabel(names), BoundedLabel(names)
        any_rule = BoundedLabel(names)  # a closed set, in truth
        self._started: set[str] = set()
        r = self.registry
        ProcessCollector(registry=r)
        build = Gauge("aism_build_info", "The version that runs, as a label; always 1", ["version"], registry=r)
        build.labels(__version__).set(1)
        self.leader = Gauge("aism_leader", "1 while this engine leads, else 0", registry=r)
        self.epoch = Gauge("aism_epoch", "Epoch of the lease last seen", registry=r)

        self.work = Counter("aism_work", "What a service decided", ["service", "type", "outcome"], registry=r)
        self.run_seconds = Histogram(
            "aism_run_seconds",
            "One step of a service; of those that poll, one that found something",
            ["service"],
            buckets=_SECONDS,
            registry=r,
        )
        self.last_success = Gauge(
            "aism_last_success_timestamp_seconds", "When a service last finished a step", ["service"], registry=r
        )
        self.service_up = Gauge("aism_service_up", "1 while the service runs, else 0", ["service"], registry=r)
        self.failures = Counter("aism_service_failures", "How often a service raised", ["service"], registry=r)
        self.restarts = Counter(
            "aism_service_restarts", "How often a service was started again", ["service"], registry=r
        )

        self.facts = Counter("aism_facts", "What was written to the audit", ["event"], registry=r)
        self.dead_letters = Counter("aism_dead_letters", "What was given up on and kept", ["code"], registry=r)
        self.commits = Counter("aism_commits", "Commits, by what the server answered", ["code"], registry=r)
        self.commit_seconds = Histogram(
            "aism_commit_seconds", "From sending a commit to its answer", buckets=_SECONDS, registry=r
        )
        self.commit_size = Histogram("aism_commit_size", "Decisions in one commit", buckets=_SIZES, registry=r)

        self.machine_reloads = Counter("aism_machine_reloads", "Machines read anew", ["outcome"], registry=r)
        self.depth = Gauge("aism_depth", "How many lie in a queue, a stream or an index", ["where"], registry=r)
        self.oldest_response = Gauge(
            "aism_oldest_response_seconds",
            "The oldest unread response is at most so old; 0 where there is none",
            registry=r,
        )
        self.agents = Gauge(
            "aism_agents", "Agents by liveness; who is silent is not counted as fresh", ["liveness"], registry=r
        )
        self.silent = Gauge(
            "aism_agents_silent", "Agents that are silent, and not lost yet, as of the last scan", registry=r
        )
        self.invalid_heartbeat_members = Gauge(
            "aism_invalid_heartbeat_members", "Members of the heartbeats that are no agent ids", registry=r
        )
        self.skewed = Gauge(
            "aism_agents_skewed", "Agents that beat with a clock ahead, or behind", ["direction"], registry=r
        )
        self.standing = CountGauge(
            Gauge("aism_agents_in_state", "Agents by type and state", ["type", "state"], registry=r),
            BoundedLabelPair(types, states),
        )
        self.divergences = CountGauge(
            Gauge(
                "aism_divergences_open", "Divergences that are open, of the last round", ["rule", "type"], registry=r
            ),
            BoundedLabelPair(any_rule, types),
        )
        self.measurements = MeasurementStats(types, BoundedLabelPair.EACH * names, r)
        self.commands = Gauge("aism_commands_open", "Commands that have not ended", registry=r)
        self.oldest_undelivered = Gauge(
            "aism_oldest_undelivered_command_seconds",
            "Since the oldest command that its agent has not taken was accepted, or its time came",
            registry=r,
        )
        self.command_steps = Counter(
            "aism_command_steps", "Steps of commands, by the status reached", ["type", "status"], registry=r
        )
        self.step_seconds = Histogram(
            "aism_command_step_seconds",
            "From one status of a command to the next",
            ["before", "after"],
            buckets=_LONG_SECONDS,
            registry=r,
        )
        self.command_seconds = Histogram(
            "aism_command_seconds", "From acceptance to the end", ["outcome"], buckets=_LONG_SECONDS, registry=r
        )
        self.mode = Gauge("aism_fleet_mode", "1 for the mode of the fleet, else 0", ["mode"], registry=r)

        self.audit_trimmed = Counter("aism_audit_trimmed", "Entries that the leader took off the audit", registry=r)
        self.dead_letters_trimmed = Counter("aism_dead_letters_trimmed", "Dead letters too old to be kept", registry=r)
        self.archive_up = Gauge("aism_archive_up", "1 while this engine's archive can be written, else 0", registry=r)
        self.archive_entries = Counter("aism_archive_entries", "Entries of the audit archived", registry=r)
        self.archive_bytes = Counter("aism_archive_bytes", "Bytes written to the archive, uncompressed", registry=r)
        self.archive_behind = Gauge(
            "aism_archive_behind_entries", "Entries that are not archived yet; NaN where nobody counts", registry=r
        )
        self.archive_lag = Gauge("aism_archive_lag_seconds", "Age of what was archived last, while behind", registry=r)
        self.archive_gaps = Counter("aism_archive_gaps", "Gaps written: trimmed before it was archived", registry=r)
        self.archive_lost = Counter("aism_archive_lost_entries", "Entries in the gaps, where counted", registry=r)
        self.archive_errors = Counter("aism_archive_errors", "Troubles of the archive", ["trouble"], registry=r)

        self.redis_up = Gauge("aism_redis_up", "1 while Redis serves, else 0", registry=r)
        self.unsafe = Gauge(
            "aism_redis_unsafe", "1 while this finding of the doctor is a danger, else 0", ["code"], registry=r
        )
        self.outages = Counter("aism_redis_outages", "Outages begun, by name", ["outage"], registry=r)
        self.clock_jump = Gauge(
            "aism_redis_clock_jump_seconds",
            "Seconds that the server's clock has jumped ahead of the time in use",
            registry=r,
        )
        self.heard = Counter("aism_heard", "What the listener heard, by what became of it", ["outcome"], registry=r)
        self.loop_lag = Histogram("aism_loop_lag_seconds", "How late timers fire", buckets=_SECONDS, registry=r)
        self.log_dropped = Counter("aism_log_lines_dropped", "Log lines that nobody read fast enough", registry=r)

        from_zero(self.machine_reloads, ("applied", "refused"))
        from_zero(self.heard, ("declaration", "measurement", "merged", "malformed", "dropped"))

    # --- the observers that parts of the engine call ------------------------------------------------------------------

    def committed(self, decisions: Sequence[Decision], facts: Iterable[Fact], seconds: float, code: str) -> None:
        """Count a commit, by the protocol of `store.writer.CommitObserver`."""
        self.commits.labels(code).inc()
        self.commit_seconds.observe(seconds)
        self.commit_size.observe(len(decisions))
        for event, count in Tally(fact.event for fact in facts).items():
            self.facts.labels(event).inc(count)
        for decision in decisions:
            for step in decision.status_changes:
                self._count_status_change(step)

    def _count_status_change(self, step: StatusChange) -> None:
        self.command_steps.labels(self._command_types(step.type), step.after).inc()
        if step.before and step.seconds is not None:
            self.step_seconds.labels(step.before, step.after).observe(step.seconds)
        if step.after in ENDED:
            self.command_seconds.labels(step.after).observe(step.age_s)

    def refused(self, code: str) -> None:
        self.commits.labels(code).inc()

    def worked(self, service: str, seconds: float | None, outcomes: Mapping[Any, int], at: float) -> None:
        """Count one step of a service: each `(type, outcome, code)` to how many. `seconds` is None of one not timed."""
        if seconds is not None:
            self.run_seconds.labels(service).observe(seconds)
        for (kind, outcome, code), count in outcomes.items():
            self.work.labels(service, kind, outcome).inc(count)
            if outcome == "dead_lettered":
                self.dead_letters.labels(code).inc(count)
        self.last_success.labels(service).set(at)

    def started(self, name: str) -> None:
        self.service_up.labels(name).set(1)
        self.restarts.labels(name).inc(name in self._started)
        self._started.add(name)
        from_zero(self.failures, (name,))

    def failed(self, name: str, _error: BaseException) -> None:
        self.service_up.labels(name).set(0)
        self.failures.labels(name).inc()

    def stopped(self, name: str) -> None:
        self.service_up.labels(name).set(0)

    def set_mode(self, mode: str) -> None:
        for name in FLEET_MODES:
            self.mode.labels(name).set(name == mode)
