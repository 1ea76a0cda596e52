"""`aism-engine commands`: lists commands, shows one, waits for one, cancels one."""

from typing import Annotated, Any, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import (
    FleetOptions,
    RequestOptions,
    format_outcome,
    outcome_exit_code,
    read_outcome,
    wait_for_outcome,
)
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.output import Output, ProgressLine, fields_as_json
from aism_engine.cli.pending import format_causes, read_causes
from aism_engine.domain.commands.command import Command, Status
from aism_engine.ops.admin_client import AdminClient

app = options.CommandGroup(help="List commands, show one, wait for it, or cancel it.")

_Id = Annotated[str, typer.Argument(metavar="ID", help="Id of a command or of a group.")]


COMMAND_COLUMNS: Final = ("command_id", "agent_id", "type", "status", "priority", "attempt", "accepted_at", "due_at")


@app.command("list")
def list_(
    *,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only commands of this agent.")] = None,
    status: Annotated[
        list[Status] | None, typer.Option(metavar="STATUS", help=f"Only this status, repeatable: {', '.join(Status)}.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only commands of this type.")] = None,
    group: Annotated[str | None, typer.Option(metavar="ID", help="Only commands of this group.")] = None,
    ended: Annotated[
        bool, typer.Option("--ended", help="Also commands that have ended and are still kept. Scans all keys.")
    ] = False,
    limit: options.Limit = 100,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """List the commands that have not ended, the oldest first.

    \b
    Example:
      aism-engine commands list --agent architect-a1b2c3 --status waiting --status scheduled
    """
    read = AdminClient.all_commands if ended else AdminClient.open_commands
    with ProgressLine() as progress:
        commands = fleet.read(lambda admin: read(admin, progress.update))
    found = [
        command
        for command in commands
        if agent in {None, command.agent_id}
        and (not status or command.status in status)
        and kind in {None, command.type}
        and group in {None, command.group_id}
    ]
    output.print_table([command_as_json(each) for each in found[-limit:]], COMMAND_COLUMNS, of=len(found))


@app.command()
def show(record_id: _Id, *, fleet: FleetOptions, output: Output) -> None:
    """Show a command or a group. If it is open, say why: which members have not ended, or what is paused.

    \b
    Example:
      aism-engine commands show 01930f6e-7a3c-7c40-9d3b-2f1a5b8e6c01
    """

    async def read(admin: AdminClient) -> tuple[dict[str, Any], dict[str, Any]]:
        found = await read_outcome(admin, record_id)
        return found, await read_causes(admin, found)

    found, causes = fleet.read(read)
    output.print_fields(found | causes, changed=format_causes(found, causes))


@app.command()
def wait(
    record_id: _Id,
    *,
    timeout_s: Annotated[
        float | None,
        options.duration("Longest wait for the outcome. Default: as long as the command may run.", "--timeout"),
    ] = None,
    fleet: FleetOptions,
    output: Output,
) -> ExitCode:
    """Wait until a command has ended, or a group is decided. Exit code 0 means that it has succeeded.

    A group is decided when it has succeeded or failed; some of its commands may still be open. Without --timeout,
    it waits as long as the command may run: a command expires when its time to live (--ttl of send) is over. On a
    terminal a line shows the status, the attempt, and the agent's latest report. Ctrl-C ends the wait, not the command.

    \b
    Example:
      aism-engine commands wait nightly-2026-11-23 --timeout 10m
    """
    found = fleet.call(
        lambda admin: wait_for_outcome(admin, record_id, timeout_s), "outcomes are recorded when one leads"
    )
    output.print(found, f"{record_id} {format_outcome(found)}")
    return outcome_exit_code(found)


@app.command()
def cancel(record_id: _Id, *, request: RequestOptions, fleet: FleetOptions, output: Output) -> None:
    """Cancel a command, or all open commands of a group.

    A queued command is removed from the agent's list. If the agent has already taken the command, the engine sends it
    a command of type cancel.

    \b
    Example:
      aism-engine commands cancel nightly-2026-11-23 --reason "wrong branch"
    """

    async def payload(admin: AdminClient) -> dict[str, str]:
        is_group = not await admin.command(record_id) and await admin.group(record_id)
        return {"group_id" if is_group else "command_id": record_id}

    found = fleet.send("cancel", payload, request, output)
    group = f"group {record_id}: {found.get('succeeded')} of {found.get('total')} open commands cancelled"
    output.print(found, group if "total" in found else f"{record_id} is cancelled")


def command_as_json(command: Command) -> dict[str, Any]:
    names = ("command_id", "agent_id", "type", "status", "target", "priority", "attempt", "group_id", "accepted_at")
    due = fields_as_json(command, "due_at") if command.open else {"due_at": None}
    return fields_as_json(command, *names, "expires_at") | due
