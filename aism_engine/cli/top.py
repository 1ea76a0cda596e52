"""`aism-engine top`: an overview of the fleet that refreshes itself."""

import asyncio
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from aism_engine.cli import options
from aism_engine.cli.admin import STALE, FleetOptions
from aism_engine.cli.commands import command_as_json
from aism_engine.cli.keyboard import Keyboard
from aism_engine.cli.output import Output, ProgressLine, print_json, print_notice
from aism_engine.cli.pending import held_as_json
from aism_engine.cli.screen import Screen
from aism_engine.clock import iso
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.reconnect import Reconnect
from aism_engine.ops.views import Overview
from aism_engine.redact import redacted
from aism_engine.store.client import server_address
from aism_engine.terminal import print_line

_LINES_IN_A_PIPE: Final = 100
"""Height of the overview if standard output is no terminal."""


def top(
    *,
    interval: Annotated[float, options.duration("Time between two refreshes. Default: 2s.")] = 2.0,
    slowest: Annotated[int, options.number("List the N commands that have been open longest.", 0)] = 10,
    once: Annotated[bool, typer.Option("--once", help="Print one overview and exit.")] = False,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """Watch an overview of the fleet until Ctrl-C.

    Shows states, liveness, queues, rates, and the commands that have been open longest. Lists the agents that are lost,
    silent, stuck, diverging, waiting for a human, or held. Rates are averages of the last ten seconds. On a terminal,
    press ? to see the keys, for example to sort the agents or to show one agent. With --json each refresh is one line.

    \b
    Example:
      aism-engine top --interval 5s
      aism-engine top --once --json
    """
    server, is_live = fleet.settings().redis, not (once or output.json) and sys.stdout.isatty()
    screen = Screen(lambda: [f"fleet {server.prefix} on {server_address(server)}"], slowest)

    async def watch(admin: AdminClient) -> None:
        reconnect = Reconnect(print_notice)
        with ProgressLine() as progress:
            report = progress.update if once or is_live else None
            while True:
                started_at = time.monotonic()
                overview = await reconnect.call(partial(admin.overview, report))
                progress.clear()
                screen.update(overview)
                if output.json:
                    print_json(_as_json(overview, slowest))
                elif is_live:
                    break
                else:
                    _print(screen)
                if once:
                    return
                await asyncio.sleep(_pause_s(interval, started_at))
        await show_live(admin, screen, Console(), interval, handle_sigterm=True)

    fleet.watch(watch, "" if is_live else STALE)  # the screen itself says that no engine leads


async def show_live(
    admin: AdminClient, screen: Screen, console: Console, interval_s: float, *, handle_sigterm: bool
) -> None:
    """Show a screen on a terminal, and react to keys, until a key ends it. If `handle_sigterm`, SIGTERM ends it too.

    Reads the fleet again and again; an outage is shown on the screen.
    """
    events, refresh_wanted = asyncio.Queue[str](), asyncio.Event()

    async def refresh() -> None:
        pause_s = 0.0 if screen.overview is None else interval_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await refresh_wanted.wait()
            refresh_wanted.clear()
            started_at = time.monotonic()
            try:
                await screen.read(admin)
            except ServerUnavailableError as error:
                screen.outage = redacted(error.explanation)
            events.put_nowait("refresh")
            pause_s = _pause_s(interval_s, started_at)

    live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with Keyboard(events, handle_sigterm=handle_sigterm) as keyboard, live:
        refreshing = asyncio.create_task(refresh())
        refreshing.add_done_callback(lambda _: events.put_nowait("quit"))
        events.put_nowait("begin")
        try:
            while screen.press(event := await events.get()):
                if event == "enter":
                    refresh_wanted.set()
                lines = screen.draw(console.width, console.height, keys=keyboard.is_reading)
                live.update(Text("\n", no_wrap=True).join(lines), refresh=True)
        finally:
            refreshing.cancel()
            await asyncio.wait([refreshing])
    if not refreshing.cancelled():
        refreshing.result()


def _pause_s(interval_s: float, started_at: float) -> float:
    """Return a pause that is at least as long as the read before it, so that reading takes at most half of the time."""
    return max(interval_s, time.monotonic() - started_at)


def _print(screen: Screen) -> None:
    console = Console()
    if not console.is_terminal:
        print_line("\n".join(line.plain for line in screen.draw(None, _LINES_IN_A_PIPE, keys=False)))
        return
    for line in screen.draw(console.width, console.height - 1, keys=False):
        console.print(line, no_wrap=True, crop=False)


def _as_json(overview: Overview, slowest: int) -> dict[str, Any]:
    lease = overview.lease
    problems = {problem: [view.agent.agent_id for view in views] for problem, views in overview.problems.items()}
    return {
        "leader": lease.token or None,
        "led_at": iso(lease.led_at) if lease.led_at else None,
        "fleet_hold": held_as_json(overview.fleet_hold),
        "agents": len(overview.agents),
        "problems": problems,
        **overview.counts,
        "slowest": [command_as_json(command) for command in overview.slowest(slowest)],
    }
