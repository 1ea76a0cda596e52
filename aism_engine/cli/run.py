"""`aism-engine run`: the daemon."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

from aism_engine import logs
from aism_engine.cli import options
from aism_engine.cli.event_loop import run_in_event_loop
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.config import load_machines, load_settings, load_settings_and_machines
from aism_engine.domain.machines.machine import Machines
from aism_engine.engine import Engine
from aism_engine.logs import LogWriter
from aism_engine.metrics import Metrics
from aism_engine.runtime import signals
from aism_engine.settings import Settings


def run(
    *,
    config: options.Config = None,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Where to serve /metrics, /livez, /readyz.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="FORMAT", help="json, console or auto.")] = None,
) -> ExitCode:
    """Run the engine until SIGTERM or SIGINT. SIGHUP makes it read its machines anew, all of them or none, SIGUSR1 open
    its log file anew.

    A flag beats the environment, which beats the file; `aism-engine config show` tells what is in force. Redis need not
    be there yet: the engine waits for it and says so. Logs go to standard error.

    \b
    Example:
      aism-engine run --config /etc/aism/engine.toml --redis redis://localhost:6379/0 --http 0.0.0.0:9464
    """  # noqa: D301  the \b is for the help: it keeps the lines of the example apart
    host, port = options.address(http) if http is not None else (None, None)
    flags = {
        "redis.url": redis,
        "redis.prefix": prefix,
        "http.host": host,
        "http.port": port,
        "logs.level": log_level,
        "logs.format": log_format,
    }
    settings = load_settings_and_machines(config, flags).settings
    told = settings.logs
    writer = logs.configure(
        level=told.level, format=told.format, queue=told.queue_size, repeats=told.max_repeats, file=told.file
    )

    def machines() -> Machines:
        return load_machines(load_settings(config, overrides=flags).settings.machines)

    return run_in_event_loop(_serve(settings, machines, writer), writer)


async def _serve(settings: Settings, machines: Callable[[], Machines], writer: LogWriter) -> None:
    engine, stopping = Engine(settings), asyncio.Event()

    def stop(_signal: str) -> None:
        engine.notifier.stopping()
        stopping.set()

    counting = asyncio.create_task(_count_dropped(writer, engine.metrics))
    try:
        others = {signal.SIGHUP: lambda: engine.reload_machines(machines), signal.SIGUSR1: writer.reopen}
        with signals.install(asyncio.get_running_loop(), stop, others):
            try:
                await engine.run(stopping)
            finally:
                counting.cancel()
                with suppress(asyncio.CancelledError):
                    await counting
    finally:
        signals.ignore()


async def _count_dropped(writer: LogWriter, metrics: Metrics) -> None:
    """Carry the count of lost log lines over to the metrics, which the logs know nothing of."""
    told = 0
    while True:
        dropped = writer.dropped
        metrics.log_lines_dropped.inc(dropped - told)
        told = dropped
        await asyncio.sleep(1)
