"""`aism-engine send`: sends a command to one agent, or to all agents that match a selector."""

import re
import time
from functools import partial
from typing import Annotated, Any, Final

import typer

from aism_engine import values
from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions, format_outcome, outcome_exit_code, send_request, wait_for_outcome
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.output import Output
from aism_engine.clock import iso
from aism_engine.domain.commands.command import OnLost, Priority
from aism_engine.domain.commands.selector import Selector
from aism_engine.domain.protocol.messages import MAX_ATTEMPTS
from aism_engine.ops.admin_client import AdminClient

_REPLY_S: Final = 10.0
_QUORUM: Final = re.compile(r"\A[0-9]{1,7}%?\Z")


def _check_selector(text: str) -> str:
    Selector.parse(text)
    return text


def _check_quorum(text: str) -> str:
    if not _QUORUM.match(text):
        raise ValueError(f"expected a number or a percentage, like 3 or 80%, got {values.shown(text)}")
    return text


selector = partial(options.parsed, _check_selector, "SELECTOR")


def send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[AGENT] TYPE",
            help="Id of the agent, unless --select is given, and the type of the command: state_transition, or a type "
            "that your agents handle.",
        ),
    ],
    *,
    select: Annotated[str | None, selector("All agents that match, as in type=architect,label.team!=a.")] = None,
    any_: Annotated[bool, typer.Option("--any", help="One of the selected agents: the least busy one.")] = False,
    quorum: Annotated[
        str | None, options.parsed(_check_quorum, "N|P%", "How many of the selected must succeed. Default: all.")
    ] = None,
    payload: Annotated[
        dict[str, Any] | None, options.parsed(values.json_object, "JSON", "Payload. Default: {}.")
    ] = None,
    ttl: Annotated[float | None, options.duration("Expire this long after acceptance, or after --at or --in.")] = None,
    ack_timeout: Annotated[float | None, options.duration("Deliver again if no ack comes within this time.")] = None,
    timeout: Annotated[
        float | None,
        options.duration(
            "Fail after this long without an outcome or progress. Counted from the ack, or from the delivery if the "
            "agent sends no acks."
        ),
    ] = None,
    max_attempts: Annotated[int | None, options.number("Give up after N deliveries.", 1, MAX_ATTEMPTS)] = None,
    priority: Annotated[Priority, typer.Option(help="Order of delivery among waiting commands.")] = "normal",
    on_lost: Annotated[OnLost | None, typer.Option(help="What happens to the command if its agent is lost.")] = None,
    start_at: Annotated[
        float | None, options.parsed(options.parse_time, "TIME", "Deliver no earlier than this ISO time.", "--at")
    ] = None,
    start_in: Annotated[float | None, options.duration("Deliver no earlier than this long from now.", "--in")] = None,
    request_id: Annotated[
        str | None,
        options.parsed(
            values.identifier,
            "ID",
            "Id of the command or group. If the same request is sent again under this id, it has no second effect.",
            "--id",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome, not only for acceptance.")] = False,
    wait_for: Annotated[
        float | None,
        options.duration(
            "Longest wait for reply and outcome. Default: 10s for the reply, then as long as the command may run."
        ),
    ] = None,
    fleet: FleetOptions,
    output: Output,
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
    *agents, kind = words
    if len(agents) != (select is None):
        raise typer.BadParameter("expected AGENT TYPE, or --select SELECTOR TYPE")
    try:
        agent_id = values.identifier(agents[0]) if agents else None
        values.type_name(kind)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if any_ and select is None:
        raise typer.BadParameter("--any needs --select: it chooses one of the selected agents")
    if quorum is not None and select is None:
        raise typer.BadParameter("--quorum needs --select: it counts the selected agents that must succeed")
    if quorum is not None and any_:
        raise typer.BadParameter("--quorum and --any exclude each other: --any selects one agent")
    if start_at is not None and start_in is not None:
        raise typer.BadParameter("--at and --in exclude each other: give only one of them")
    request = {
        "agent_id": agent_id,
        "select": select,
        "any": any_,
        "command": {"type": kind, "payload": payload or {}},
        "options": {
            "ttl": ttl,
            "ack_timeout": ack_timeout,
            "timeout": timeout,
            "start_in": start_in,
            "start_at": iso(start_at) if start_at is not None else None,
            "max_attempts": max_attempts,
            "priority": priority,
            "on_lost": on_lost,
            "quorum": quorum,
        },
    }

    async def act(admin: AdminClient) -> tuple[dict[str, Any], dict[str, Any] | None]:
        began_at = time.monotonic()
        reply = await send_request(admin, "send", request, wait_for or _REPLY_S, output, request_id=request_id)
        left_s = None if wait_for is None else wait_for - (time.monotonic() - began_at)
        return reply, await wait_for_outcome(admin, _record_id(reply), left_s) if wait else None

    reply, found = fleet.call(act, "the command waits until one leads")
    if found is not None:
        output.print(found, f"{_record_id(reply)} {format_outcome(found)}")
        return outcome_exit_code(found)
    targets = f", {reply['targets']} targets" if "targets" in reply else ""
    agent = f" to {reply['agent_id']}" if any_ else ""
    output.print(reply, f"{_record_id(reply)} {reply['status']}{agent}{targets}")
    return ExitCode.DONE


def _record_id(reply: dict[str, Any]) -> str:
    return str(reply.get("command_id") or reply["group_id"])
