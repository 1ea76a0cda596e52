"""`aism-engine run`: the daemon."""

import asyncio
import signal
from collections.abc import Callable
from typing import Annotated

import typer

from aism_engine import logs
from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions
from aism_engine.cli.event_loop import run_in_event_loop
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.domain.machines.machine import Machines
from aism_engine.engine import Engine
from aism_engine.logs import LogWriter
from aism_engine.metrics import Metrics
from aism_engine.policy_loader import load_machines
from aism_engine.runtime import signals
from aism_engine.settings import Settings


def run(
    *,
    http: Annotated[
        dict[str, str] | None, options.address("Address that serves /metrics, /livez and /readyz.", "--http")
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="FORMAT", help="json, console or auto.")] = None,
    fleet: FleetOptions,
) -> ExitCode:
    """Run the engine until SIGTERM or SIGINT.

    A flag overrides the environment, which overrides the file; see aism-engine config show. The engine waits for a
    Redis server that is not there yet. Logs go to standard error.

    SIGHUP reloads the state machines, all or none. SIGUSR1 reopens the log file.

    \b
    Example:
      aism-engine run --config /etc/aism/engine.toml --redis redis://localhost:6379/0 --http 0.0.0.0:9464
    """
    flags = {**(http or {}), "logs.level": log_level, "logs.format": log_format}
    settings = fleet.settings(flags)
    chosen = settings.logs
    writer = logs.configure(
        level=chosen.level, format=chosen.format, queue=chosen.queue_size, repeats=chosen.max_repeats, file=chosen.file
    )

    def reload() -> Machines:
        return load_machines(fleet.settings(flags).machines)

    return run_in_event_loop(_serve(settings, reload, writer), writer)


async def _serve(settings: Settings, reload: Callable[[], Machines], writer: LogWriter) -> None:
    engine, stopping = Engine(settings), asyncio.Event()

    def stop(_signal: str) -> None:
        engine.notifier.send("STOPPING")
        stopping.set()

    counter = asyncio.create_task(_count_dropped(writer, engine.metrics))
    others = {signal.SIGHUP: lambda: engine.reload_machines(reload), signal.SIGUSR1: writer.reopen}
    try:
        with signals.install(asyncio.get_running_loop(), stop, others):
            await engine.run(stopping)
    finally:
        signals.ignore()
        counter.cancel()


async def _count_dropped(writer: LogWriter, metrics: Metrics) -> None:
    """Copy the count of dropped log lines to the metrics every second: the log writer has no access to them."""
    counted = 0
    while True:
        dropped = writer.dropped
        metrics.log_lines_dropped.inc(dropped - counted)
        counted = dropped
        await asyncio.sleep(1)
