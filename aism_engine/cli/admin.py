"""How commands read a fleet, send requests to its engine, and wait for what became of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from aism_engine.cli.exit_codes import ExitCode, RefusedError, TimedOutError
from aism_engine.cli.output import ProgressLine, print_json
from aism_engine.config import load_settings
from aism_engine.domain.commands.command import OPEN
from aism_engine.domain.commands.group import OUTCOMES
from aism_engine.ops.admin_client import AdminClient

T = TypeVar("T")

_LOOK_EVERY_S: Final = 0.1
_OPEN: Final = frozenset({*(status.value for status in OPEN), "open"})
_CONTENTS: Final = ("payload", "result")
"""Fields of a command's record that hold JSON."""
_COUNTS: Final = ("total", "needed", *OUTCOMES)


def with_admin_client(redis: str | None, prefix: str | None, act: Callable[[AdminClient], Awaitable[T]]) -> T:
    """Connect to the server and the fleet that are meant (by flags, the environment, or default), and act there."""
    server = load_settings(overrides={"redis.url": redis, "redis.prefix": prefix}).settings.redis

    async def session() -> T:
        async with AdminClient.connect(server.url, server.prefix) as admin:
            return await act(admin)

    return asyncio.run(session())


async def send_request(
    admin: AdminClient,
    kind: str,
    payload: Mapping[str, Any],
    *,
    request_id: str | None = None,
    timeout_s: float,
    json: bool,
) -> dict[str, Any]:
    """Ask the engine for something. Raises RefusedError with its reasons, TimedOutError where it does not answer."""
    try:
        reply = await admin.request(kind, payload, request_id=request_id, timeout_s=timeout_s)
    except TimeoutError as error:
        raise TimedOutError(
            f"no engine has answered within {timeout_s:g} s. Request {error} stays queued and may still be accepted; "
            f"to ask again with --id {error} does not do it twice."
        ) from None
    if not reply["ok"]:
        if json:
            print_json(reply)
        raise RefusedError(_reasons(reply["error"]))
    return reply


def _reasons(fault: Mapping[str, Any]) -> str:
    suggestions = "; ".join(fault.get("suggestions", ()))
    return f"refused: {fault['message']}" + (f" (try: {suggestions})" if suggestions else "")


async def read_outcome(admin: AdminClient, name: str) -> dict[str, Any]:
    """Read how a command or a group stands, as programs get it. Raises RefusedError where there is none of that id."""
    if record := await admin.command(name):
        contents = {each: msgspec.json.decode(record[each]) for each in _CONTENTS if record.get(each)}
        return {"command_id": name, **_said(record), **contents}
    if record := await admin.group(name):
        counts = {each: int(record.get(each, 0)) for each in _COUNTS}
        return {"group_id": name, **_said(record), **counts, "stopped": bool(record.get("stopped"))}
    raise RefusedError(f"there is no command {name}, and no group: it never was, or its record has gone")


async def wait_for_outcome(admin: AdminClient, name: str, ends_at: float) -> dict[str, Any]:
    """Wait until it is known what becomes of a command, or of enough of a group. Raises TimedOutError."""
    progress = ProgressLine()
    try:
        while (found := await read_outcome(admin, name))["status"] in _OPEN:
            if time.monotonic() >= ends_at:
                raise TimedOutError(f"{name} is {found['status']} still; it goes on, and may yet end well")
            progress.update(f"{name}: {format_outcome(found)}")
            await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        progress.clear()
    return found


def format_outcome(found: Mapping[str, Any]) -> str:
    """Write an outcome on one line: the status, and what there is to say of it."""
    if "group_id" in found:
        counts = ", ".join(f"{found[each]} {each}" for each in OUTCOMES if found[each])
        return f"{found['status']} ({counts or 'none ended'}, of {found['total']})"
    result = msgspec.json.encode(found["result"]).decode() if found.get("result") else ""
    reason = ": ".join(found[name] for name in ("code", "reason") if found.get(name) not in {None, found["status"]})
    return " ".join(filter(None, (found["status"], reason, result)))


def outcome_exit_code(found: Mapping[str, Any]) -> ExitCode:
    return ExitCode.DONE if found["status"] == "succeeded" else ExitCode.REFUSED


def _said(record: Mapping[str, str]) -> dict[str, Any]:
    """Leave out what says nothing, and what is there for the engine alone."""
    return {name: value for name, value in record.items() if value != "" and name not in {"body", "request"}}
