"""`aism-engine pause`, `drain` and `resume`: start or end a hold of an agent, a selection or the whole fleet."""

from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from aism_engine import values
from aism_engine.cli.admin import FleetOptions, RequestOptions, format_outcome, outcome_exit_code
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.output import Output
from aism_engine.cli.pending import HOLD_TEXTS
from aism_engine.cli.send import selector

_HELP: Final = {
    "pause": """Pause the delivery of commands: new ones wait until resume.

    Commands that are already in an agent's list stay there.

    \b
    Example:
      aism-engine pause --select type=architect --reason "quota used up"
    """,
    "drain": """Refuse new commands, and complete the accepted ones.

    Drain an agent before you stop it.

    \b
    Example:
      aism-engine drain architect-a1b2c3
    """,
    "resume": """End a pause or a drain.

    With --all, this ends only a pause or drain of the whole fleet. Agents that were paused or drained by id or with
    --select stay so until they are resumed by id or with --select.

    \b
    Example:
      aism-engine resume --all
    """,
}


def _build_command(kind: str) -> Callable[..., ExitCode]:
    """Build the function of one of the three commands: they differ only in their name and help."""

    def command(
        agent_id: Annotated[
            str | None, typer.Argument(metavar="AGENT", parser=values.identifier, help="Id of one agent.")
        ] = None,
        *,
        select: Annotated[str | None, selector("All agents that match now, as in label.team=a.")] = None,
        all_: Annotated[bool, typer.Option("--all", help="The whole fleet, and agents that join it later.")] = False,
        request: RequestOptions,
        fleet: FleetOptions,
        output: Output,
    ) -> ExitCode:
        if (agent_id is not None) + (select is not None) + all_ != 1:
            raise typer.BadParameter("expected exactly one of AGENT, --select SELECTOR and --all")
        payload = {"agent_id": agent_id, "select": select, "all": all_ or None}
        found = fleet.send(kind, payload, request, output)
        if "group_id" in found:
            output.print(found, f"{kind}: {format_outcome(found)}")
            return outcome_exit_code(found)
        output.print(found, _format_hold(found))
        return ExitCode.DONE

    command.__doc__ = _HELP[kind]
    return command


pause, drain, resume = map(_build_command, _HELP)


def _format_hold(reply: dict[str, Any]) -> str:
    if "agent_id" not in reply:
        held = f"; agents with a pause or drain of their own: {reply['held_agents']}" if reply["held_agents"] else ""
        return f"the fleet {HOLD_TEXTS[reply['hold']]}{held}"
    fleet = f"; but the fleet {HOLD_TEXTS[reply['fleet_hold']]}" if reply["fleet_hold"] else ""
    return f"agent {reply['agent_id']} {HOLD_TEXTS[reply['hold']]}, with {reply['open']} open commands{fleet}"
