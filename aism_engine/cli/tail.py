"""`aism-engine tail`: prints events as they happen."""

from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions
from aism_engine.cli.output import Output, as_json_text
from aism_engine.ops.admin_client import AdminClient
from aism_engine.terminal import printable

_HEAD: Final = frozenset({"entry", "event", "at", "timestamp", "agent_id", "old_state", "new_state"})


def tail(
    *,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="EVENT", help="Only this event; repeatable.")
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only events of this agent.")] = None,
    command: Annotated[str | None, typer.Option(metavar="ID", help="Only events of this command.")] = None,
    count: Annotated[int | None, options.number("Stop after N events.", 1)] = None,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """Print the events of a fleet, one a line, until Ctrl-C.

    Events are the facts of the audit, such as state_changed, agent_lost, command_queued or command_succeeded, and
    events that are only published: error, measurement and state_declared.

    \b
    Example:
      aism-engine tail --type state_changed --type agent_lost --json
    """

    async def follow(admin: AdminClient) -> None:
        remaining = count
        async with aclosing(admin.events()) as events:
            async for event in events:
                if (
                    (types and event["event"] not in types)
                    or agent not in {None, event.get("agent_id")}
                    or command not in {None, event.get("command_id")}
                ):
                    continue
                output.print(event, format_event(event))
                remaining = remaining and remaining - 1
                if remaining == 0:
                    return

    fleet.watch(follow)


def format_event(event: dict[str, Any], time_format: str = "%H:%M:%S.%f") -> str:
    """Write an event on one line. Its time is local, or `-` if the event has no valid time."""
    try:
        at = datetime.fromisoformat(event.get("at") or event["timestamp"]).astimezone().strftime(time_format)[:-3]
    except (KeyError, TypeError, ValueError):
        at = "-"
    parts = [at, event["event"], event.get("agent_id", "-")]
    if "new_state" in event:
        parts.append(f"{event.get('old_state', '?')} -> {event['new_state']}")
    others = {name: value for name, value in event.items() if name not in _HEAD and value is not None}
    parts += (f"{name}={value if isinstance(value, str) else as_json_text(value)}" for name, value in others.items())
    return printable("  ".join(map(str, parts)))
