"""`aism-engine agents`: lists the agents of a fleet, shows one, removes one, confirms losses."""

from typing import Annotated, Any, Final

import typer
from msgspec import to_builtins

from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions, RequestOptions
from aism_engine.cli.commands import COMMAND_COLUMNS, command_as_json
from aism_engine.cli.exit_codes import FailedError
from aism_engine.cli.output import Output, fields_as_json
from aism_engine.cli.pending import held_as_json
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.views import AgentView, Problem

app = options.CommandGroup(help="List, show or forget agents, or confirm losses.")

DIVERGENCE_COLUMNS: Final = ("agent_id", "type", "rule", "confidence", "since", "reason")
AGENT_TABLES: Final = {"divergences": DIVERGENCE_COLUMNS, "open_commands": COMMAND_COLUMNS}
"""The tables below the fields of an agent."""
_AgentId = Annotated[str, typer.Argument(metavar="ID", help="Id of the agent.")]
_COLUMNS: Final = (
    *("agent_id", "type", "state", "since", "waits_for", "liveness", "heartbeat_age_s", "open_commands", "queued"),
    *("hold", "held_at", "held_by", "hold_reason"),
)


@app.command("list")
def list_(
    *,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only agents in this state.")] = None,
    kind: options.AgentType = None,
    liveness: Annotated[
        Liveness | None, typer.Option(metavar="LIVENESS", help=f"Only this liveness: {', '.join(Liveness)}.")
    ] = None,
    problem: Annotated[
        Problem | None, typer.Option(metavar="PROBLEM", help=f"Only with this problem: {', '.join(Problem)}.")
    ] = None,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """List the agents that the engine knows.

    \b
    Example:
      aism-engine agents list --type architect --liveness silent
    """
    found = [
        agent_as_json(view)
        for view in fleet.read(AdminClient.agents)
        if state in {None, view.agent.state}
        and kind in {None, view.agent.type}
        and liveness in {None, view.liveness}
        and (problem is None or problem in view.problems)
    ]
    output.print_table(found, _COLUMNS)


@app.command()
def show(agent_id: _AgentId, *, fleet: FleetOptions, output: Output) -> None:
    """Show everything that the engine knows about one agent.

    \b
    Example:
      aism-engine agents show architect-a1b2c3
    """
    view = fleet.read(lambda admin: admin.agent(agent_id))
    if view is None:
        raise FailedError(f"there is no agent {agent_id}. aism-engine agents list shows all agents")
    output.print_fields(agent_as_json(view), AGENT_TABLES)


@app.command()
def forget(agent_id: _AgentId, *, request: RequestOptions, fleet: FleetOptions, output: Output) -> None:
    """Delete the record of an agent and cancel its commands. An agent that is still running is discovered again.

    \b
    Example:
      aism-engine agents forget architect-a1b2c3 --reason "replaced by architect-d4e5f6"
    """
    reply = fleet.send("forget", {"agent_id": agent_id}, request, output)
    output.print(reply, f"agent {agent_id} is forgotten")


@app.command("confirm-losses")
def confirm_losses(*, request: RequestOptions, fleet: FleetOptions, output: Output) -> None:
    """Confirm that the agents that are silent now are gone.

    If much of a fleet falls silent at once, the engine suspects its own connection and delays losses. This command
    confirms the losses of the agents that are silent now: the engine marks each of them as lost, without delay, when
    its silence has lasted for liveness.lost_after. Agents that fall silent later are not affected.

    \b
    Example:
      aism-engine agents list --liveness silent
      aism-engine agents confirm-losses --reason "the rack was switched off"
    """
    reply = fleet.send("confirm_losses", {}, request, output)
    agents, them = ("1 agent is", "it") if reply["silent"] == 1 else (f"{reply['silent']} agents are", "them")
    confirmed = f"{agents} silent. The engine marks {them} as lost after liveness.lost_after without a sign of life"
    output.print(reply, confirmed if reply["silent"] else "no agent is silent: there is nothing to confirm")


def agent_as_json(view: AgentView) -> dict[str, Any]:
    return {
        **fields_as_json(view.agent, "agent_id", "type", "registered", "labels", "capabilities"),
        **fields_as_json(view.agent, "state", "since", "waits_for", "declared", "declared_at", "declared_via"),
        **fields_as_json(view, "liveness", "silent_since", "heartbeat_age_s"),
        **fields_as_json(view.agent, "lost_from", "first_seen_at", "mail_waiting"),
        **fields_as_json(view, "queued", "measurements"),
        **held_as_json(view.agent),
        "divergences": divergences_as_json(view.agent),
        "open_commands": [command_as_json(command) for command in view.commands],
    }


def divergences_as_json(agent: AgentRecord) -> list[dict[str, Any]]:
    return [
        {"agent_id": agent.agent_id, "type": agent.type, "rule": rule, **to_builtins(divergence)}
        for rule, divergence in sorted(agent.divergences.items())
    ]
