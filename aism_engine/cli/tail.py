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

    After an outage of Redis the output continues with the fact after the last printed one. If the server has lost
    facts, or has trimmed facts that were not printed yet, a line between the events says so.

    \b
    Example:
      aism-engine tail --type state_changed --type agent_lost --json
      aism-engine tail --exclude measurement
    """

    async def follow(admin: AdminClient) -> None:
        remaining = count
        async with aclosing(admin.events(print_notice)) as events:
            async for event in events:
                is_wanted = (
                    (not types or event.get("event") in types)
                    and event.get("event") not in (excluded or ())
                    and agent in {None, event.get("agent_id")}
                    and command in {None, event.get("command_id")}
                )
                if "event" not in event or is_wanted:
                    output.print(event, format_item(event))
                    remaining = remaining and remaining - ("event" in event)
                if remaining == 0:
                    return

    fleet.watch(follow, "new facts are printed when one leads")


def format_item(item: dict[str, Any], time_format: str = "%H:%M:%S.%f") -> str:
    """Return an event, or a note of missing entries, as one line. The time is local, or `-` if it is not valid."""
    if gap := item.get("gap"):
        count = "an unknown number of" if gap.entries is None else gap.entries
        between = f"{iso(entry_time(gap.after))} and {iso(entry_time(gap.before))}"
        return f"--- {count} entries are missing between {between} ---"
    if rollback := item.get("rollback"):
        since = iso(entry_time(rollback.after))
        return f"--- the server lost the entries after {since}: facts above with a later time were undone ---"
    try:
        at = datetime.fromisoformat(item.get("at") or item["timestamp"]).astimezone().strftime(time_format)[:-3]
    except (KeyError, TypeError, ValueError):
        at = "-"
    parts = [at, item["event"], item.get("agent_id", "-")]
    if "new_state" in item:
        parts.append(f"{item.get('old_state', '?')} -> {item['new_state']}")
    others = {name: value for name, value in item.items() if name not in _HEAD and value is not None}
    parts += (f"{name}={value if isinstance(value, str) else as_json_text(value)}" for name, value in others.items())
    return printable("  ".join(map(str, parts)))
