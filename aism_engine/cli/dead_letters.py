"""`aism-engine dead-letters`: lists, shows, replays and purges dead letters."""

from collections import Counter
from typing import Annotated, Any, Final

import typer
from msgspec.structs import asdict

from aism_engine import values
from aism_engine.cli import options
from aism_engine.cli.admin import WAITS, FleetOptions, RequestOptions, send_request
from aism_engine.cli.exit_codes import ExitCode, FailedError
from aism_engine.cli.output import Output, ProgressLine, fields_as_json
from aism_engine.clock import iso
from aism_engine.domain.effects import DeadLetter
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.audit_log import entry_order, entry_time
from aism_engine.terminal import printable

app = options.CommandGroup(help="List dead letters, show one, replay or purge them.")

_PURGE_BATCH: Final = 1000
"""Dead letters in one purge request."""
_COLUMNS: Final = ("dead_letter_id", "dead_lettered_at", "code", "source", "agent_id", "reason")


class Filter(options.OptionSet, frozen=True, kw_only=True):
    """Selects dead letters. An option that is not given selects all."""

    code: Annotated[list[str] | None, typer.Option(metavar="CODE", help="Only with this code; repeatable.")] = None
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Only from response_queue, request_queue, fanout or commands.")
    ] = None
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only of this agent.")] = None
    since: Annotated[float | None, options.time_or_age("Only those since this time: ISO, or an age like 2h.")] = None
    until: Annotated[
        float | None, options.time_or_age("Only those before this ISO time, or older than an age like 30d.")
    ] = None

    def selects(self, _dead_letter_id: str, dead_letter: DeadLetter) -> bool:
        return (
            (not self.code or dead_letter.code in self.code)
            and self.source in {None, dead_letter.source}
            and self.agent in {None, dead_letter.agent_id}
        )

    async def read(self, admin: AdminClient, progress: ProgressLine) -> dict[str, DeadLetter]:
        """Read the selected dead letters by their id, oldest first."""
        since = "-" if self.since is None else _stream_id(self.since * 1000)
        until = "+" if self.until is None else _stream_id(self.until * 1000 - 1)
        found = {}
        async for dead_letter_id, dead_letter in admin.dead_letters(since, until):
            if self.selects(dead_letter_id, dead_letter):
                found[dead_letter_id] = dead_letter
                progress.update(f"{len(found)} dead letters read")
        return found


class Selection(Filter, frozen=True, kw_only=True):
    """Selects the dead letters to change: by ids, by options of the filter, or by --all.

    Exactly one of the three must be given, so that a forgotten option does not select every dead letter.
    """

    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of dead letters.")] = None
    all_: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False

    def __post_init__(self) -> None:
        given = [value for name, value in asdict(self).items() if name not in {"all_", "ids"}]
        has_filter = any(value is not None and value is not False for value in given)
        if (bool(self.ids), has_filter, self.all_).count(True) != 1:
            raise typer.BadParameter("expected either ids, or a filter such as --code or --since, or --all")
        try:
            for each in self.ids or ():
                values.dead_letter_id(each)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="ID") from None

    def selects(self, dead_letter_id: str, dead_letter: DeadLetter) -> bool:
        return (not self.ids or dead_letter_id in self.ids) and super().selects(dead_letter_id, dead_letter)


@app.command("list")
def list_(*, selected: Filter, limit: options.Limit = 100, fleet: FleetOptions, output: Output) -> None:
    """List dead letters with their reasons, oldest first.

    A dead letter is a message or a command that the engine gave up on, and kept.

    \b
    Example:
      aism-engine dead-letters list --code attempts_exhausted --since 1d
    """
    with ProgressLine() as progress:
        found = fleet.read(lambda admin: selected.read(admin, progress))
    shown = [_as_json(*each) for each in list(found.items())[-limit:]]
    output.print_table(shown, _COLUMNS, of=len(found))


