"""How commands read a fleet, send requests to its engine, and wait for outcomes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode, RefusedError, TimedOutError
from aism_engine.cli.output import Output, ProgressLine, as_json_text, print_json
from aism_engine.cli.pending import format_causes, read_causes
from aism_engine.config import load_settings
from aism_engine.domain.commands.group import OUTCOMES, UNDECIDED
from aism_engine.durations import format_duration
from aism_engine.ops.admin_client import AdminClient
from aism_engine.settings import RedisSettings, Settings
from aism_engine.terminal import printable

T = TypeVar("T")

_POLL_INTERVAL_S: Final = 0.1
_INTERNAL_FIELDS: Final = frozenset({"body", "request"})
"""Fields of a record that only the engine uses."""
_JSON_FIELDS: Final = ("payload", "result")
_COUNTS: Final = ("total", "needed", *OUTCOMES)


class RequestOptions(options.OptionSet, frozen=True, kw_only=True):
    """Options of a request to the engine."""

    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Recorded in the audit.")] = None
    timeout_s: options.ReplyTimeout = 10.0


class FleetOptions(options.OptionSet, frozen=True, kw_only=True):
    """Options that name a fleet, and what a command does with the fleet."""

    redis: options.Redis = None
    prefix: options.Prefix = None
    config: options.Config = None

    def settings(self, overrides: Mapping[str, object] = MappingProxyType({})) -> Settings:
        """Load the settings that the options, the environment and the file of `--config` name."""
        flags = {"redis.url": self.redis, "redis.prefix": self.prefix}
        return load_settings(self.config, overrides={**flags, **overrides}).settings

    def call(self, act: Callable[[AdminClient], Awaitable[T]]) -> T:
        """Run `act` with a client of the fleet."""
        return call_fleet(self.settings().redis, act)

    def watch(self, act: Callable[[AdminClient], Awaitable[None]]) -> None:
        """Run `act` until it returns, or until Ctrl-C, which is the regular end."""
        with suppress(KeyboardInterrupt):
            self.call(act)

    def send(self, kind: str, payload: Mapping[str, Any], request: RequestOptions, output: Output) -> dict[str, Any]:
        """Send a request; return its reply, or its outcome if it is for many agents. Raises as `send_request`."""
        ends_at = time.monotonic() + request.timeout_s

        async def act(admin: AdminClient) -> dict[str, Any]:
            reply = await send_request(admin, kind, {**payload, "reason": request.reason}, request.timeout_s, output)
            return await wait_for_outcome(admin, reply["group_id"], ends_at) if reply.get("targets") else reply

        return self.call(act)


def call_fleet(server: RedisSettings, act: Callable[[AdminClient], Awaitable[T]]) -> T:
    """Run `act` with a client of the fleet at `server`."""

    async def run() -> T:
        async with AdminClient.connect(server) as admin:
            return await act(admin)

    return asyncio.run(run())


async def send_request(
    admin: AdminClient,
    kind: str,
    payload: Mapping[str, Any],
    timeout_s: float,
    output: Output,
    *,
    request_id: str | None = None,
) -> dict[str, Any]:
    """Send a request to the engine and return its reply. Raises RefusedError, or TimedOutError without a reply.

    With `--json` a refusal is printed as well.
    """
    try:
        reply = await admin.request(kind, payload, request_id=request_id, timeout_s=timeout_s)
    except TimeoutError as error:
        again = f" To send it again without a second effect, add --id {error}." if kind == "send" else ""
        raise TimedOutError(
            f"no engine has replied within {format_duration(timeout_s)}. Request {error} stays queued and may still be "
            f"accepted.{again} aism-engine top --once shows whether an engine leads"
        ) from None
    if not reply["ok"]:
        if output.json:
            print_json(reply)
        raise RefusedError(_format_refusal(reply["error"]))
    return reply


async def read_outcome(admin: AdminClient, record_id: str) -> dict[str, Any]:
    """Read the record of a command or a group, as `--json` prints it. Raises RefusedError if there is none."""
    if record := await admin.command(record_id):
        contents = {name: msgspec.json.decode(record[name]) for name in _JSON_FIELDS if record.get(name)}
        return {"command_id": record_id, **_public(record), **contents}
    if record := await admin.group(record_id):
        counts = {name: int(record.get(name, 0)) for name in _COUNTS}
        cancel_requested = bool(record.get("cancel_requested"))
        return {"group_id": record_id, **_public(record), **counts, "cancel_requested": cancel_requested}
    raise RefusedError(
        f"there is no command or group {record_id}: the id is wrong, or commands.retention has passed. "
        "aism-engine commands list --ended shows what is kept"
    )


async def wait_for_outcome(admin: AdminClient, record_id: str, ends_at: float) -> dict[str, Any]:
    """Wait until a command has ended or a group is decided. Raises TimedOutError at `ends_at` (monotonic)."""
    with ProgressLine() as progress:
        while (found := await read_outcome(admin, record_id))["status"] in UNDECIDED:
            if time.monotonic() >= ends_at:
                causes = "".join(f". {text}" for text in format_causes(found, await read_causes(admin, found)).values())
                raise TimedOutError(
                    f"{record_id} is still {found['status']}{causes}. "
                    f"To wait longer: aism-engine commands wait {record_id}"
                )
            progress.update(f"{record_id}: {format_outcome(found)}")
            await asyncio.sleep(_POLL_INTERVAL_S)
    return found


def format_outcome(found: Mapping[str, Any]) -> str:
    """Write an outcome on one line: status, code, reason and result; for a group the counts."""
    if "command_id" not in found:
        counts = ", ".join(f"{found[name]} {name}" for name in OUTCOMES if found[name])
        return f"{found['status']} ({counts or 'none ended'}, of {found['total']})"
    result = as_json_text(found["result"]) if found.get("result") else ""
    reason = ": ".join(found[name] for name in ("code", "reason") if found.get(name) not in {None, found["status"]})
    return printable(" ".join(filter(None, (found["status"], reason, result))))


def outcome_exit_code(found: Mapping[str, Any]) -> ExitCode:
    return ExitCode.DONE if found["status"] == "succeeded" else ExitCode.REFUSED


def _public(record: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value != "" and name not in _INTERNAL_FIELDS}


def _format_refusal(error: Mapping[str, Any]) -> str:
    suggestions = "; ".join(error.get("suggestions", ()))
    return f"refused: {error['message']}" + (f" (try: {suggestions})" if suggestions else "")
