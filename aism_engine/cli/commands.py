"""`aism-engine commands`: lists commands, shows one, waits for one, cancels one."""

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
from aism_engine.cli.output import ProgressLine, format_age, print_fields, print_json, print_table
from aism_engine.clock import iso
from aism_engine.domain.commands.command import Command, Status
from aism_engine.ops.admin_client import AdminClient

app = options.CommandGroup(help="List commands, show one, wait for it, or cancel it.")
_Id = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="Id of a command or of a group.")]


@app.command("list")
def list_(
    *,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only commands of this agent.")] = None,
    status: Annotated[list[Status] | None, typer.Option(help="Only this status; repeatable.")] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only commands of this type.")] = None,
    group: Annotated[str | None, typer.Option(metavar="ID", help="Only commands of this group.")] = None,
    ended: Annotated[
        bool, typer.Option("--ended", help="Also commands that have ended and are still kept. Scans all keys.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Show only the newest N.")] = 100,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """List the commands that have not ended, the oldest first.

    \b
    Example:
      aism-engine commands list --agent architect-a1b2c3 --status waiting --status scheduled
    """
    progress = ProgressLine()
    try:
        read = AdminClient.all_commands if ended else AdminClient.open_commands
        commands = with_admin_client(redis, prefix, lambda admin: read(admin, progress.update))
    finally:
        progress.clear()
    found = [
        command
        for command in commands
        if agent in {None, command.agent_id}
        and (not status or command.status in status)
        and kind in {None, command.type}
        and group in {None, command.group_id}
    ]
    shown = found[-limit:]
    if json:
        print_json([command_as_json(command) for command in shown])
        return
    print_table(("COMMAND", "AGENT", "TYPE", "STATUS", "PRIORITY", "ATTEMPT", "AGE", "DUE"), map(_row, shown))
    if len(shown) < len(found):
        typer.echo(f"showing the newest {len(shown)} of {len(found)}; use --limit to show more", err=True)


@app.command()
def show(
    record_id: _Id, *, redis: options.Redis = None, prefix: options.Prefix = None, json: options.Json = False
) -> None:
    """Show the record of a command or a group.

    \b
    Example:
      aism-engine commands show 01930f6e-7a3c-7c40-9d3b-2f1a5b8e6c01
    """
    found = with_admin_client(redis, prefix, lambda admin: read_outcome(admin, record_id))
    if json:
        print_json(found)
    else:
        print_fields((field.replace("_", " "), value) for field, value in found.items())


@app.command()
def wait(
    record_id: _Id,
    *,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="Longest wait for the outcome.")] = "60s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> ExitCode:
    """Wait until a command has ended, or a group is decided. Exit code 0 means that it has succeeded.

    \b
    Example:
      aism-engine commands wait nightly-2026-11-23 --timeout 10m
    """
    ends_at = time.monotonic() + options.parse_duration("--timeout", timeout)
    found = with_admin_client(redis, prefix, lambda admin: wait_for_outcome(admin, record_id, ends_at))
    print_json(found) if json else typer.echo(f"{record_id} {format_outcome(found)}")
    return outcome_exit_code(found)


@app.command()
def cancel(
    record_id: _Id,
    *,
    reason: options.Reason = None,
    timeout: options.ReplyTimeout = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> ExitCode:
    """Cancel a command, or all open commands of a group.

    A queued command is removed from the agent's list. If the agent has already taken the command, the engine sends it
    a command of type cancel.

    \b
    Example:
      aism-engine commands cancel nightly-2026-11-23 --reason "wrong branch"
    """
    timeout_s = options.parse_duration("--timeout", timeout)

    async def act(admin: AdminClient) -> dict[str, Any]:
        ends_at = time.monotonic() + timeout_s
        kind = "command_id" if await admin.command(record_id) or not await admin.group(record_id) else "group_id"
        payload = {kind: record_id} | ({"reason": reason} if reason is not None else {})
        reply = await send_request(admin, "cancel", payload, timeout_s=timeout_s, json=json)
        return await wait_for_outcome(admin, reply["group_id"], ends_at) if reply.get("targets") else reply

    found = with_admin_client(redis, prefix, act)
    if json:
        print_json(found)
    elif "total" in found:
        typer.echo(f"group {record_id}: {found['succeeded']} of {found['total']} commands cancelled, others had ended")
    else:
        typer.echo(f"{record_id} is cancelled")
    return ExitCode.DONE


def command_as_json(command: Command) -> dict[str, Any]:
    """Build the JSON of a command. The field names are a published interface."""
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
