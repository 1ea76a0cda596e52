"""What `aism-engine dev` shows while it runs: a table on a terminal, lines of the log elsewhere."""

import io
import time
from collections import Counter
from typing import Final, Protocol, Self, TextIO

import msgspec
from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from aism_engine import logs
from aism_engine.cli.output import format_age
from aism_engine.domain.fleet import Fleet
from aism_engine.engine import Engine
from aism_engine.metrics import Metrics
from aism_engine.store.client import where

log = logs.get_logger("dev")

_COLOURS: Final = {"fresh": "green", "silent": "yellow", "lost": "red", "left": "dim", "unknown": "yellow"}
_DONE: Final = {
    "responses": "responses_applied",
    "state changes": "state_changes",
    "commands": "commands_dispatched",
    "succeeded": "commands_succeeded",
    "lost": "agents_lost",
    "dead letters": "dead_letters",
}
_LINES_AROUND: Final = 10
"""Of the screen, that are not rows of agents."""


class Show(Protocol):
    """A way to show what goes on, and what the logs have to be like meanwhile."""

    level: str
    format: str
    stream: TextIO | None
    every_s: float

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def draw(self, engine: Engine, seconds: float) -> None: ...


class Table:
    """On a terminal: one screen, drawn again and again; warnings appear above it."""

    level, format, every_s = "warning", "console", 0.25

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self.stream: TextIO | None = _Above(console)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def draw(self, engine: Engine, seconds: float) -> None:
        self._live.update(_screen(engine, self._live.console, seconds), refresh=True)


class Lines:
    """Elsewhere: a line of the log every few seconds."""

    level, format, every_s = "info", "auto", 2.0
    stream: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def draw(self, engine: Engine, seconds: float) -> None:
        states = Counter(agent.state for agent in engine.writer.fleet.agents.values())
        done = msgspec.structs.asdict(summarize(engine.metrics, seconds))
        log.info("dev_progress", states=dict(states), depths=queue_depths(engine.metrics), **done)


class _Above(io.StringIO):
    """A stream for the logs: a line that is written appears above the table, and does not tear it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def write(self, text: str) -> int:
        self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        return len(text)


def _screen(engine: Engine, console: Console, seconds: float) -> RenderableType:
    """Draw the fleet as the engine holds it to be now."""
    fleet, done = engine.writer.fleet, summarize(engine.metrics, seconds)
    place, (host, port) = where(engine.settings.redis), engine.http.address
    states = Counter(agent.state for agent in fleet.agents.values())
    return Group(
        Text.assemble(("AISM Engine", "bold"), f"  {place}  http://{host}:{port}/metrics  {engine.leadership.role}"),
        Text(),
        _agents(fleet, most=max(3, console.height - _LINES_AROUND)),
        Text(),
        _line("states", dict(sorted(states.items()))),
        _line("depths", queue_depths(engine.metrics)),
        _line("so far", {name: getattr(done, field) for name, field in _DONE.items()}),
        Text(
            f"{'rate':<8}{done.responses_per_second:g} responses per second over {format_age(seconds)}; Ctrl-C ends it"
        ),
    )


def _agents(fleet: Fleet, most: int) -> Grid:
    table = Grid(box=None, pad_edge=False, header_style="bold")
    for name in ("AGENT", "TYPE", "STATE", "SINCE", "LIVENESS", "OPEN"):
        table.add_column(name, justify="right" if name in {"SINCE", "OPEN"} else "left", no_wrap=True)
    agents = sorted(fleet.agents.values(), key=lambda agent: agent.agent_id)
    for agent in agents[:most]:
        shown = fleet.shown(agent).value
        liveness = Text(shown, _COLOURS.get(shown, ""))
        since = format_age(max(0.0, time.time() - agent.since))
        table.add_row(agent.agent_id, agent.type, agent.state, since, liveness, str(len(agent.open_commands)))
    if len(agents) > most:
        table.add_row(f"and {len(agents) - most} more")
    return table


def _line(name: str, values: dict[str, int]) -> Text:
    return Text(f"{name:<8}" + "  ".join(f"{each} {value}" for each, value in values.items()))


class DevSummary(Struct, frozen=True):
    """The summary of `aism-engine dev`. Its names are published, and so for ever."""

    responses_applied: int
    commands_dispatched: int
    commands_succeeded: int
    state_changes: int
    agents_lost: int
    dead_letters: int
    responses_per_second: float
    """Responses applied, by the seconds they took in all."""


def summarize(metrics: Metrics, seconds: float) -> DevSummary:
    """Read the figures of an engine that has worked for so many seconds."""
    applied = _count(metrics, "aism_decisions_total", service="response_consumer", outcome="applied")
    return DevSummary(
        responses_applied=applied,
        commands_dispatched=_count(metrics, "aism_audit_events_total", event="command_queued"),
        commands_succeeded=_count(metrics, "aism_audit_events_total", event="command_succeeded"),
        state_changes=_count(metrics, "aism_audit_events_total", event="state_changed"),
        agents_lost=_count(metrics, "aism_audit_events_total", event="agent_lost"),
        dead_letters=_count(metrics, "aism_dead_letters_total"),
        responses_per_second=round(applied / seconds, 1) if seconds > 0 else 0.0,
    )


def queue_depths(metrics: Metrics) -> dict[str, int]:
    """Read how many lie in each queue, stream and index, as last sampled."""
    return {
        sample.labels["queue"]: int(sample.value)
        for family in metrics.queue_depth.collect()
        for sample in family.samples
    }


def _count(metrics: Metrics, name: str, **labels: str) -> int:
    """Add up all samples of this name that have these labels."""
    return int(
        sum(
            sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    )
