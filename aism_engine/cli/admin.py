"""What subcommands of the CLI share: they read a fleet, send requests to its engine, and wait for outcomes."""

import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
import typer
import uuid_utils

from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode, FailedError, TimedOutError
from aism_engine.cli.output import Output, ProgressLine, as_json_text, print_json, print_notice
from aism_engine.cli.pending import format_causes, read_causes
from aism_engine.config import load_settings
from aism_engine.domain.commands.command import COMMAND_TABLE
from aism_engine.domain.commands.group import GROUP_TABLE, OUTCOMES
from aism_engine.domain.records import RecordTable
from aism_engine.durations import format_age
from aism_engine.errors import RefusalError, ServerUnavailableError
from aism_engine.ops.admin_client import AdminClient, NoReplyError
from aism_engine.settings import RedisSettings, Settings
from aism_engine.store.blocking_client import BlockingClient, run
from aism_engine.store.keys import Keys
from aism_engine.terminal import printable

T = TypeVar("T")
Payload: TypeAlias = Mapping[str, Any] | Callable[[AdminClient], Awaitable[Mapping[str, Any]]]

_LEADER_INTERVAL_S: Final = 2.0
"""Time between checks that an engine leads, while a command runs."""
_START: Final = "Start one: aism-engine run"
STALE: Final = "this data was written by the last leader"
WAITS: Final = "the request waits until one leads"
"""What the warning `no engine has led for 5h: …` says after the colon: `STALE` for a read, `WAITS` for a request."""
_INTERNAL_FIELDS: Final = frozenset({"body", "request"})
"""Fields of a record that only the engine uses."""
_JSON_FIELDS: Final = ("payload", "result")
_COUNTS: Final = ("total", "needed", *OUTCOMES)


class RequestOptions(options.OptionSet, frozen=True, kw_only=True):
    """Options of a request to the engine."""

    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Recorded in the audit.")] = None
    timeout_s: options.ReplyTimeout = 10.0


class FleetOptions(options.OptionSet, frozen=True, kw_only=True):
    """Options that name a fleet, with methods that read the fleet and send requests to its engine."""

    redis: options.Redis = None
    prefix: options.Prefix = None
    config: options.Config = None

    def settings(self, overrides: Mapping[str, object] = MappingProxyType({})) -> Settings:
        """Load the settings that the options, the environment and the file of `--config` name."""
        flags = {"redis.url": self.redis, "redis.prefix": self.prefix}
        return load_settings(self.config, overrides={**flags, **overrides}).settings

    def read(self, act: Callable[[AdminClient], Coroutine[Any, Any, T]]) -> T:
        """Run `act`, which only reads, with a client of the fleet. If no engine leads, print a warning.

        A blocking client is used, because importing redis-py and asyncio takes longer than most reads. It does not
        support sentinels: if the settings name any, `call_fleet` is used instead.
        """
        server = self.settings().redis
        if server.sentinels:
            return call_fleet(server, act)

        async def read(admin: AdminClient) -> T:
            await _report_leader(admin, STALE, led=True)
            return await act(admin)

        client = BlockingClient(server)
        try:
            return run(read(AdminClient(client, None, Keys(server.prefix))))
        finally:
            client.close()

    def call(self, act: Callable[[AdminClient], Awaitable[T]], consequence: str = STALE) -> T:
        """Run `act` with a client of the fleet. If no engine leads, print a warning that states the `consequence`.

        If `consequence` is empty, print no warning.
        """
        return call_fleet(self.settings().redis, act, consequence)

    def watch(self, act: Callable[[AdminClient], Awaitable[None]], consequence: str = STALE) -> None:
        """Run `act` until it returns, or until Ctrl-C, which is the regular end."""
        with suppress(KeyboardInterrupt):
            self.call(act, consequence)

    def send(self, kind: str, payload: Payload, request: RequestOptions, output: Output) -> dict[str, Any]:
        """Send a request; return its reply, or its outcome if it is for many agents.

        `payload` is the payload, or a function that reads the fleet and returns the payload. Raises FailedError if the
        engine refuses the request, and TimedOutError if the reply or the outcome does not arrive in time.
        """
        ends_at = time.monotonic() + request.timeout_s

        async def act(admin: AdminClient) -> dict[str, Any]:
            fields = {**(await payload(admin) if callable(payload) else payload), "reason": request.reason}
            reply = await send_request(admin, kind, fields, request.timeout_s, output)
            left_s = ends_at - time.monotonic()
            return await wait_for_outcome(admin, reply["group_id"], left_s) if reply.get("targets") else reply

        return self.call(act, WAITS)


