"""What `aism-engine dev` shows: a live table on a terminal, log lines elsewhere, and a summary at the end."""

import asyncio
import collections
import io
import time
from typing import Final, NoReturn

import msgspec
import structlog
from msgspec import Struct
from prometheus_client import Counter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from aism_engine.cli.output import format_age, published, table_lines
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.text import natural_key
from aism_engine.engine import Engine
from aism_engine.metrics import Metrics
from aism_engine.store.client import server_address

log = structlog.get_logger(component="dev")

_REDRAW_INTERVAL_S: Final = 0.25
_LOG_INTERVAL_S: Final = 2.0
_COLOURS: Final = {"fresh": "green", "silent": "yellow", "lost": "red", "left": "dim", "unknown": "yellow"}
_OTHER_LINES: Final = 10
"""Lines of the screen that are not rows of agents."""


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


def _queue_depths(metrics: Metrics) -> dict[str, int]:
    """Read the last sampled length of each queue, stream and index."""
    (family,) = metrics.queue_depth.collect()
    return {sample.labels["queue"]: int(sample.value) for sample in family.samples}


def _states(fleet: Fleet) -> dict[str, int]:
    return dict(sorted(collections.Counter(agent.state for agent in fleet.agents.values()).items()))


async def log_progress(engine: Engine) -> NoReturn:
    """Log one line every few seconds, for pipes and files."""
    started_at = time.monotonic()
    while True:
        await asyncio.sleep(_LOG_INTERVAL_S)
        totals = msgspec.structs.asdict(summarize(engine.metrics, time.monotonic() - started_at))
        log.info("dev_progress", states=_states(engine.writer.fleet), depths=_queue_depths(engine.metrics), **totals)


async def draw(console: Console, engine: Engine) -> NoReturn:
    """Redraw one screen on a terminal. Log lines scroll above it."""
    started_at = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_REDRAW_INTERVAL_S)
            live.update(_screen(engine, console, time.monotonic() - started_at), refresh=True)


class ConsoleStream(io.StringIO):
    """Stream for log lines that prints them above the live table without breaking it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def write(self, text: str) -> int:
        self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        return len(text)


def _screen(engine: Engine, console: Console, seconds: float) -> RenderableType:
    fleet, totals = engine.writer.fleet, msgspec.structs.asdict(summarize(engine.metrics, seconds))
    server, (host, port) = server_address(engine.settings.redis), engine.http.address
    rate = totals.pop("responses_per_second")
    return Group(
        Text.assemble(("AISM Engine", "bold"), f"  {server}  http://{host}:{port}/metrics  {engine.leadership.role}"),
        Text(),
        _agents(fleet, limit=max(3, console.height - _OTHER_LINES)),
        Text(),
        _line("states", _states(fleet)),
        _line("depths", _queue_depths(engine.metrics)),
        _line("totals", {name.replace("_", " "): count for name, count in totals.items()}),
        Text(f"rate    {rate:g} responses per second over {format_age(seconds)}; Ctrl-C stops"),
    )


def _agents(fleet: Fleet, limit: int) -> Text:
    agents = sorted(fleet.agents.values(), key=lambda agent: natural_key(agent.agent_id))
    rows = [
        {
            **published(agent, "agent_id", "type", "state", "since"),
            "liveness": fleet.shown(agent).value,
            "open_commands": agent.load,
        }
        for agent in agents[:limit]
    ]
    lines = table_lines(rows, ("agent_id", "type", "state", "since", "liveness", "open_commands"))
    lines += [f"and {len(agents) - limit} more"] if len(agents) > limit else []
    table = Text("\n".join(lines), no_wrap=True)
    for liveness, colour in _COLOURS.items():
        table.highlight_words([f" {liveness} "], colour)
    return table


def _line(name: str, values: dict[str, int]) -> Text:
    return Text(f"{name:<8}" + "  ".join(f"{key} {value}" for key, value in values.items()), no_wrap=True)
