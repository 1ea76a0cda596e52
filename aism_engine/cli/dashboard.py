"""What `aism-engine dev` shows: a live table on a terminal, log lines elsewhere, and a summary at the end."""

import asyncio
import collections
import io
import shutil
import sys
import time
from typing import Final, NoReturn

import msgspec
import structlog
from msgspec import Struct
from prometheus_client import Counter
from rich.console import Console

from aism_engine.cli.screen import Screen
from aism_engine.cli.top import show_live
from aism_engine.durations import format_age
from aism_engine.engine import Engine
from aism_engine.metrics import Metrics
from aism_engine.ops.admin_client import AdminClient
from aism_engine.store.client import server_address

log = structlog.get_logger(component="dev")

_REDRAW_INTERVAL_S: Final = 1.0
_LOG_INTERVAL_S: Final = 2.0


class DevSummary(Struct, frozen=True):
    """Totals of a run of `aism-engine dev`. The field names are a published interface."""

    responses_applied: int
    commands_dispatched: int
    commands_succeeded: int
    state_changes: int
    agents_lost: int
    dead_letters: int
    responses_per_second: float
    """Average over the whole run."""


def summarize(metrics: Metrics, seconds: float) -> DevSummary:
    """Read the totals of an engine that has run for `seconds`."""
    applied = _count(metrics.decisions, service="response_consumer", outcome="applied")
    return DevSummary(
        responses_applied=applied,
        commands_dispatched=_count(metrics.audit_events, event="command_queued"),
        commands_succeeded=_count(metrics.audit_events, event="command_succeeded"),
        state_changes=_count(metrics.audit_events, event="state_changed"),
        agents_lost=_count(metrics.audit_events, event="agent_lost"),
        dead_letters=_count(metrics.dead_letters),
        responses_per_second=round(applied / seconds, 1) if seconds > 0 else 0.0,
    )


def _count(counter: Counter, **labels: str) -> int:
    """Add up the samples of a counter that have these labels."""
    samples = [sample for family in counter.collect() for sample in family.samples if sample.name.endswith("_total")]
    return int(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))


async def log_progress(engine: Engine) -> NoReturn:
    """Log one line every few seconds, for pipes and files."""
    started_at = time.monotonic()
    while True:
        await asyncio.sleep(_LOG_INTERVAL_S)
        totals = msgspec.structs.asdict(summarize(engine.metrics, time.monotonic() - started_at))
        states = collections.Counter(agent.state for agent in engine.writer.fleet.agents.values())
        (queues,) = engine.metrics.queue_depth.collect()
        depths = {sample.labels["queue"]: int(sample.value) for sample in queues.samples}
        log.info("dev_progress", states=dict(sorted(states.items())), depths=depths, **totals)


class LogLines(io.StringIO):
    """Stream that keeps the last lines of the log: on the terminal they would break the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: collections.deque[str] = collections.deque(maxlen=1000)

    @property
    def newest(self) -> list[str]:
        return list(self.lines)[-3:]

    def write(self, text: str) -> int:
        self.lines.extend(text.splitlines())
        return len(text)


async def show(console: Console, engine: Engine, log_lines: LogLines) -> None:
    """Show the fleet on a terminal, as `aism-engine top` does, until a key ends it."""
    started_at, redis = time.monotonic(), engine.settings.redis
    program = "aism-engine" if shutil.which("aism-engine") else sys.argv[0]  # not in PATH with `make demo`

    def head() -> list[str]:
        (host, port), seconds = engine.http.address, time.monotonic() - started_at
        totals = msgspec.structs.asdict(summarize(engine.metrics, seconds))
        rate = totals.pop("responses_per_second")
        return [
            f"AISM Engine  {server_address(redis)}  http://{host}:{port}/metrics  {engine.leadership.role}",
            "fleet     simulated agents, which take commands; now and then one falls silent, is lost and returns",
            "totals    " + "  ".join(f"{name.replace('_', ' ')} {count}" for name, count in totals.items()),
            f"rate      {rate:g} responses per second over {format_age(seconds)}",
            "stop      Ctrl-C stops everything and prints a summary",
            f"events    in another terminal: {program} tail --redis {server_address(redis)}",
            *log_lines.newest,
        ]

    async with AdminClient.connect(redis) as admin:
        await show_live(admin, Screen(head, slowest=5), console, _REDRAW_INTERVAL_S, handle_sigterm=False)
