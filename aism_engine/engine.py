"""The engine: every part, in start order, and how they are wired. Whoever wants to know what runs, reads
`Engine.__init__`.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from aism_engine.clock import Clock, SystemClock
from aism_engine.config import build_policy
from aism_engine.domain.agents.liveness import Brake, SilenceTracker
from aism_engine.domain.agents.liveness import SilenceLimits as Silence
from aism_engine.domain.machines.machine import Machines
from aism_engine.domain.responses import ResponseHandler
from aism_engine.errors import ConfigError
from aism_engine.http.replies import HealthCheck
from aism_engine.http.routes import create_app
from aism_engine.http.server import HttpServer
from aism_engine.metrics import Metrics, start_at_zero
from aism_engine.ops.audit_log import AuditLog
from aism_engine.ops.audit_retention import AuditRetention
from aism_engine.ops.doctor.collector import FactCollector
from aism_engine.runtime.component import Component
from aism_engine.runtime.loop_monitor import LoopMonitor
from aism_engine.runtime.sd_notify import Notifier
from aism_engine.runtime.supervisor import Supervisor
from aism_engine.services.archiver import Archiver
from aism_engine.services.base import Outages, PolicyHolder, ServiceContext
from aism_engine.services.dispatcher import Dispatcher
from aism_engine.services.divergence_checker import DivergenceChecker
from aism_engine.services.elector import Elector
from aism_engine.services.fanout import Fanout
from aism_engine.services.janitor import Janitor
from aism_engine.services.listener import Listener
from aism_engine.services.queue_consumer import QueueLimits
from aism_engine.services.reaper import Reaper
from aism_engine.services.reconciler import Reconciler
from aism_engine.services.registrar import Registrar
from aism_engine.services.request_consumer import RequestConsumer
from aism_engine.services.response_consumer import ResponseConsumer
from aism_engine.services.sampler import Sampler
from aism_engine.services.timekeeper import Timekeeper
from aism_engine.services.wakeup import Wakeup, Watermark
from aism_engine.settings import LivenessLimits, Settings
from aism_engine.store.batch import Bounds
from aism_engine.store.client import connect, where
from aism_engine.store.keys import Keys
from aism_engine.store.leadership import Leadership
from aism_engine.store.scripts import CommitCode
from aism_engine.store.store import Store
from aism_engine.store.subscription import Subscription
from aism_engine.store.writer import Writer

log = structlog.get_logger(component="engine")

_STUCK_S: Final = 30.0
"""A service that leads and begins no step for so long is stuck: no wait inside a step is longer than the lease and a
few timeouts.
"""


class Engine:
    """One engine process, all of it. `run` goes on until `stopping` is set; nothing is connected before."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        environ: Mapping[str, str] | None = None,
        handlers: Mapping[str, ResponseHandler] | None = None,
    ) -> None:
        """Build it all; ConfigError where a machine is wrong. `handlers` decide on responses of types beyond ours."""
        clock = clock or SystemClock()
        self.settings = settings
        self.metrics = Metrics(label_values=settings.sampler.label_values)
        start_at_zero(self.metrics.commits, (code.name.lower() for code in CommitCode))
        self.notifier = Notifier.from_environ(os.environ if environ is None else environ)

        # --- the fleet in Redis, and in memory
        keys = Keys(settings.redis.prefix)
        short_s = min(settings.redis.socket_timeout, settings.lease.ttl / 3)
        self._clients = {
            "commands": connect(settings.redis, "commands"),
            "lease": connect(settings.redis, "lease", timeout_s=short_s),
            "pubsub": connect(settings.redis, "pubsub"),
            "history": connect(settings.redis, "history"),
        }
        self.leadership = Leadership(clock)
        self.metrics.leader.set_function(lambda: self.leadership.token is not None)
        self.store = Store(self._clients["commands"], keys, clock)
        bounds = Bounds(
            settings.retention.audit_entries_max,
            settings.retention.dead_letter_entries,
            settings.retention.oversized_messages,
        )
        freed = Wakeup()
        self.writer = Writer(
            self.store,
            self.leadership,
            bounds,
            clock,
            self.metrics,
            recent_ids=settings.protocol.recent_ids,
            on_dispatchable=freed.set,
        )
        self.outages = Outages(self.metrics, self.notifier.status)
        self._policy_holder = PolicyHolder(build_policy(settings, handlers or {}))
        context = ServiceContext(
            clock=clock,
            metrics=self.metrics,
            leadership=self.leadership,
            outages=self.outages,
            store=self.store,
            writer=self.writer,
            policy_holder=self._policy_holder,
            watermark=Watermark(),
            backoff_max_s=settings.redis.retry_backoff_max,
        )

        # --- the services
        responses, requests, to_many = Wakeup(), Wakeup(), Wakeup()
        elector = Elector(
            context,
            Store(self._clients["lease"], keys, clock),
            ttl_s=settings.lease.ttl,
            renew_interval_s=settings.lease.renew_interval,
        )
        listener = Listener(
            context,
            Subscription(
                self._clients["pubsub"], (keys.responses, keys.requests, keys.state_changes, keys.measurements)
            ),
            responses,
            requests,
            most=settings.response_consumer.batch_messages,
            measures_per_s=settings.measurements.published_per_second,
        )
        self._consumer = ResponseConsumer(
            context,
            responses,
            QueueLimits(
                settings.response_consumer.batch_messages,
                settings.response_consumer.batch_bytes,
                settings.protocol.max_message_bytes,
                settings.response_consumer.poll_interval,
            ),
        )
        dispatcher = RequestConsumer(
            context,
            requests,
            to_many,
            QueueLimits(
                settings.request_consumer.batch_messages,
                settings.request_consumer.batch_bytes,
                settings.protocol.max_message_bytes,
                settings.request_consumer.poll_interval,
            ),
        )
        fanout = Fanout(
            context,
            to_many,
            QueueLimits(
                settings.request_consumer.batch_messages,
                settings.request_consumer.batch_bytes,
                settings.protocol.max_message_bytes,
                settings.fanout.poll_interval,
            ),
        )
        courier = Dispatcher(
            context, freed, poll_interval_s=settings.dispatcher.poll_interval, batch=settings.dispatcher.batch
        )
        timekeeper = Timekeeper(
            context,
            poll_interval_s=settings.timekeeper.poll_interval,
            grace_s=settings.timekeeper.grace,
            batch=settings.timekeeper.batch,
        )
        monitor = LoopMonitor(
            clock=clock,
            notifier=self.notifier,
            progress=lambda: not self._is_stuck(),
            on_lag=self.metrics.event_loop_lag.observe,
        )
        live = settings.liveness
        reaper = Reaper(
            context,
            SilenceTracker(
                Brake(live.brake_ratio, live.brake_full_ratio, live.brake_min_agents, live.brake_losses_per_scan)
            ),
            _silence(live),
            {kind: _silence(limits) for kind, limits in live.by_type.items()},
            scan_interval_s=live.scan_interval,
            chunk=live.batch,
            stalled_s=monitor.take_max_lag_s,
        )
        self._census = Registrar(
            context,
            interval_s=settings.registrar.poll_interval,
            metadata_every_s=settings.registrar.metadata_interval,
            forget_after_s=settings.retention.absent_agent_ttl,
            chunk=settings.registrar.batch,
        )
        witness = DivergenceChecker(
            context,
            interval_s=settings.divergence.poll_interval,
            at_a_time=settings.divergence.batch,
        )
        kept, retention = settings.retention, AuditRetention(self._clients["history"], keys)
        janitor = Janitor(
            context,
            retention,
            interval_s=kept.trim_interval,
            keep=kept.audit_entries,
            dead_letters_for_s=kept.dead_letter_ttl,
            forget_after_s=kept.archive_ttl,
        )
        archivist = Archiver(
            context,
            settings.archive,
            AuditLog(self._clients["history"], keys),
            retention,
            prefix=settings.redis.prefix,
        )
        sampler = Sampler(
            context,
            FactCollector(self._clients["commands"], settings.redis),
            settings.sampler,
            self.notifier.status,
        )
        self._clock = clock
        self.http = HttpServer(create_app(self.metrics.registry, self), settings.http.host, settings.http.port)

        # --- in start order; they stop in reverse, so that the elector gives the lease back when nobody writes any more
        self.components: list[Component] = [
            *((self.http,) if settings.http.enabled else ()),
            monitor,
            elector,
            self._consumer,
            dispatcher,
            fanout,
            courier,
            timekeeper,
            Reconciler(context),
            reaper,
            self._census,
            witness,
            janitor,
            listener,
            sampler,
            *((archivist,) if settings.archive.directory else ()),
        ]

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set. Raises GaveUpError when a service fails for good, OSError when the HTTP address
        is taken.
        """
        settings = self.settings
        if settings.http.enabled:
            self.http.bind()
        http = self.http.address if settings.http.enabled else None
        log.info("engine_starting", redis=where(settings.redis), prefix=settings.redis.prefix, http=http)
        supervisor = Supervisor(
            self.components,
            restarts=settings.supervisor.restarts,
            healthy_after_s=settings.supervisor.healthy_after,
            backoff_initial_s=settings.supervisor.backoff_initial,
            backoff_max_s=settings.supervisor.backoff_max,
            stop_timeout_s=settings.supervisor.shutdown_timeout,
            clock=self._clock,
            observer=self.metrics,
        )
        self.notifier.ready()
        try:
            await supervisor.run(stopping)
        finally:
            self.notifier.stopping()
            for client in self._clients.values():
                with suppress(Exception):  # a connection that breaks while it is closed is closed
                    await client.aclose()
            log.info("engine_stopped")

    def reload_machines(self, read: Callable[[], Machines]) -> None:
        """Put other machines in force, all of them or, where anything is wrong with any, none."""
        try:
            machines = read()
        except ConfigError as error:
            self.metrics.machine_reloads.labels("refused").inc()
            log.warning("machines_refused", problems=error.problems, consequence="those from before stay in force")
            return
        self._policy_holder.policy = msgspec.structs.replace(self._policy_holder.policy, machines=machines)
        self.metrics.machine_reloads.labels("applied").inc()
        log.info("machines_reloaded", machines=machines.versions())
        self._census.look_again()

    # --- web.face.Health ----------------------------------------------------------------------------------------------

    def live(self) -> bool:
        return not self._is_stuck()

    def role(self) -> str:
        return self.leadership.role

    def checks(self) -> Mapping[str, HealthCheck]:
        outage, idle_s = self.outages.current, self._clock.monotonic() - self._consumer.step_started_at
        leads = self.leadership.token is not None
        return {
            "redis": HealthCheck(ok=outage is None, detail=outage or "serving"),
            "role": HealthCheck(ok=True, detail=self.role()),
            "consuming": HealthCheck(
                ok=not leads or idle_s < _STUCK_S / 3,
                detail=f"last step {idle_s:.1f} s ago" if leads else "standing by",
            ),
            "machines": HealthCheck(
                ok=True,
                detail=", ".join(f"{n} v{v}" for n, v in self._policy_holder.policy.machines.versions().items()),
            ),
        }

    def _is_stuck(self) -> bool:
        leads = self.leadership.token is not None
        return leads and self._clock.monotonic() - self._consumer.step_started_at > _STUCK_S


def _silence(limits: LivenessLimits) -> Silence:
    return Silence(limits.silent_after, limits.lost_after)
