"""`aism-engine send`: give an agent a command."""

import asyncio
import time
from typing import Annotated, Any, Final

import msgspec
import typer

from aism_engine.cli import options
from aism_engine.cli.exits import Exit, TimedOutError
from aism_engine.cli.output import print_json
from aism_engine.cli.session import ask, with_operator
from aism_engine.model.commands import OPEN, Status
from aism_engine.model.messages import is_identifier, is_type_name
from aism_engine.store.operator import Operator

_LOOK_EVERY_S: Final = 0.1
_OPEN: Final = frozenset(status.value for status in OPEN)
_CONTENTS: Final = ("payload", "result")
"""Fields of a command's record that hold JSON."""


def send(  # noqa: PLR0913  each is a flag
    agent_id: Annotated[str, typer.Argument(metavar="AGENT", show_default=False, help="Id of the agent.")],
    kind: Annotated[
        str, typer.Argument(metavar="TYPE", show_default=False, help="state_transition, or a type of your own.")
    ],
    *,
    payload: Annotated[str, typer.Option(metavar="JSON", help="What the command carries: an object.")] = "{}",
    ttl: Annotated[float | None, typer.Option(metavar="S", help="Seconds after which it expires.")] = None,
    request_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Id of the command: sent twice, it is one.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome, not just for acceptance.")] = False,
    timeout: Annotated[float, typer.Option(metavar="S", help="Longest wait in all.")] = 10,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> Exit:
    """Give an agent a command, by way of the engine.

    The engine accepts or refuses it at once; the agent takes it when it is ready. With --wait the exit code tells the
    outcome: 0 succeeded, 1 failed, expired or cancelled, 2 not ended in time.

    \b
    Example:
      aism-engine send architect-a1b2c3 state_transition --payload '{"target": "deep_work"}' --wait
    """  # noqa: D301  \b keeps the lines of the example apart
    for name, value, good in (
        ("AGENT", agent_id, is_identifier(agent_id)),
        ("TYPE", kind, is_type_name(kind)),
        ("--id", request_id, request_id is None or is_identifier(request_id)),
    ):
        if not good:
            raise typer.BadParameter(
                f"{name}: {value!r} is no name: letters, digits, `.`, `_` and `-`, the first no sign"
            )
    if ttl is not None and not ttl > 0:
        raise typer.BadParameter(f"--ttl: expected seconds, more than 0, got {ttl:g}")
    request: dict[str, Any] = {"agent_id": agent_id, "command": {"type": kind, "payload": _object(payload)}}
    if ttl is not None:
        request["options"] = {"ttl": ttl}

    async def act(operator: Operator) -> tuple[dict[str, Any], dict[str, Any] | None]:
        ends_at = time.monotonic() + timeout
        reply = await ask(operator, "send", request, request_id=request_id, timeout_s=timeout, json=json)
        return reply, await _outcome(operator, reply["command_id"], ends_at) if wait else None

    reply, record = with_operator(redis, prefix, act)
    if json:
        print_json(reply if record is None else record)
    else:
        typer.echo(f"{reply['command_id']} {reply['status'] if record is None else _told(record)}")
    return Exit.DONE if record is None or record["status"] == Status.SUCCEEDED else Exit.REFUSED


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"--payload: expected a JSON object: {error}") from None


async def _outcome(operator: Operator, command_id: str, ends_at: float) -> dict[str, Any]:
    """Wait for the end of a command, and give its record."""
    while True:
        record: dict[str, Any] = dict(await operator.command(command_id))
        status = record.get("status", "gone from the records")
        if status not in _OPEN:
            record |= {name: msgspec.json.decode(record[name]) for name in _CONTENTS if name in record}
            told = {name: value for name, value in record.items() if value != "" and name != "body"}
            return {"command_id": command_id, **told, "status": status}
        if time.monotonic() >= ends_at:
            raise TimedOutError(f"command {command_id} is {status} still; it goes on, and may yet end well")
        await asyncio.sleep(_LOOK_EVERY_S)


def _told(record: dict[str, Any]) -> str:
    result = msgspec.json.encode(record["result"]).decode() if record.get("result") else ""
    reason = ": ".join(record[name] for name in ("code", "reason") if record.get(name) not in {None, record["status"]})
    return " ".join(filter(None, (record["status"], reason, result)))
