"""`aism-engine agents`: who is in the fleet."""

import time
from typing import Annotated, Any

import typer

from aism_engine.cli import divergences, options
from aism_engine.cli.admin import send_request, with_admin_client
from aism_engine.cli.exit_codes import RefusedError
from aism_engine.cli.output import format_age, format_pairs, print_fields, print_json, print_table
from aism_engine.clock import iso
from aism_engine.domain.agents.agent import AgentRecord, ShownLiveness
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.inspector import AgentView

app = options.CommandGroup(help="Show the agents of the fleet, or forget one.")
_AgentId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]


@app.command("list")
def list_(
    *,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only those of this type.")] = None,
    liveness: Annotated[ShownLiveness | None, typer.Option(help="Only those.")] = None,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """List the agents that the engine knows.

    \b
    Example:
      aism-engine agents list --type architect --liveness silent
    """  # noqa: D301  \b keeps the lines of the example apart, here and below
    found = [
        seen
        for seen in with_admin_client(redis, prefix, AdminClient.agents)
        if state in {None, seen.agent.state} and kind in {None, seen.agent.type} and liveness in {None, seen.liveness}
    ]
    if json:
        print_json([_described(seen) for seen in found])
        return
    header = ("AGENT", "TYPE", "STATE", "SINCE", "WAITS", "LIVENESS", "HEARTBEAT", "OPEN", "QUEUED")
    print_table(header, map(_row, found))


@app.command()
def show(
    agent_id: _AgentId, *, redis: options.Redis = None, prefix: options.Prefix = None, json: options.Json = False
) -> None:
    """Show all that the engine holds of one agent.

    \b
    Example:
      aism-engine agents show architect-a1b2c3
    """  # noqa: D301
    seen = with_admin_client(redis, prefix, lambda admin: admin.agent(agent_id))
    if seen is None:
        raise RefusedError(f"there is no agent {agent_id}; aism-engine agents list shows all")
    if json:
        print_json(_described(seen))
        return
    agent = seen.agent
    fields: list[tuple[str, object]] = [
        ("agent", agent.agent_id),
        ("type", agent.type if agent.registered else f"{agent.type} (not registered)"),
        ("state", f"{agent.state}, for {format_age(time.time() - agent.since)}"),
        ("waits for", agent.waits_for),
        ("declared", _declared(agent)),
        ("liveness", _liveness(seen)),
        ("lost from", agent.lost_from),
        ("heartbeat", f"{format_age(seen.heartbeat_age_s)} ago" if seen.heartbeat_age_s is not None else "never"),
        ("met", iso(agent.first_seen_at)),
        ("labels", format_pairs(agent.labels)),
        ("capabilities", ", ".join(agent.capabilities)),
        ("measurements", format_pairs(seen.measurements)),
        ("queued", seen.queued),
        ("mail waiting", agent.mail_waiting),
        ("open", len(seen.commands)),
    ]
    fields += ((f"diverges: {rule}", f"{each.reason} ({each.confidence})") for rule, each in agent.divergences.items())
    print_fields(fields)
    if seen.commands:
        typer.echo()
        rows = (
            (command.command_id, command.type, command.status.value, format_age(time.time() - command.accepted_at))
            for command in seen.commands
        )
        print_table(("COMMAND", "TYPE", "STATUS", "AGE"), rows)


@app.command()
def forget(
    agent_id: _AgentId,
    *,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="For the audit.")] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="Longest wait for the engine's answer.")] = 10,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Delete all that is kept of an agent, and cancel its commands. One that lives will be met anew.

    \b
    Example:
      aism-engine agents forget architect-a1b2c3 --reason "replaced by architect-d4e5f6"
    """  # noqa: D301
    payload = {"agent_id": agent_id} | ({"reason": reason} if reason is not None else {})
    reply = with_admin_client(
        redis, prefix, lambda admin: send_request(admin, "forget", payload, timeout_s=timeout, json=json)
    )
    if json:
        print_json(reply)
    else:
        typer.echo(f"{agent_id} is forgotten")


@app.command("confirm-losses")
def confirm_losses(
    *,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="For the audit.")] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="Longest wait for the engine's answer.")] = 10,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Tell an engine that doubts itself that who is silent now is truly gone.

    It calls them lost then as it always does, after liveness.lost_after, however many they are. Who falls silent
    later is not meant by it.

    \b
    Example:
      aism-engine agents list --liveness silent
      aism-engine agents confirm-losses --reason "the rack was switched off"
    """  # noqa: D301
    payload = {} if reason is None else {"reason": reason}
    reply = with_admin_client(
        redis, prefix, lambda admin: send_request(admin, "confirm_losses", payload, timeout_s=timeout, json=json)
    )
    if json:
        print_json(reply)
    elif reply["silent"]:
        agents = "1 agent is" if reply["silent"] == 1 else f"{reply['silent']} agents are"
        typer.echo(f"{agents} silent: who shows nothing for liveness.lost_after is called lost")
    else:
        typer.echo("nobody is silent: there is nothing to confirm")


def _row(seen: AgentView) -> tuple[object, ...]:
    agent = seen.agent
    since = format_age(time.time() - agent.since)
    heartbeat = format_age(seen.heartbeat_age_s)
    return (
        *(agent.agent_id, agent.type, agent.state, since, agent.waits_for),
        *(seen.liveness.value, heartbeat, len(seen.commands), seen.queued),
    )


def _liveness(seen: AgentView) -> str:
    if seen.silent_since is None:
        return seen.liveness.value
    return f"{seen.liveness.value}, for {format_age(time.time() - seen.silent_since)}"


def _declared(agent: AgentRecord) -> str | None:
    if agent.declared is None:
        return None
    return f"{agent.declared}, {format_age(time.time() - agent.declared_at)} ago, by {agent.declared_via or 'queue'}"


def _described(seen: AgentView) -> dict[str, Any]:
    """Build what programs get: the names are published, and so for ever."""
    agent = seen.agent
    return {
        "agent_id": agent.agent_id,
        "type": agent.type,
        "registered": agent.registered,
        "labels": agent.labels,
        "capabilities": agent.capabilities,
        "state": agent.state,
        "since": iso(agent.since),
        "waits_for": agent.waits_for or None,
        "declared": agent.declared,
        "declared_at": iso(agent.declared_at) if agent.declared_at else None,
        "declared_via": agent.declared_via,
        "liveness": seen.liveness,
        "silent_since": iso(seen.silent_since) if seen.silent_since is not None else None,
        "lost_from": agent.lost_from,
        "met_at": iso(agent.first_seen_at),
        "heartbeat_age_s": seen.heartbeat_age_s,
        "queued": seen.queued,
        "mail_waiting": agent.mail_waiting,
        "measurements": seen.measurements,
        "divergences": divergences.described(agent),
        "open_commands": [
            {
                "command_id": command.command_id,
                "type": command.type,
                "status": command.status,
                "target": command.target,
                "accepted_at": iso(command.accepted_at),
                "expires_at": iso(command.expires_at),
            }
            for command in seen.commands
        ],
    }