def call_fleet(server: RedisSettings, act: Callable[[AdminClient], Awaitable[T]], consequence: str = STALE) -> T:
    """Run `act` with a client of the fleet at `server`, as `FleetOptions.call`."""
    import asyncio  # noqa: PLC0415  slow to import

    async def call() -> T:
        _cancel_at_interrupt()
        async with AdminClient.connect(server) as admin, _reporting_leader(admin, consequence):
            return await act(admin)

    try:
        return asyncio.run(call())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _cancel_at_interrupt() -> None:
    """Let the event loop cancel this task at Ctrl-C, between two steps of the task.

    `asyncio.run` would cancel the task in the middle of a step. If the task enters `asyncio.timeout(0)` in that step,
    as redis-py does to read published messages, the timeout discards the cancellation, and the command goes on.

    A second Ctrl-C ends the process.
    """
    import asyncio  # noqa: PLC0415  slow to import

    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        if task is not None:
            task.cancel()

    with suppress(RuntimeError):  # only the main thread receives signals
        loop.add_signal_handler(signal.SIGINT, cancel)


@asynccontextmanager
async def _reporting_leader(admin: AdminClient, consequence: str) -> AsyncIterator[None]:
    """Print a warning if no engine leads at the start of the block, and a notice whenever that changes.

    If `consequence` is empty, print nothing.
    """
    import asyncio  # noqa: PLC0415  slow to import

    async def follow(led: bool) -> None:  # noqa: FBT001
        while True:
            await asyncio.sleep(_LEADER_INTERVAL_S)
            led = await _report_leader(admin, consequence, led=led)

    following = asyncio.create_task(follow(await _report_leader(admin, consequence, led=True)))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _report_leader(admin: AdminClient, consequence: str, *, led: bool) -> bool:
    """Return whether an engine leads. Print a notice if this differs from `led`.

    `led` is the result of the previous call. The first call passes True, so that it reports only a missing leader.
    """
    try:
        lease = await admin.lease()
    except ServerUnavailableError:
        return led  # the caller reports outages
    leads = lease.token is not None
    if leads != led and consequence:
        print_notice("an engine leads again" if leads else f"warning: {lease.notice(consequence)}. {_START}")
    return leads


async def send_request(
    admin: AdminClient,
    kind: str,
    payload: Mapping[str, Any],
    timeout_s: float,
    output: Output,
    *,
    request_id: str | None = None,
) -> dict[str, Any]:
    """Send a request to the engine and return its reply. Raises TimedOutError if no reply arrives in time.

    If the engine refuses the request, raises FailedError. With `--json`, also prints the reply of the refusal. At
    Ctrl-C, prints a notice that the request stays in its queue.
    """
    import asyncio  # noqa: PLC0415  slow to import

    request_id = request_id or str(uuid_utils.uuid7())
    try:
        reply = await admin.request(kind, payload, request_id=request_id, timeout_s=timeout_s)
    except NoReplyError as error:
        again = f". To send it again without a second effect, add --id {error.request_id}" if kind == "send" else ""
        raise TimedOutError(f"{error}{again}") from None
    except asyncio.CancelledError:
        print_notice(f"request {request_id} stays queued and may still be accepted")
        raise
    if not reply["ok"]:
        if output.json:
            print_json(reply)
        raise FailedError(RefusalError(reply["error"]).explanation)
    return reply


async def read_outcome(admin: AdminClient, record_id: str) -> dict[str, Any]:
    """Read the record of a command or a group, as `--json` prints it. Raises AismError if there is none."""
    return _outcome(record_id, await admin.record(record_id))


