"""`aism-engine pause`, `drain` and `resume`: hold back commands from an agent, a selection or the whole fleet."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import (
    format_outcome,
    outcome_exit_code,
    send_request,
    wait_for_outcome,
    with_admin_client,
)
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.output import print_json
from aism_engine.cli.send import check_identifier, selector_payload
from aism_engine.ops.admin_client import AdminClient

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
    "resume": """End a pause or a drain. A hold of the whole fleet and one of an agent end separately.

    \b
    Example:
      aism-engine resume --all
    """,
}
_DESCRIPTIONS: Final = {"pause": "is paused", "drain": "is drained", "": "takes commands"}


def _build_command(kind: str) -> Callable[..., ExitCode]:
    """Build the function of one of the three commands: they differ only in their name and help."""

    def command(
        agent_id: Annotated[
            str | None, typer.Argument(metavar="AGENT", show_default=False, help="Id of one agent.")
        ] = None,
        *,
        select: Annotated[
            str | None, typer.Option(metavar="SELECTOR", help="All agents that match now, as in label.team=a.")
        ] = None,
        all_: Annotated[bool, typer.Option("--all", help="The whole fleet, and agents that join it later.")] = False,
        reason: options.Reason = None,
        timeout: options.ReplyTimeout = "10s",
        redis: options.Redis = None,
        prefix: options.Prefix = None,
        json: options.Json = False,
    ) -> ExitCode:
        payload = _target(agent_id, select, all_=all_) | ({"reason": reason} if reason is not None else {})
        timeout_s = options.parse_duration("--timeout", timeout)

        async def act(admin: AdminClient) -> dict[str, Any]:
            ends_at = time.monotonic() + timeout_s
            reply = await send_request(admin, kind, payload, timeout_s=timeout_s, json=json)
            return await wait_for_outcome(admin, reply["group_id"], ends_at) if "group_id" in reply else reply

        found = with_admin_client(redis, prefix, act)
        is_group = "group_id" in found
        if json:
            print_json(found)
        else:
            typer.echo(f"{kind}: {format_outcome(found)}" if is_group else _format_hold(found))
        return outcome_exit_code(found) if is_group else ExitCode.DONE

    command.__doc__ = _HELP[kind]
    return command


pause, drain, resume = map(_build_command, _HELP)


def _target(agent_id: str | None, selector: str | None, *, all_: bool) -> dict[str, Any]:
    if (agent_id is not None) + (selector is not None) + all_ != 1:
        raise typer.BadParameter("expected exactly one of AGENT, --select SELECTOR and --all")
    if selector is not None:
        return selector_payload(selector)
    return {"all": True} if agent_id is None else {"agent_id": check_identifier("AGENT", agent_id)}


def _format_hold(reply: dict[str, Any]) -> str:
    if "agent_id" not in reply:
        held = f"; {reply['held_agents']} agents have a hold of their own" if reply["held_agents"] else ""
        return f"the fleet {_DESCRIPTIONS[reply['hold']]}{held}"
    fleet = f"; but the fleet {_DESCRIPTIONS[reply['fleet_hold']]}" if reply["fleet_hold"] else ""
    return f"agent {reply['agent_id']} {_DESCRIPTIONS[reply['hold']]}, with {reply['open']} open commands{fleet}"
