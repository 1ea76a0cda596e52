"""`aism-engine pause`, `drain` and `resume`: whether commands go to an agent, to those that fit, or to anyone."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import format_outcome, outcome_exit_code, send_request, wait_for_outcome, with_admin_client
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.options import parse_duration
from aism_engine.cli.output import print_json
from aism_engine.cli.send import selected
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.ops.admin_client import AdminClient

_HELP: Final = {
    "pause": """Hold back commands: new ones are accepted and wait, nothing is handed out until `resume`.

    What lies in an agent's list already stays there.

    \b
    Example:
      aism-engine pause --select type=architect --reason "quota used up"
    """,
    "drain": """Refuse new commands, and let what was accepted go on to its end: so that an agent can be stopped.

    \b
    Example:
      aism-engine drain architect-a1b2c3
    """,
    "resume": """End a pause or a drain. The hold of the fleet and that of an agent are two: each has its own end.

    \b
    Example:
      aism-engine resume --all
    """,
}
_STANDS: Final = {"pause": "is paused", "drain": "is drained", "": "takes commands"}


def _hold(kind: str) -> Callable[..., ExitCode]:
    """Make the command of this name."""

    def command(  # noqa: PLR0913  each is a flag
        agent_id: Annotated[str | None, typer.Argument(metavar="AGENT", show_default=False, help="One agent.")] = None,
        *,
        select: Annotated[str | None, typer.Option(metavar="SELECTOR", help="All that fit, now.")] = None,
        all_: Annotated[bool, typer.Option("--all", help="The whole fleet, and who joins it later.")] = False,
        reason: Annotated[str | None, typer.Option(metavar="TEXT", help="For the audit.")] = None,
        timeout: Annotated[str, typer.Option(metavar="TIME", help="Longest wait for the engine.")] = "10s",
        redis: options.Redis = None,
        prefix: options.Prefix = None,
        json: options.Json = False,
    ) -> ExitCode:
        payload = _target(agent_id, select, all_=all_) | ({"reason": reason} if reason is not None else {})
        longest_s = parse_duration("--timeout", timeout)

        async def act(admin: AdminClient) -> dict[str, Any]:
            ends_at = time.monotonic() + longest_s
            reply = await send_request(admin, kind, payload, timeout_s=longest_s, json=json)
            return await wait_for_outcome(admin, reply["group_id"], ends_at) if "group_id" in reply else reply

        found = with_admin_client(redis, prefix, act)
        to_many = "group_id" in found
        if json:
            print_json(found)
        else:
            typer.echo(f"{kind}: {format_outcome(found)}" if to_many else _stands(found))
        return outcome_exit_code(found) if to_many else ExitCode.DONE

    command.__doc__ = _HELP[kind]
    return command


pause, drain, resume = map(_hold, _HELP)


def _target(agent_id: str | None, selector: str | None, *, all_: bool) -> dict[str, Any]:
    if (agent_id is not None) + (selector is not None) + all_ != 1:
        raise typer.BadParameter("expected one of AGENT, --select SELECTOR and --all")
    if selector is not None:
        return selected(selector)
    if agent_id is not None and not is_identifier(agent_id):
        raise typer.BadParameter(f"AGENT: {agent_id!r} is no id")
    return {"all": True} if agent_id is None else {"agent_id": agent_id}


def _stands(reply: dict[str, Any]) -> str:
    if "agent_id" not in reply:
        others = f"; {reply['held_agents']} agents have a hold of their own" if reply["held_agents"] else ""
        return f"the fleet {_STANDS[reply['hold']]}{others}"
    fleet = f"; but the fleet {_STANDS[reply['fleet_hold']]}" if reply["fleet_hold"] else ""
    return f"{reply['agent_id']} {_STANDS[reply['hold']]}, with {reply['open']} open commands{fleet}"
