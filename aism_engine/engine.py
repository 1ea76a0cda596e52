"""The engine: all components in start order, and what they are built from."""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
import structlog

from aism_engine.backoff import Backoff
from aism_engine.clock import Clock, SystemClock
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
from aism_engine.policy_loader import build_policy
from aism_engine.runtime.loop_monitor import LoopMonitor
from aism_engine.runtime.sd_notify import Notifier
from aism_engine.runtime.supervisor import Component, Supervisor
from aism_engine.services.archiver import Archiver
from aism_engine.services.base import FIRST_PAUSE_S, Outages, ServiceContext
from aism_engine.services.dispatcher import Dispatcher
from aism_engine.services.divergence_checker import DivergenceChecker
from aism_engine.services.elector import Elector
from aism_engine.services.fanout import FANOUT_HANDLER
from aism_engine.services.janitor import Janitor
from aism_engine.services.listener import Listener
from aism_engine.services.queue_consumer import QueueConsumer
from aism_engine.services.queue_watch import QueueWatch
from aism_engine.services.reaper import Reaper
from aism_engine.services.reconciler import Reconciler
from aism_engine.services.registrar import Registrar
from aism_engine.services.request_consumer import REQUEST_HANDLER
from aism_engine.services.response_consumer import RESPONSE_HANDLER
from aism_engine.services.sampler import Sampler
from aism_engine.services.timekeeper import Timekeeper
from aism_engine.services.wakeup import Wakeup, Wakeups, Watermark
from aism_engine.settings import Settings
from aism_engine.store.batch import Bounds
from aism_engine.store.client import connect, server_address
from aism_engine.store.client_type import Client
from aism_engine.store.doorbell import Doorbell
from aism_engine.store.keys import Keys
from aism_engine.store.leadership import Leadership
from aism_engine.store.queue_tail import QueueTail
from aism_engine.store.scripts import CommitCode
from aism_engine.store.store import Store
from aism_engine.store.subscription import Subscription
from aism_engine.store.writer import Writer

log = structlog.get_logger(component="engine")

_STUCK_S: Final = 30.0
"""A leader whose response consumer starts no step for this long is stuck.

No step waits for longer than the sum of `lease.ttl` and a few timeouts.
"""


