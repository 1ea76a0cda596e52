"""`aism-engine top`: an overview of the fleet that refreshes itself."""

import asyncio
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aism_engine.cli import options
from aism_engine.cli.admin import with_admin_client
from aism_engine.cli.commands import command_as_json
from aism_engine.cli.output import ProgressLine, format_age, print_json
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.inspector import Overview


def top(
    *,
    interval: Annotated[str, typer.Option(metavar="DURATION", help="Time between two refreshes.")] = "2s",
    slowest: Annotated[int, typer.Option(metavar="N", min=0, help="Number of slowest commands to list.")] = 10,
    once: Annotated[bool, typer.Option("--once", help="Print one overview and exit.")] = False,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Watch an overview of the fleet until Ctrl-C.

    Shows states, liveness, queues, rates and the commands that have been open longest. Rates are averages of the
    last ten seconds. With --json each refresh is one line.

    \b
    Example:
      aism-engine top --interval 5s
      aism-engine top --once --json
    """
    interval_s, console = options.parse_duration("--interval", interval), Console()

    async def watch(admin: AdminClient) -> None:
        progress = ProgressLine()
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                started_at = time.monotonic()
                overview = await admin.overview(slowest, progress.update if once else None)
                progress.clear()
                if json:
                    print_json(_as_json(overview))
                else:
                    live.update(_screen(overview), refresh=True)
                if once:
                    return
                # The pause is at least as long as the read, so that reading takes at most half of the time.
                await asyncio.sleep(max(interval_s, time.monotonic() - started_at))

    try:
        with_admin_client(redis, prefix, watch)
    except KeyboardInterrupt:  # Ctrl-C is the regular end
        return


def _as_json(overview: Overview) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(overview)
    return plain | {"slowest": [command_as_json(command) for command in overview.slowest]}


def _screen(overview: Overview) -> RenderableType:
    head = Text()
    head.append(f"{overview.agents} agents", style="bold")
    head.append(f"  {_counts(overview.by_liveness)}")
    head.append(f"  {overview.held} held" if overview.held else "")
    head.append(f"  fleet: {overview.hold}" if overview.hold else "", style="yellow")
    head.append("" if overview.leader else "  no leader", style="red")
    lines: dict[str, dict[str, int] | dict[str, float]] = {
        "states": overview.by_state,
        "types": overview.by_type,
        "waiting for": overview.waiting_for,
        "queues": overview.queues,
        "commands": overview.commands,
        "per second": overview.rates,
    }
    counts = Table.grid(padding=(0, 2))
    for name, values in lines.items():
        counts.add_row(Text(name, style="dim"), _counts(values) or "-")
    if not overview.slowest:
        return Group(head, counts)
    slowest, now = Table(box=None, padding=(0, 2, 0, 0), header_style="dim"), time.time()
    for heading in ("SLOWEST COMMAND", "AGENT", "TYPE", "STATUS", "AGE"):
        slowest.add_column(heading)
    for command in overview.slowest:
        age = format_age(now - command.accepted_at)
        slowest.add_row(command.command_id, command.agent_id, command.type, command.status.value, age)
    return Group(head, counts, Text(), slowest)


def _counts(counts: dict[str, int] | dict[str, float]) -> str:
    return "  ".join(f"{name or '-'} {count}" for name, count in counts.items())
