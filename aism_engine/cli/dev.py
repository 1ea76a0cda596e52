"""`aism-engine dev`: a server, an engine and a fleet of pretenders, in one process and one command."""

import asyncio
import secrets
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

from aism_engine import logs
from aism_engine.cli import options
from aism_engine.cli.dashboard import DevSummary, Lines, Show, Table, summarize
from aism_engine.cli.event_loop import run_in_event_loop
from aism_engine.cli.exit_codes import ExitCode, RefusedError
from aism_engine.cli.output import print_fields, print_json
from aism_engine.config import load_settings_and_machines
from aism_engine.engine import Engine
from aism_engine.errors import ServerUnavailableError
from aism_engine.runtime import signals
from aism_engine.scenarios.simulated_agents import Simulation
from aism_engine.store.embedded import EmbeddedServer

log = logs.get_logger("dev")

_SETTINGS: Final = {
    "liveness.silent_after": 1.5,
    "liveness.lost_after": 4.0,
    "liveness.scan_interval": 0.5,
    "sampler.poll_interval": 0.5,
    "supervisor.shutdown_timeout": 2.0,
}
"""Shorter than in earnest, so that there is something to see: and all of it has to be gone within 5 s of Ctrl-C."""
_SILENCE_S: Final = 5.0  # long enough to be lost


def dev(
    *,
    agents: Annotated[int, typer.Option(min=1, max=2000, metavar="N", help="How many simulated agents.")] = 12,
    duration: Annotated[float | None, typer.Option(metavar="S", help="End after so many seconds.")] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of the server; 0 takes any free one.")
    ] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the server's append-only file here.", show_default=False)
    ] = None,
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to serve /metrics.")] = "127.0.0.1:0",
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same again for the same choices.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> ExitCode:
    """Try it all out: start the bundled server, the engine, and simulated agents that keep it busy.

    Shows the fleet live on a terminal, and logs elsewhere. Ctrl-C, or the end of --duration, stops everything that was
    started and prints a summary. Speak to it meanwhile with the other commands, and the --redis that is shown.

    \b
    Examples:
      aism-engine dev
      aism-engine dev --agents 100 --duration 30 --seed 7 --json
    """  # noqa: D301  the \b is for the help: it keeps the lines of the example apart
    host, http_port = options.address(http)
    console = Console(stderr=True)
    show: Show = Table(console) if console.is_terminal else Lines()
    chosen = secrets.randbits(32) if seed is None else seed

    async def run() -> None:
        stopping = asyncio.Event()
        with (
            signals.install(asyncio.get_running_loop(), lambda _signal: stopping.set()),
            _started(EmbeddedServer(port=port, data_dir=data_dir)) as server,
        ):
            flags = {**_SETTINGS, "redis.url": server.url, "http.host": host, "http.port": http_port}
            settings = load_settings_and_machines(flags=flags).settings
            url, prefix = settings.redis.url, settings.redis.prefix
            simulation = Simulation(agents, seed=chosen, url=url, prefix=prefix, silence_s=_SILENCE_S)
            log.info("dev_started", redis=url, agents=agents, seed=chosen)
            summary = await _play(Engine(settings), simulation, show, stopping, duration)
        if json:
            print_json(summary)
        else:
            print_fields(msgspec.structs.asdict(summary).items())

    return run_in_event_loop(
        run(), logs.configure(level=show.level, format=show.format, queue=10_000, stream=show.stream)
    )


def _started(server: EmbeddedServer) -> EmbeddedServer:
    try:
        server.start()
    except ServerUnavailableError as error:
        reason = str(error).splitlines()[-1]  # of its log, that is where it says why
        raise RefusedError(f"the bundled server does not start: {reason}") from None
    return server


async def _play(
    engine: Engine, simulation: Simulation, show: Show, stopping: asyncio.Event, duration_s: float | None
) -> DevSummary:
    """Let the engine and the fleet run until something ends, and stop the fleet before the engine."""
    began = time.monotonic()
    running = asyncio.create_task(engine.run(stopping))
    players = [
        asyncio.create_task(simulation.run()),
        asyncio.create_task(_showing(show, engine, began)),
        asyncio.create_task(stopping.wait()),
    ]
    ended, _ = await asyncio.wait([running, *players], timeout=duration_s, return_when=asyncio.FIRST_COMPLETED)
    seconds = time.monotonic() - began
    for player in players:
        player.cancel()
    await asyncio.wait(players)
    stopping.set()
    await running
    for player in ended:
        player.result()
    return summarize(engine.metrics, seconds)


async def _showing(show: Show, engine: Engine, began: float) -> None:
    with show:
        while True:
            await asyncio.sleep(show.every_s)
            show.draw(engine, time.monotonic() - began)