class Engine:
    """One engine process. `run` runs until `stopping` is set; nothing connects to Redis before `run`.

    `handlers` adds response types beyond the protocol's own. It maps a type to a function
    `handler(ctx: DecisionContext, agent: AgentRecord, response: Custom, raw: bytes) -> ErrorReply | None`, which

    - is called once for each response of the type from a known agent, duplicates excluded, before the commit of its
      batch; it is called again if the batch is decided again, so it must be pure: no I/O, no clock, no async;
    - reads `response.payload` (any JSON value), the draft and the policy, and changes the fleet only through `ctx`;
    - returns None, or an ErrorReply that is sent to the agent if it asked for a reply;
    - may raise: the response is then dead-lettered as `internal_error`, and all other responses are applied.

    A type of the protocol itself is never passed to a handler. Raises ConfigError if a machine is invalid.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        environ: Mapping[str, str] | None = None,
        handlers: Mapping[str, ResponseHandler] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(label_values=settings.sampler.label_values)
        self.notifier = Notifier.from_environ(os.environ if environ is None else environ)
        self._report_status = partial(self.notifier.send, "STATUS")
        self.http = HttpServer(create_app(self.metrics.registry, self), settings.http)
        self._clock = clock or SystemClock()
        self._clients: list[Client] = []
        self._context = context = self._build_context(handlers or {})
        self.leadership, self.outages = context.leadership, context.outages
        self.store, self.writer = context.store, context.writer

        keys, wakeups = context.store.keys, context.wakeups
        channels = (keys.state_changes, keys.measurements)
        lease_timeout_s = min(settings.redis.socket_timeout, settings.lease.ttl / 3)
        lease_client = self._connect("lease", timeout_s=lease_timeout_s)
        history = self._connect("history")
        retention = AuditRetention(history, keys)
        on_lag = self.metrics.event_loop_lag.observe
        monitor = LoopMonitor(clock=self._clock, notifier=self.notifier, has_progress=self.live, on_lag=on_lag)
        self._registrar = Registrar(context, settings.registrar)
        queues_client = self._connect("queues")
        responses = QueueWatch(
            QueueTail(queues_client, keys.response_queue), Doorbell(queues_client, keys.responses), wakeups.responses
        )
        requests = QueueWatch(
            QueueTail(queues_client, keys.request_queue), Doorbell(queues_client, keys.requests), Wakeup()
        )
        fanout = QueueWatch(QueueTail(queues_client, keys.fanout), None, Wakeup())
        self._response_consumer = QueueConsumer(
            context, RESPONSE_HANDLER, settings.response_consumer, responses, context.watermark
        )

        # All components in start order. They stop in reverse, so the elector releases the lease after the last commit.
        self.components: list[Component] = [
            *((self.http,) if settings.http.enabled else ()),
            monitor,
            Elector(context, Store(lease_client, keys, self._clock), settings.lease),
            self._response_consumer,
            QueueConsumer(context, REQUEST_HANDLER, settings.request_consumer, requests),
            QueueConsumer(context, FANOUT_HANDLER, settings.fanout, fanout),
            Dispatcher(context, settings.dispatcher),
            Timekeeper(context, settings.timekeeper),
            Reconciler(context),
            Reaper(context, settings.liveness, monitor.take_max_lag_s),
            self._registrar,
            DivergenceChecker(context, settings.divergence),
            Janitor(context, settings.retention, retention),
            Listener(context, Subscription(self._connect("pubsub"), channels), settings.response_consumer),
            Sampler(
                context, FactCollector(self._commands_client, settings.redis), settings.sampler, self._report_status
            ),
            *(
                (Archiver(context, settings.archive, AuditLog(history, keys), retention, prefix=settings.redis.prefix),)
                if settings.archive.directory
                else ()
            ),
        ]

    def _build_context(self, handlers: Mapping[str, ResponseHandler]) -> ServiceContext:
        settings, clock, metrics = self.settings, self._clock, self.metrics
        start_at_zero(metrics.commits, (code.name.lower() for code in CommitCode))
        leadership, wakeups = Leadership(clock), Wakeups()
        metrics.leader.set_function(lambda: leadership.token is not None)
        self._commands_client = self._connect("commands")
        store = Store(self._commands_client, Keys(settings.redis.prefix), clock)
        retention = settings.retention
        return ServiceContext(
            clock=clock,
            metrics=metrics,
            leadership=leadership,
            outages=Outages(metrics, self._report_status),
            store=store,
            writer=Writer(
                store,
                leadership,
                Bounds(retention.audit_entries_max, retention.dead_letter_entries, retention.oversized_messages),
                clock,
                metrics,
                recent_ids=settings.protocol.recent_ids,
                on_dispatchable=wakeups.dispatcher.set,
            ),
            policy=build_policy(settings, handlers),
            backoff=Backoff(FIRST_PAUSE_S, settings.redis.retry_backoff_max),
            wakeups=wakeups,
            watermark=Watermark(wakeups.responses.set),
        )

    def _connect(self, purpose: str, *, timeout_s: float | None = None) -> Client:
        client = connect(self.settings.redis, purpose, timeout_s=timeout_s)
        self._clients.append(client)
        return client

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set.

        Raises GaveUpError if a component fails too often, OSError if the HTTP address is taken.
        """
        settings = self.settings
        if settings.http.enabled:
            self.http.bind()
        http = self.http.address if settings.http.enabled else None
        log.info("engine_starting", redis=server_address(settings.redis), prefix=settings.redis.prefix, http=http)
        supervisor = Supervisor(self.components, settings.supervisor, clock=self._clock, observer=self.metrics)
        self.notifier.send("READY")
        try:
            await supervisor.run(stopping)
        finally:
            self.notifier.send("STOPPING")
            for client in self._clients:
                with suppress(Exception):  # closing a broken connection may raise
                    await client.aclose()
            log.info("engine_stopped")

    def reload_machines(self, read: Callable[[], Machines]) -> None:
        """Replace all state machines. If any of them is invalid, keep the current ones."""
        try:
            machines = read()
        except ConfigError as error:
            self.metrics.machine_reloads.labels("refused").inc()
            log.warning("machines_refused", problems=error.problems, consequence="the current machines stay in force")
            return
        self._context.policy = msgspec.structs.replace(self._context.policy, machines=machines)
        self.metrics.machine_reloads.labels("applied").inc()
        log.info("machines_reloaded", machines=machines.versions())
        self._registrar.request_full_pass()

    # --- http.routes.Health -------------------------------------------------------------------------------------------

    def live(self) -> bool:
        """Return whether the engine makes progress. A standby does, and also a leader that waits for Redis."""
        return not self._leads or self._idle_s < _STUCK_S

    def role(self) -> str:
        return self.leadership.role

    def checks(self) -> Mapping[str, HealthCheck]:
        outage, versions = self.outages.current, self._context.policy.machines.versions()
        return {
            "redis": HealthCheck(ok=outage is None, detail=outage or "available"),
            "role": HealthCheck(ok=True, detail=self.role()),
            "consuming": HealthCheck(
                ok=not self._leads or self._idle_s < _STUCK_S / 3,
                detail=f"last step {self._idle_s:.1f} s ago" if self._leads else "on standby",
            ),
            "machines": HealthCheck(ok=True, detail=", ".join(f"{name} v{each}" for name, each in versions.items())),
        }

    @property
    def _leads(self) -> bool:
        return self.leadership.token is not None

    @property
    def _idle_s(self) -> float:
        return self._clock.monotonic() - self._response_consumer.step_started_at
