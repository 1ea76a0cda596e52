"""`aism-engine commands`: what was sent, how far it is, and the way to take it back."""

import time
from typing import Annotated, Any

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import (
    format_outcome,
    outcome_exit_code,
    read_outcome,
    send_request,
    wait_for_outcome,
    with_admin_client,
)
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.options import parse_duration
from aism_engine.cli.output import ProgressLine, format_age, print_fields, print_json, print_table
from aism_engine.clock import iso
from aism_engine.domain.commands.command import Command, Status
from aism_engine.ops.admin_client import AdminClient

app = options.CommandGroup(help="List commands, show one, wait for it, or cancel it.")
_Id = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="Of a command, or of a group.")]


@app.command("list")
def list_(  # noqa: PLR0913  each is a flag
    *,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this agent.")] = None,
    status: Annotated[list[Status] | None, typer.Option(help="Only these; repeatable.")] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only those of this type.")] = None,
    group: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this group.")] = None,
    ended: Annotated[
        bool, typer.Option("--ended", help="Those that have ended, too, while they are kept. Reads all keys.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="So many, the newest.")] = 100,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """List the commands that have not ended, the oldest first.

    \b
    Example:
      aism-engine commands list --agent architect-a1b2c3 --status waiting --status scheduled
    """  # noqa: D301  \b keeps the lines of the example apart, here and below
    progress = ProgressLine()
    try:
        look = AdminClient.all_commands if ended else AdminClient.open_commands
        everything = with_admin_client(redis, prefix, lambda admin: look(admin, progress.update))
    finally:
        progress.clear()
    found = [
        command
        for command in everything
        if agent in {None, command.agent_id}
        and (not status or command.status in status)
        and kind in {None, command.type}
        and group in {None, command.group_id}
    ]
    shown = found[-limit:]
    if json:
        print_json([described(command) for command in shown])
        return
    print_table(("COMMAND", "AGENT", "TYPE", "STATUS", "PRIORITY", "ATTEMPT", "AGE", "DUE"), map(_row, shown))
    if len(shown) < len(found):
        typer.echo(f"the newest {len(shown)} of {len(found)}; --limit shows more", err=True)


@app.command()
def show(name: _Id, *, redis: options.Redis = None, prefix: options.Prefix = None, json: options.Json = False) -> None:
    """Show all that is kept of a command, or of a request to many.

    \b
    Example:
      aism-engine commands show 01930f6e-7a3c-7c40-9d3b-2f1a5b8e6c01
    """  # noqa: D301
    found = with_admin_client(redis, prefix, lambda admin: read_outcome(admin, name))
    if json:
        print_json(found)
    else:
        print_fields((field.replace("_", " "), value) for field, value in found.items())


@app.command("wait")
def wait_(
    name: _Id,
    *,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Longest wait, as in 10m.")] = "60s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> ExitCode:
    """Wait until a command has ended, or a group is decided. ExitCode code 0 says that it has succeeded.

    \b
    Example:
      aism-engine commands wait nightly-2026-11-23 --timeout 10m
    """  # noqa: D301
    ends_at = time.monotonic() + parse_duration("--timeout", timeout)
    found = with_admin_client(redis, prefix, lambda admin: wait_for_outcome(admin, name, ends_at))
    print_json(found) if json else typer.echo(f"{name} {format_outcome(found)}")
    return outcome_exit_code(found)


@app.command()
def cancel(
    name: _Id,
    *,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="For the audit.")] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Longest wait for the engine.")] = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> ExitCode:
    """Take back a command, or all that is open of a group.

    What lies in the agent's list is taken out of it. What the agent has already is cancelled all the same, and the
    agent gets a command `cancel` that says so.

    \b
    Example:
      aism-engine commands cancel nightly-2026-11-23 --reason "wrong branch"
    """  # noqa: D301
    longest_s = parse_duration("--timeout", timeout)

    async def act(admin: AdminClient) -> dict[str, Any]:
        ends_at = time.monotonic() + longest_s
        kind = "command_id" if await admin.command(name) or not await admin.group(name) else "group_id"
        payload = {kind: name} | ({"reason": reason} if reason is not None else {})
        reply = await send_request(admin, "cancel", payload, timeout_s=longest_s, json=json)
        return await wait_for_outcome(admin, reply["group_id"], ends_at) if reply.get("targets") else reply

    found = with_admin_client(redis, prefix, act)
    if json:
        print_json(found)
    elif "total" in found:
        typer.echo(f"{name}: {found['succeeded']} of {found['total']} cancelled, the others had ended")
    else:
        typer.echo(f"{name} is cancelled")
    return ExitCode.DONE


def described(command: Command) -> dict[str, Any]:
    """Build what programs get of a command: the names are published, and so for ever."""
    return {
        "command_id": command.command_id,
        "agent_id": command.agent_id,
        "type": command.type,
        "status": command.status,
        "target": command.target,
        "priority": command.priority,
        "attempt": command.attempt,
        "group_id": command.group_id,
        "accepted_at": iso(command.accepted_at),
        "expires_at": iso(command.expires_at),
        "due_at": iso(command.due_at) if command.open else None,
    }


def _row(command: Command) -> tuple[object, ...]:
    now = time.time()
    due = f"in {format_age(command.due_at - now)}" if command.open and command.due_at > now else None
    return (
        *(command.command_id, command.agent_id, command.type, command.status.value, command.priority),
        *(command.attempt, format_age(now - command.accepted_at), due),
    )
