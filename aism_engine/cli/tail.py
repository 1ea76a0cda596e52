"""`aism-engine tail`: prints events as they happen."""

from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions
from aism_engine.cli.output import Output, as_json_text, print_notice
from aism_engine.clock import iso
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.audit_log import entry_time
from aism_engine.terminal import printable

_HEAD: Final = frozenset({"entry", "event", "at", "timestamp", "agent_id", "old_state", "new_state"})


def tail(
    *,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="EVENT", help="Only this event; repeatable.")
    ] = None,
    excluded: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="EVENT", help="All events but this one; repeatable.")
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

    After an outage of Redis the facts continue behind the last one that was printed. If the server has lost facts, or
    has trimmed facts that were not printed yet, a line between the events says so.

    \b
    Example:
      aism-engine tail --type state_changed --type agent_lost --json
      aism-engine tail --exclude measurement
    """

    async def follow(admin: AdminClient) -> None:
        remaining = count
        async with aclosing(admin.events(print_notice)) as events:
            async for event in events:
                if "event" not in event:
                    output.print(event, format_item(event))
                    continue
                if (
                    (types and event["event"] not in types)
                    or event["event"] in (excluded or ())
                    or agent not in {None, event.get("agent_id")}
                    or command not in {None, event.get("command_id")}
                ):
                    continue
                output.print(event, format_event(event))
                remaining = remaining and remaining - 1
                if remaining == 0:
                    return

    fleet.watch(follow, "facts follow when one leads")


def format_item(item: dict[str, Any], time_format: str = "%H:%M:%S.%f") -> str:
    """Write an event, or a note of missing entries, on one line."""
    if gap := item.get("gap"):
        count = "an unknown number of" if gap.entries is None else gap.entries
        between = f"{iso(entry_time(gap.after))} and {iso(entry_time(gap.before))}"
        return f"--- {count} entries are missing between {between} ---"
    if rollback := item.get("rollback"):
        since = iso(entry_time(rollback.after))
        return f"--- the server was rolled back to {since}: later facts above were undone ---"
    return format_event(item, time_format)


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
