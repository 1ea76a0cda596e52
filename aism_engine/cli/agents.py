"""`aism-engine agents`: lists the agents of a fleet, shows one, removes one, confirms losses."""

import time
from typing import Annotated, Any

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import send_request, with_admin_client
from aism_engine.cli.divergences import divergences_as_json
from aism_engine.cli.exit_codes import RefusedError
from aism_engine.cli.output import format_age, format_pairs, print_fields, print_json, print_table
from aism_engine.clock import iso
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.inspector import AgentView

app = options.CommandGroup(help="List, show or forget agents, or confirm their losses.")
_AgentId = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="Id of the agent.")]


@app.command("list")
def list_(
    *,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only agents in this state.")] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only agents of this type.")] = None,
    liveness: Annotated[Liveness | None, typer.Option(help="Only agents of this liveness.")] = None,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """List the agents that the engine knows.

    \b
    Example:
      aism-engine agents list --type architect --liveness silent
    """
    found = [
        view
        for view in with_admin_client(redis, prefix, AdminClient.agents)
        if state in {None, view.agent.state} and kind in {None, view.agent.type} and liveness in {None, view.liveness}
    ]
    if json:
        print_json([_as_json(view) for view in found])
        return
    header = ("AGENT", "TYPE", "STATE", "SINCE", "WAITS FOR", "LIVENESS", "HEARTBEAT", "OPEN", "QUEUED")
    print_table(header, map(_row, found))


@app.command()
def show(
    agent_id: _AgentId, *, redis: options.Redis = None, prefix: options.Prefix = None, json: options.Json = False
) -> None:
    """Show everything that the engine knows about one agent.

    \b
    Example:
      aism-engine agents show architect-a1b2c3
    """
    view = with_admin_client(redis, prefix, lambda admin: admin.agent(agent_id))
    if view is None:
        raise RefusedError(f"there is no agent {agent_id}. aism-engine agents list shows all agents")
    if json:
        print_json(_as_json(view))
        return
    agent = view.agent
    fields: list[tuple[str, object]] = [
        ("agent", agent.agent_id),
        ("type", agent.type if agent.registered else f"{agent.type} (not registered)"),
        ("state", f"{agent.state}, for {format_age(time.time() - agent.since)}"),
        ("waits for", agent.waits_for),
        ("declared", _format_declared(agent)),
        ("liveness", _format_liveness(view)),
        ("lost from", agent.lost_from),
        ("heartbeat", f"{format_age(view.heartbeat_age_s)} ago" if view.heartbeat_age_s is not None else "never"),
        ("first seen", iso(agent.first_seen_at)),
        ("labels", format_pairs(agent.labels)),
        ("capabilities", ", ".join(agent.capabilities)),
        ("measurements", format_pairs(view.measurements)),
        ("queued", view.queued),
        ("mail waiting", agent.mail_waiting),
        ("open", len(view.commands)),
    ]
    fields += (
        (f"divergence {rule}", f"{found.reason} ({found.confidence})") for rule, found in agent.divergences.items()
    )
    print_fields(fields)
    if view.commands:
        typer.echo()
        rows = (
            (command.command_id, command.type, command.status.value, format_age(time.time() - command.accepted_at))
            for command in view.commands
        )
        print_table(("COMMAND", "TYPE", "STATUS", "AGE"), rows)


@app.command()
def forget(
    agent_id: _AgentId,
    *,
    reason: options.Reason = None,
    timeout: options.ReplyTimeout = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Delete the record of an agent and cancel its commands. An agent that is still running is discovered again.

    \b
    Example:
      aism-engine agents forget architect-a1b2c3 --reason "replaced by architect-d4e5f6"
    """
    payload = {"agent_id": agent_id} | ({"reason": reason} if reason is not None else {})
    timeout_s = options.parse_duration("--timeout", timeout)
    reply = with_admin_client(
        redis, prefix, lambda admin: send_request(admin, "forget", payload, timeout_s=timeout_s, json=json)
    )
    if json:
        print_json(reply)
    else:
        typer.echo(f"agent {agent_id} is forgotten")


@app.command("confirm-losses")
def confirm_losses(
    *,
    reason: options.Reason = None,
    timeout: options.ReplyTimeout = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Confirm that the agents that are silent now are really gone.

    If much of a fleet falls silent at once, the engine suspects its own connection and delays losses. After this
    command it marks the agents that are silent now as lost when liveness.lost_after has passed, however many they are.
    Agents that fall silent later are not affected.

    \b
    Example:
      aism-engine agents list --liveness silent
      aism-engine agents confirm-losses --reason "the rack was switched off"
    """
    payload = {} if reason is None else {"reason": reason}
    timeout_s = options.parse_duration("--timeout", timeout)
    reply = with_admin_client(
        redis, prefix, lambda admin: send_request(admin, "confirm_losses", payload, timeout_s=timeout_s, json=json)
    )
    if json:
        print_json(reply)
    elif reply["silent"]:
        agents = "1 agent is" if reply["silent"] == 1 else f"{reply['silent']} agents are"
        typer.echo(f"{agents} silent, and lost after liveness.lost_after without a sign of life")
    else:
        typer.echo("no agent is silent: there is nothing to confirm")


def _row(view: AgentView) -> tuple[object, ...]:
    agent = view.agent
    return (
        *(agent.agent_id, agent.type, agent.state, format_age(time.time() - agent.since), agent.waits_for),
        *(view.liveness.value, format_age(view.heartbeat_age_s), len(view.commands), view.queued),
    )


def _format_liveness(view: AgentView) -> str:
    if view.silent_since is None:
        return view.liveness.value
    return f"{view.liveness.value}, for {format_age(time.time() - view.silent_since)}"


def _format_declared(agent: AgentRecord) -> str | None:
    if agent.declared is None:
        return None
    return f"{agent.declared}, {format_age(time.time() - agent.declared_at)} ago, by {agent.declared_via or 'queue'}"


def _as_json(view: AgentView) -> dict[str, Any]:
    """Build the JSON of an agent. The field names are a published interface."""
    agent = view.agent
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
        "liveness": view.liveness,
        "silent_since": iso(view.silent_since) if view.silent_since is not None else None,
        "lost_from": agent.lost_from,
        "first_seen_at": iso(agent.first_seen_at),
        "heartbeat_age_s": view.heartbeat_age_s,
        "queued": view.queued,
        "mail_waiting": agent.mail_waiting,
        "measurements": view.measurements,
        "divergences": divergences_as_json(agent),
        "open_commands": [
            {
                "command_id": command.command_id,
                "type": command.type,
                "status": command.status,
                "target": command.target,
                "accepted_at": iso(command.accepted_at),
                "expires_at": iso(command.expires_at),
            }
            for command in view.commands
        ],
    }
