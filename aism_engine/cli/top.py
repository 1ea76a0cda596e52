"""`aism-engine top`: the fleet in figures, drawn again and again."""

import asyncio
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aism_engine.cli import commands, options
from aism_engine.cli.admin import with_admin_client
from aism_engine.cli.options import parse_duration
from aism_engine.cli.output import ProgressLine, format_age, print_json
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.inspector import Overview


def top(
    *,
    interval: Annotated[str, typer.Option(metavar="TIME", help="Between two looks.")] = "2s",
    slowest: Annotated[int, typer.Option(metavar="N", min=0, help="How many of the slowest commands.")] = 10,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Watch the fleet: states, liveness, queues, rates, and the slowest commands, until Ctrl-C.

    Rates are those of the last ten seconds. With --json each look is a line.

    \b
    Example:
      aism-engine top --interval 5s
      aism-engine top --once --json
    """  # noqa: D301  \b keeps the lines of the example apart
    every_s, console = parse_duration("--interval", interval), Console()

    async def watch(admin: AdminClient) -> None:
        progress = ProgressLine()
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                began = time.monotonic()
                found = await admin.overview(slowest, progress.update if once else None)
                progress.clear()
                if json:
                    print_json(_described(found))
                else:
                    live.update(_screen(found), refresh=True)
                if once:
                    return
                await asyncio.sleep(max(every_s, time.monotonic() - began))  # no more than half of the time

    try:
        with_admin_client(redis, prefix, watch)
    except KeyboardInterrupt:  # the way to end it
        return


def _described(found: Overview) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(found)
    return plain | {"slowest": [commands.described(command) for command in found.slowest]}


def _screen(found: Overview) -> RenderableType:
    head = Text()
    head.append(f"{found.agents} agents", style="bold")
    head.append(f"  {_counts(found.by_liveness)}")
    head.append(f"  {found.held} held" if found.held else "")
    head.append(f"  fleet: {found.hold}" if found.hold else "", style="yellow")
    head.append("" if found.leader else "  no leader", style="red")
    lines = {
        "states": _counts(found.by_state),
        "types": _counts(found.by_type),
        "waiting for": _counts(found.waiting_for),
        "queues": _counts(found.queues),
        "commands": _counts(found.commands),
        "per second": _counts(found.rates),
    }
    figures = Table.grid(padding=(0, 2))
    for name, told in lines.items():
        figures.add_row(Text(name, style="dim"), told or "-")
    if not found.slowest:
        return Group(head, figures)
    slowest, now = Table(box=None, padding=(0, 2, 0, 0), header_style="dim"), time.time()
    for heading in ("SLOWEST COMMAND", "AGENT", "TYPE", "STATUS", "AGE"):
        slowest.add_column(heading)
    for command in found.slowest:
        since = format_age(now - command.accepted_at)
        slowest.add_row(command.command_id, command.agent_id, command.type, command.status.value, since)
    return Group(head, figures, Text(), slowest)


def _counts(counts: dict[str, int] | dict[str, float]) -> str:
    return "  ".join(f"{name or '-'} {count}" for name, count in counts.items())