@app.command()
def show(
    dead_letter_id: Annotated[
        str, typer.Argument(metavar="ID", parser=values.dead_letter_id, help="Id of the dead letter.")
    ],
    *,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """Show a dead letter, with the original message.

    \b
    Example:
      aism-engine dead-letters show 1763884800000-0
    """

    async def read(admin: AdminClient) -> list[DeadLetter]:
        return [found async for _, found in admin.dead_letters(dead_letter_id, dead_letter_id)]

    found = fleet.read(read)
    if not found:
        raise FailedError(f"there is no dead letter {dead_letter_id}. aism-engine dead-letters list shows all of them")
    output.print_fields(_as_json(dead_letter_id, *found))


@app.command()
def replay(
    *, selected: Selection, timeout_s: options.ReplyTimeout = 10.0, fleet: FleetOptions, output: Output
) -> ExitCode:
    """Process dead letters again, one after the other, oldest first.

    The checks are the same as the first time. A message is applied, or becomes a new dead letter. A command is sent
    under a new id. A dead letter whose replay is refused is kept. The exit code is 1 if any of them was not applied.

    \b
    Example:
      aism-engine dead-letters replay 1763884800000-0
      aism-engine dead-letters replay --code unknown_agent --since 2h
    """

    async def act(admin: AdminClient) -> list[dict[str, Any]]:
        found, outcomes = await selected.read(admin, progress), []
        # Ids that were not found are sent as well: the engine refuses each with a reason, which is printed.
        ids = sorted({*found, *(selected.ids or ())}, key=entry_order)
        for dead_letter_id in ids:
            payload = {"dead_letter_id": dead_letter_id}
            try:
                reply = await send_request(admin, "replay", payload, timeout_s, Output())
            except FailedError as error:
                reply = {"outcome": "refused", "reason": str(error).removeprefix("refused: ")}
            shown = ("outcome", "code", "reason", "command_id", "replay_of")
            outcomes.append({**payload, **{name: reply[name] for name in shown if reply.get(name)}})
            progress.update(f"{len(outcomes)} of {len(ids)} replayed")
        return outcomes

    with ProgressLine() as progress:
        outcomes = fleet.call(act, WAITS)
    counts = Counter(each["outcome"] for each in outcomes)
    lines = [
        printable(" ".join(str(value) for name, value in each.items() if name != "replay_of")) for each in outcomes
    ]
    lines.append(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "nothing to replay")
    output.print(outcomes, "\n".join(lines))
    return ExitCode.REFUSED if counts.keys() & {"refused", "dead_lettered"} else ExitCode.DONE


@app.command()
def purge(*, selected: Selection, request: RequestOptions, fleet: FleetOptions, output: Output) -> ExitCode:
    """Delete dead letters. The audit still records that they existed and were deleted.

    The exit code is 1 if there is no dead letter with one of the ids.

    \b
    Example:
      aism-engine dead-letters purge --until 30d --reason "too old to matter"
    """

    async def act(admin: AdminClient) -> list[str]:
        found = list(await selected.read(admin, progress))
        for start in range(0, len(found), _PURGE_BATCH):
            payload = {"dead_letter_ids": found[start : start + _PURGE_BATCH], "reason": request.reason}
            await send_request(admin, "purge", payload, request.timeout_s, output)
            progress.update(f"{min(start + _PURGE_BATCH, len(found))} of {len(found)} purged")
        return found

    with ProgressLine() as progress:
        purged = fleet.call(act, WAITS)
    unknown = sorted({*(selected.ids or ())} - {*purged}, key=entry_order)
    text = f"{len(purged)} purged" + (f"; there is no dead letter {', '.join(unknown)}" if unknown else "")
    output.print({"purged": len(purged), "unknown": unknown}, text)
    return ExitCode.REFUSED if unknown else ExitCode.DONE


def _stream_id(milliseconds: float) -> str:
    """Return a time as an incomplete stream id, which consists of milliseconds only.

    Redis completes the start of a range to the first id of that millisecond, and the end of a range to the last id.
    A time before 1970 becomes 0, the lowest id of Redis.
    """
    return f"{max(0.0, milliseconds):.0f}"


def _as_json(dead_letter_id: str, dead_letter: DeadLetter) -> dict[str, Any]:
    return {
        "dead_letter_id": dead_letter_id,
        "dead_lettered_at": iso(entry_time(dead_letter_id)),
        **fields_as_json(dead_letter, "code", "reason", "source", "agent_id", "replay_of", "size", "digest"),
        "raw": dead_letter.raw.decode(errors="backslashreplace"),
    }
