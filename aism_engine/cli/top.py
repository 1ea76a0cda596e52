"""`aism-engine top`: an overview of the fleet that refreshes itself."""

import asyncio
import time
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions
from aism_engine.cli.commands import command_as_json
from aism_engine.cli.output import Output, ProgressLine, print_json, table_lines
from aism_engine.cli.pending import format_hold, held_as_json
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.inspector import Overview
from aism_engine.terminal import printable

_SLOWEST_COLUMNS: Final = ("command_id", "agent_id", "type", "status", "accepted_at")


def top(
    *,
    interval: Annotated[float, options.duration("Time between two refreshes. Default: 2s.")] = 2.0,
    slowest: Annotated[int, options.number("Number of slowest commands to list.", 0)] = 10,
    once: Annotated[bool, typer.Option("--once", help="Print one overview and exit.")] = False,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """Watch an overview of the fleet until Ctrl-C.

    Shows states, liveness, queues, rates and the commands that have been open longest. Rates are averages of the
    last ten seconds. With --json each refresh is one line.

    \b
    Example:
      aism-engine top --interval 5s
      aism-engine top --once --json
    """

    async def watch(admin: AdminClient) -> None:
        with ProgressLine() as progress, Live(auto_refresh=False) as live:
            while True:
                started_at = time.monotonic()
                overview = await admin.overview(slowest, progress.update if once else None)
                progress.clear()
                slowest_commands = [command_as_json(command) for command in overview.slowest]
                if output.json:
                    hold = held_as_json(overview.fleet_hold)
                    print_json(msgspec.to_builtins(overview) | {"fleet_hold": hold, "slowest": slowest_commands})
                else:
                    live.update(_screen(overview, slowest_commands), refresh=True)
                if once:
                    return
                # The pause is at least as long as the read, so that reading takes at most half of the time.
                await asyncio.sleep(max(interval, time.monotonic() - started_at))

    fleet.watch(watch)


def _screen(overview: Overview, slowest: list[dict[str, Any]]) -> RenderableType:
    head = Text()
    head.append(f"{overview.agents} agents", style="bold")
    head.append(f"  {_counts(overview.by_liveness)}")
    head.append(f"  {overview.held} held" if overview.held else "")
    if overview.fleet_hold.hold:
        head.append(f"  {printable(format_hold('the fleet', held_as_json(overview.fleet_hold)))}", style="yellow")
    head.append("" if overview.leader else "  no leader", style="red")
    counts = Table.grid(padding=(0, 2))
    for name in ("by_state", "by_type", "waiting_for", "queues", "commands", "rates"):
        counts.add_row(Text(name.replace("_", " "), style="dim"), _counts(getattr(overview, name)) or "-")
    commands = table_lines(slowest, _SLOWEST_COLUMNS) if slowest else []
    return Group(head, counts, Text("\n".join(["", *commands]), no_wrap=True))


def _counts(counts: dict[str, int] | dict[str, float]) -> str:
    return "  ".join(f"{name or '-'} {count}" for name, count in counts.items())
