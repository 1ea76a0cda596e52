"""`aism-engine send`: give an agent a command, or all those that fit."""

import re
import time
from typing import Annotated, Any, Final

import msgspec
import typer

from aism_engine.cli import options
from aism_engine.cli.admin import format_outcome, outcome_exit_code, send_request, wait_for_outcome, with_admin_client
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.options import parse_duration, parse_time
from aism_engine.cli.output import print_json
from aism_engine.clock import iso
from aism_engine.domain.commands.command import OnLost, Priority
from aism_engine.domain.commands.selector import Selector
from aism_engine.domain.protocol.messages import MAX_ATTEMPTS
from aism_engine.domain.protocol.names import is_identifier, is_type_name
from aism_engine.ops.admin_client import AdminClient

_WAIT_S: Final = 10.0
_QUORUM: Final = re.compile(r"\A[0-9]{1,7}%?\Z")


def send(  # noqa: PLR0913  each is a flag
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[AGENT] TYPE",
            show_default=False,
            help="Whom, unless --select says it; and what: state_transition, or a type of your own.",
        ),
    ],
    *,
    select: Annotated[
        str | None, typer.Option(metavar="SELECTOR", help="All that fit, as in type=architect,label.team!=a.")
    ] = None,
    any_: Annotated[bool, typer.Option("--any", help="One of the selected: whoever has the least to do.")] = False,
    quorum: Annotated[str | None, typer.Option(metavar="N|P%", help="How many of the selected must succeed.")] = None,
    payload: Annotated[str, typer.Option(metavar="JSON", help="What the command carries: an object.")] = "{}",
    ttl: Annotated[str | None, typer.Option(metavar="TIME", help="From acceptance to end, as in 10m.")] = None,
    ack_timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="From delivery to ack; then it is sent again.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="From ack to outcome; then it has failed.")
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MAX_ATTEMPTS, help="How often it may be sent.")
    ] = None,
    priority: Annotated[Priority, typer.Option(help="What goes first where commands wait.")] = "normal",
    on_lost: Annotated[OnLost | None, typer.Option(help="What becomes of it when its agent is lost.")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="Not before this instant.")] = None,
    in_: Annotated[str | None, typer.Option("--in", metavar="TIME", help="Not before so long, as in 10m.")] = None,
    request_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Id of the command: sent twice, it is one.")
    ] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Wait for the outcome, not just for acceptance.")] = False,
    wait_for: Annotated[str, typer.Option(metavar="TIME", help="Longest wait in all.")] = f"{_WAIT_S:g}s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> ExitCode:
    """Give an agent a command, or all those that fit a selector.

    The engine accepts or refuses it at once; the agent takes it when it is ready. With --wait the exit code tells the
    outcome: 0 succeeded, 1 failed, expired or cancelled, 2 not ended in time. What is not given is as the section
    [commands] of the settings says.

    A selector is written as Kubernetes' label selectors are, over type, state, liveness, id and label.NAME. What is
    sent to all that fit is a group: it has succeeded when as many have as --quorum says, by default all.

    \b
    Example:
      aism-engine send architect-a1b2c3 state_transition --payload '{"target": "deep_work"}' --wait
      aism-engine send --select 'type=scribe,state in (inbox,idle)' review --quorum 80% --wait --wait-for 5m
      aism-engine send --select label.gpu --any train --in 10m --ttl 2h
    """  # noqa: D301  \b keeps the lines of the example apart
    target, kind = _target(words, select, any_=any_)
    if request_id is not None and not is_identifier(request_id):
        raise typer.BadParameter(f"--id: {request_id!r} {_NO_NAME}")
    if quorum is not None:
        _check_quorum(quorum, select, any_=any_)
    if at is not None and in_ is not None:
        raise typer.BadParameter("--at and --in exclude each other")
    durations = {"ttl": ttl, "ack_timeout": ack_timeout, "timeout": timeout, "start_in": in_}
    flags = {"ttl": "--ttl", "ack_timeout": "--ack-timeout", "timeout": "--timeout", "start_in": "--in"}
    chosen: dict[str, Any] = {
        **{name: parse_duration(flags[name], value) for name, value in durations.items() if value is not None},
        "start_at": iso(parse_time("--at", at)) if at is not None else None,
        "max_attempts": max_attempts,
        "priority": priority,
        "on_lost": on_lost,
        "quorum": quorum,
    }
    request = {
        **target,
        "command": {"type": kind, "payload": _object(payload)},
        "options": {name: value for name, value in chosen.items() if value is not None},
    }
    longest_s = parse_duration("--wait-for", wait_for)

    async def act(admin: AdminClient) -> tuple[dict[str, Any], dict[str, Any] | None]:
        ends_at = time.monotonic() + longest_s
        reply = await send_request(admin, "send", request, request_id=request_id, timeout_s=longest_s, json=json)
        return reply, await wait_for_outcome(admin, _name(reply), ends_at) if wait_ else None

    reply, found = with_admin_client(redis, prefix, act)
    if json:
        print_json(found or reply)
    elif found is not None:
        typer.echo(f"{_name(reply)} {format_outcome(found)}")
    else:
        targets = f", {reply['targets']} targets" if "targets" in reply else ""
        to = f" to {reply['agent_id']}" if any_ else ""
        typer.echo(f"{_name(reply)} {reply['status']}{to}{targets}")
    return outcome_exit_code(found) if found is not None else ExitCode.DONE


_NO_NAME: Final = "is no name: letters, digits, `.`, `_` and `-`, the first no sign"


def _target(words: list[str], selector: str | None, *, any_: bool) -> tuple[dict[str, Any], str]:
    """Tell who is meant and the type, from what was given before the flags."""
    if len(words) != (1 if selector is not None else 2):
        raise typer.BadParameter("expected AGENT TYPE, or --select SELECTOR TYPE")
    kind = words[-1]
    if not is_type_name(kind):
        raise typer.BadParameter(f"TYPE: {kind!r} {_NO_NAME}")
    if selector is None:
        if any_:
            raise typer.BadParameter("--any needs --select: one of whom?")
        if not is_identifier(words[0]):
            raise typer.BadParameter(f"AGENT: {words[0]!r} {_NO_NAME}")
        return {"agent_id": words[0]}, kind
    return selected(selector) | ({"any": True} if any_ else {}), kind


def _check_quorum(quorum: str, selector: str | None, *, any_: bool) -> None:
    if selector is None or any_:
        raise typer.BadParameter("--quorum needs --select, and not --any: how many of whom?")
    if not _QUORUM.match(quorum):
        raise typer.BadParameter(f"--quorum: expected a number or a share, like 3 or 80%, got {quorum!r}")


def selected(selector: str) -> dict[str, Any]:
    """Check a selector before it is sent, and name it in a request."""
    try:
        Selector.parse(selector)
    except ValueError as error:
        raise typer.BadParameter(f"--select: {error}") from None
    return {"select": selector}


def _name(reply: dict[str, Any]) -> str:
    return str(reply.get("command_id") or reply["group_id"])


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"--payload: expected a JSON object: {error}") from None
