"""`aism-engine tail`: what happens, as it happens."""

from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import typer

from aism_engine.cli import options
from aism_engine.cli.admin import with_admin_client
from aism_engine.cli.output import print_json
from aism_engine.ops.admin_client import AdminClient

_HEAD: Final = frozenset({"event", "at", "timestamp", "agent_id", "old_state", "new_state"})


def tail(
    *,
    event: Annotated[list[str] | None, typer.Option("--type", metavar="EVENT", help="Only these; repeatable.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only this agent.")] = None,
    command: Annotated[str | None, typer.Option(metavar="ID", help="Only this command.")] = None,
    count: Annotated[int | None, typer.Option(metavar="N", min=1, help="Stop after so many.")] = None,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Follow the fleet, a line for each event, until Ctrl-C.

    Events are the facts of the audit, such as state_changed, agent_first_seen, agent_lost, command_queued,
    command_succeeded or dead_letter_added, and what is only published: error, measurement, state_declared.

    \b
    Example:
      aism-engine tail --type state_changed --type agent_lost --json
    """  # noqa: D301  \b keeps the lines of the example apart

    async def act(admin: AdminClient) -> None:
        left = count
        async with aclosing(admin.events()) as events:
            async for found in events:
                if (
                    (event and found["event"] not in event)
                    or agent not in {None, found.get("agent_id")}
                    or command not in {None, found.get("command_id")}
                ):
                    continue
                print_json(found) if json else typer.echo(_line(found))
                left = left and left - 1
                if left == 0:
                    return

    try:
        with_admin_client(redis, prefix, act)
    except KeyboardInterrupt:  # the way to end it
        return


def _line(event: dict[str, Any]) -> str:
    return f"{_clock_time(event.get('at') or event.get('timestamp'))}  {described(event)}"


def described(event: dict[str, Any]) -> str:
    """Write an event, but for its time, on one line."""
    parts = [event["event"], event.get("agent_id", "-")]
    if "new_state" in event:
        parts.append(f"{event.get('old_state', '?')} -> {event['new_state']}")
    parts += (f"{name}={_plain(value)}" for name, value in event.items() if name not in _HEAD and value is not None)
    return "  ".join(map(str, parts))


def _clock_time(instant: Any) -> str:  # noqa: ANN401  agents publish what they like
    """Give the time of day where people are."""
    try:
        return datetime.fromisoformat(instant).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except (TypeError, ValueError):
        return "-"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
