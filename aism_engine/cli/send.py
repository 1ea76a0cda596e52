"""`aism-engine send`: sends a command to one agent, or to all agents that match a selector."""

import re
import time
from typing import Annotated, Any, Final

import msgspec
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
from aism_engine.clock import iso
from aism_engine.domain.commands.command import OnLost, Priority
from aism_engine.domain.commands.selector import Selector
from aism_engine.domain.protocol.messages import MAX_ATTEMPTS
from aism_engine.domain.protocol.names import is_identifier, is_type_name
from aism_engine.ops.admin_client import AdminClient

_QUORUM: Final = re.compile(r"\A[0-9]{1,7}%?\Z")
_NAME_RULE: Final = "may have only letters, digits, `.`, `_` and `-`, and starts with a letter or a digit"


def send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[AGENT] TYPE",
            show_default=False,
            help="Id of the agent, unless --select is given, and the type of the command: state_transition, or a type "
            "that your agents handle.",
        ),
    ],
    *,
    select: Annotated[
        str | None, typer.Option(metavar="SELECTOR", help="All agents that match, as in type=architect,label.team!=a.")
    ] = None,
    any_: Annotated[bool, typer.Option("--any", help="One of the selected agents: the least busy one.")] = False,
    quorum: Annotated[
        str | None, typer.Option(metavar="N|P%", help="How many of the selected agents must succeed. Default: all.")
    ] = None,
    payload: Annotated[str, typer.Option(metavar="JSON", help="Payload of the command, a JSON object.")] = "{}",
    ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Expire this long after acceptance, as in 10m.")
    ] = None,
    ack_timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Longest time from delivery to ack; then it is sent again.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Longest time from ack to outcome; then it has failed.")
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MAX_ATTEMPTS, help="Give up after N deliveries.")
    ] = None,
    priority: Annotated[Priority, typer.Option(help="Order of delivery among waiting commands.")] = "normal",
    on_lost: Annotated[OnLost | None, typer.Option(help="What happens to the command if its agent is lost.")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="Deliver not before this time.")] = None,
    in_: Annotated[
        str | None, typer.Option("--in", metavar="DURATION", help="Deliver not before this much time has passed.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Id of the command. Sending one id again has no effect.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome, not only for acceptance.")] = False,
    wait_for: Annotated[str, typer.Option(metavar="DURATION", help="Longest wait for reply and outcome.")] = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> ExitCode:
    """Send a command to an agent, or to all that match a selector.

    The engine accepts or refuses the command at once; the agent takes it when it is ready. With --wait the exit code
    is that of the outcome: 0 succeeded, 1 failed, expired or cancelled, 2 not ended in time. Defaults are in section
    [commands] of the settings.

    A selector is written like a Kubernetes label selector, over type, state, liveness, id and label.NAME. A command to
    all matching agents is a group, which succeeds when --quorum of them have succeeded.

    \b
    Example:
      aism-engine send architect-a1b2c3 state_transition --payload '{"target": "deep_work"}' --wait
      aism-engine send --select 'type=scribe,state in (inbox,idle)' review --quorum 80% --wait --wait-for 5m
      aism-engine send --select label.gpu --any train --in 10m --ttl 2h
    """
    target, kind = _target(words, select, any_=any_)
    if request_id is not None:
        check_identifier("--id", request_id)
    if quorum is not None:
        _check_quorum(quorum, select, any_=any_)
    if at is not None and in_ is not None:
        raise typer.BadParameter("--at and --in exclude each other: give only one of them")
    durations = (
        ("ttl", "--ttl", ttl),
        ("ack_timeout", "--ack-timeout", ack_timeout),
        ("timeout", "--timeout", timeout),
        ("start_in", "--in", in_),
    )
    given: dict[str, Any] = {
        **{name: options.parse_duration(flag, text) for name, flag, text in durations if text is not None},
        "start_at": iso(options.parse_time("--at", at)) if at is not None else None,
        "max_attempts": max_attempts,
        "priority": priority,
        "on_lost": on_lost,
        "quorum": quorum,
    }
    request = {
        **target,
        "command": {"type": kind, "payload": _parse_object(payload)},
        "options": {name: value for name, value in given.items() if value is not None},
    }
    timeout_s = options.parse_duration("--wait-for", wait_for)

    async def act(admin: AdminClient) -> tuple[dict[str, Any], dict[str, Any] | None]:
        ends_at = time.monotonic() + timeout_s
        reply = await send_request(admin, "send", request, request_id=request_id, timeout_s=timeout_s, json=json)
        return reply, await wait_for_outcome(admin, _record_id(reply), ends_at) if wait else None

    reply, found = with_admin_client(redis, prefix, act)
    if json:
        print_json(found or reply)
    elif found is not None:
        typer.echo(f"{_record_id(reply)} {format_outcome(found)}")
    else:
        targets = f", {reply['targets']} targets" if "targets" in reply else ""
        agent = f" to {reply['agent_id']}" if any_ else ""
        typer.echo(f"{_record_id(reply)} {reply['status']}{agent}{targets}")
    return outcome_exit_code(found) if found is not None else ExitCode.DONE


def _target(words: list[str], selector: str | None, *, any_: bool) -> tuple[dict[str, Any], str]:
    """Return the request fields that name the target, and the type of the command."""
    if len(words) != (1 if selector is not None else 2):
        raise typer.BadParameter("expected AGENT TYPE, or --select SELECTOR TYPE")
    kind = words[-1]
    if not is_type_name(kind):
        raise typer.BadParameter(f"TYPE: {kind!r} {_NAME_RULE}")
    if selector is not None:
        return selector_payload(selector) | ({"any": True} if any_ else {}), kind
    if any_:
        raise typer.BadParameter("--any needs --select: it chooses one of the selected agents")
    return {"agent_id": check_identifier("AGENT", words[0])}, kind


def _check_quorum(quorum: str, selector: str | None, *, any_: bool) -> None:
    if selector is None:
        raise typer.BadParameter("--quorum needs --select: it counts the selected agents that must succeed")
    if any_:
        raise typer.BadParameter("--quorum and --any exclude each other: --any selects one agent")
    if not _QUORUM.match(quorum):
        raise typer.BadParameter(f"--quorum: expected a number or a percentage, like 3 or 80%, got {quorum!r}")


def check_identifier(name: str, value: str) -> str:
    if not is_identifier(value):
        raise typer.BadParameter(f"{name}: {value!r} {_NAME_RULE}")
    return value


def selector_payload(selector: str) -> dict[str, Any]:
    """Check a selector before it is sent, and return the request field that holds it."""
    try:
        Selector.parse(selector)
    except ValueError as error:
        raise typer.BadParameter(f"--select: {error}") from None
    return {"select": selector}


def _record_id(reply: dict[str, Any]) -> str:
    return str(reply.get("command_id") or reply["group_id"])


def _parse_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"--payload: expected a JSON object: {error}") from None