def _outcome(record_id: str, record: Mapping[str, str]) -> dict[str, Any]:
    if "agent_id" in record:
        contents = {name: msgspec.json.decode(record[name]) for name in _JSON_FIELDS if record.get(name)}
        return {"command_id": record_id, **_public(record, COMMAND_TABLE), **contents}
    counts = {name: int(record.get(name, 0)) for name in _COUNTS}
    cancel_requested = bool(record.get("cancel_requested"))
    return {"group_id": record_id, **_public(record, GROUP_TABLE), **counts, "cancel_requested": cancel_requested}


async def wait_for_outcome(admin: AdminClient, record_id: str, timeout_s: float | None) -> dict[str, Any]:
    """Wait until a command has ended or a group is decided, as `AdminClient.wait`. Raises TimedOutError.

    The error, and the notice at Ctrl-C, say how to wait longer.
    """
    import asyncio  # noqa: PLC0415  slow to import

    began_at, longer = time.monotonic(), f"To wait longer: aism-engine commands wait {record_id}"
    with ProgressLine() as progress:

        def report(record: Mapping[str, str], problem: str) -> None:
            shown = format_progress(_outcome(record_id, record), time.monotonic() - began_at, problem)
            progress.update(f"{record_id}: {shown}")

        try:
            return _outcome(record_id, await admin.wait(record_id, timeout_s=timeout_s, report=report))
        except TimeoutError as error:
            raise TimedOutError(f"{error}{await _causes(admin, record_id)}. {longer}") from None
        except asyncio.CancelledError:
            print_notice(f"{record_id} is not affected by the end of this wait. {longer}")
            raise


async def _causes(admin: AdminClient, record_id: str) -> str:
    with suppress(ServerUnavailableError):
        outcome = await read_outcome(admin, record_id)
        causes = format_causes(outcome, await read_causes(admin, outcome))
        return "".join(f"; {name}: {text}" for name, text in causes.items())
    return ""


def format_progress(outcome: Mapping[str, Any], waited_s: float, problem: str) -> str:
    """Return the progress of a command or a group as one line. `problem`, if any, says why it cannot end now.

    The line may be wider than a terminal: `ProgressLine` cuts it.
    """
    waited = format_age(waited_s)
    if problem or "command_id" not in outcome:
        return ", ".join(filter(None, (format_outcome(outcome), waited, problem)))
    attempt = f"attempt {outcome['attempt']} of {outcome['max_attempts']}" if outcome.get("attempt", "0") != "0" else ""
    percent = f"{outcome['percent']}%" if outcome.get("percent") else ""
    return printable(", ".join(filter(None, (outcome["status"], waited, attempt, percent, outcome.get("note")))))


def format_outcome(outcome: Mapping[str, Any]) -> str:
    """Return an outcome as one line: status, code, reason and result; for a group the counts."""
    if "command_id" not in outcome:
        counts = ", ".join(f"{outcome[name]} {name}" for name in OUTCOMES if outcome[name])
        return f"{outcome['status']} ({counts or 'none ended'}, of {outcome['total']})"
    result = as_json_text(outcome["result"]) if outcome.get("result") else ""
    reason = ": ".join(
        outcome[name] for name in ("code", "reason") if outcome.get(name) not in {None, outcome["status"]}
    )
    return printable(" ".join(filter(None, (outcome["status"], reason, result))))


def outcome_exit_code(outcome: Mapping[str, Any]) -> ExitCode:
    return ExitCode.DONE if outcome["status"] == "succeeded" else ExitCode.REFUSED


def _public(record: Mapping[str, str], table: RecordTable[Any]) -> dict[str, Any]:
    """Return the fields of a record that have a value and are not internal, in a fixed order.

    The order is: status, code, reason, the other fields of `table`, all others sorted by name.
    """
    ordered = dict.fromkeys(("status", "code", "reason", *table.fields, *sorted(record)))
    return {name: record[name] for name in ordered if record.get(name) and name not in _INTERNAL_FIELDS}
