"""`aism-engine dev`: a bundled server, an engine and simulated agents in one process."""

import asyncio
import secrets
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer
from rich.console import Console

from aism_engine import logs
from aism_engine.cli import options
from aism_engine.cli.dashboard import DevSummary, LogLines, log_progress, show, summarize
from aism_engine.cli.event_loop import run_in_event_loop
from aism_engine.cli.exit_codes import ExitCode, FailedError
from aism_engine.cli.output import Output
from aism_engine.config import load_settings
from aism_engine.engine import Engine
from aism_engine.errors import ServerUnavailableError
from aism_engine.runtime import signals
from aism_engine.scenarios.simulated_agents import Simulation
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.terminal import print_error_line

log = structlog.get_logger(component="dev")

_SETTINGS: Final[dict[str, object]] = {
    "http.host": "127.0.0.1",
    "http.port": 0,
    "liveness.silent_after": 1.5,
    "liveness.lost_after": 4.0,
    "liveness.scan_interval": 0.5,
    "sampler.poll_interval": 0.5,
    "supervisor.shutdown_timeout": 2.0,
}
"""Durations are shorter than the defaults, so that losses are soon seen and Ctrl-C ends everything within seconds."""
_SILENCE_S: Final = 5.0  # longer than lost_after


def dev(
    *,
    agents: Annotated[int, options.number("Number of simulated agents.", 1, 2000)] = 12,
    duration: Annotated[float | None, options.duration("Stop after this time. Default: at Ctrl-C.")] = None,
    port: Annotated[int, options.number("Port of the Redis server; 0: any free port.", 0, 65535, "PORT")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the server's data in this directory.")
    ] = None,
    http: Annotated[
        dict[str, str] | None,
        options.address("Address that serves /metrics. Default: 127.0.0.1, any free port.", "--http"),
    ] = None,
    seed: Annotated[int | None, options.number("Seed of the agents' random choices. Default: random.", 0)] = None,
    config: options.Config = None,
    output: Output,
) -> ExitCode:
    """Try the engine with simulated agents on a bundled server.

    On a terminal, shows the fleet as top does; otherwise, prints log lines. Ctrl-C stops everything and prints a
    summary.
    While it runs, other commands can use its server: give them the URL from the screen or the log, as --redis URL.

    \b
    Example:
      aism-engine dev
      aism-engine dev --agents 100 --duration 30 --seed 7 --json
    """
    console = Console(stderr=True)
    chosen_seed = secrets.randbits(32) if seed is None else seed

    async def run() -> None:
        stopping = asyncio.Event()
        with (
            signals.install(asyncio.get_running_loop(), lambda _signal: stopping.set()),
            _start(EmbeddedServer(port=port, data_dir=data_dir)) as server,
        ):
            flags = {**_SETTINGS, "redis.url": server.url, **(http or {})}
            settings = load_settings(config, overrides=flags).settings
            url, prefix = settings.redis.url, settings.redis.prefix
            simulation = Simulation(agents, seed=chosen_seed, url=url, prefix=prefix, silence_s=_SILENCE_S)
            log.info("dev_started", redis=url, agents=agents, seed=chosen_seed)
            engine = Engine(settings)
            shown = show(console, engine, log_lines) if console.is_terminal else log_progress(engine)
            summary = await _run(engine, stopping, duration, simulation.run(), shown)
        output.print_fields(summary)

    log_lines = LogLines()
    if console.is_terminal:
        writer = logs.configure(level="warning", format="console", queue=10_000, stream=log_lines)
    else:
        writer = logs.configure(level="info", format="auto", queue=10_000)
    try:
        return run_in_event_loop(run(), writer)
    finally:
        for line in log_lines.lines:
            print_error_line(line)


def _start(server: EmbeddedServer) -> EmbeddedServer:
    try:
        server.start()
    except ServerUnavailableError as error:
        reason = str(error).splitlines()[-1]  # the last line of the server's log
        raise FailedError(f"the bundled server does not start: {reason}") from None
    return server


async def _run(
    engine: Engine, stopping: asyncio.Event, duration_s: float | None, *others: Coroutine[Any, Any, object]
) -> DevSummary:
    """Run the engine and `others` until `stopping`, `duration_s`, or the end of any of them. Stop the engine last."""
    started_at = time.monotonic()
    engine_task = asyncio.create_task(engine.run(stopping))
    tasks = [asyncio.create_task(each) for each in (*others, stopping.wait())]
    ended, _ = await asyncio.wait([engine_task, *tasks], timeout=duration_s, return_when=asyncio.FIRST_COMPLETED)
    seconds = time.monotonic() - started_at
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    stopping.set()
    await engine_task
    for task in ended:
        task.result()  # raises the exception of a failed task
    return summarize(engine.metrics, seconds)
