"""`aism-engine dead-letters`: lists, shows, replays and purges dead letters."""

import time
from collections import Counter
from typing import Annotated, Any, Final, TypeAlias

import typer
from msgspec import Struct

from aism_engine.cli import options
from aism_engine.cli.admin import send_request, with_admin_client
from aism_engine.cli.exit_codes import ExitCode, RefusedError
from aism_engine.cli.options import parse_duration, parse_time_or_age
from aism_engine.cli.output import ProgressLine, format_age, print_fields, print_json, print_table
from aism_engine.clock import iso
from aism_engine.domain.effects import DeadLetter
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.audit_log import entry_time

app = options.CommandGroup(help="List dead letters, show one, replay or purge them.")

_PURGE_BATCH: Final = 1000
"""Dead letters in one purge request."""
_Ids: TypeAlias = Annotated[list[str] | None, typer.Argument(metavar="ID", show_default=False)]
_Code: TypeAlias = Annotated[list[str] | None, typer.Option(metavar="CODE", help="Only with this code; repeatable.")]
_Source: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="Only from response_queue, request_queue or commands.")
]
_Agent: TypeAlias = Annotated[str | None, typer.Option(metavar="ID", help="Only of this agent.")]
_Since: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only those written since this time: an ISO time, or 2h ago.")
]
_Until: TypeAlias = Annotated[str | None, typer.Option(metavar="TIME", help="Only those written before this time.")]
_All: TypeAlias = Annotated[bool, typer.Option("--all", help="All dead letters.")]
_Timeout: TypeAlias = Annotated[str, typer.Option(metavar="TIME", help="Longest wait for each reply of the engine.")]


class Filter(Struct, frozen=True):
    """Selects dead letters. An empty field selects all."""

    ids: frozenset[str]
    codes: frozenset[str]
    source: str | None
    agent_id: str | None
    since: float | None
    until: float | None

    @property
    def is_set(self) -> bool:
        return any((self.ids, self.codes, self.source, self.agent_id, self.since, self.until))

    async def read(self, admin: AdminClient, progress: ProgressLine) -> list[tuple[str, DeadLetter]]:
        since = "-" if self.since is None else f"{self.since * 1000:.0f}"
        until = "+" if self.until is None else f"({self.until * 1000:.0f}"
        found = []
        async for dead_letter_id, dead_letter in admin.dead_letters(since, until):
            if (
                (not self.ids or dead_letter_id in self.ids)
                and (not self.codes or dead_letter.code in self.codes)
                and self.source in {None, dead_letter.source}
                and self.agent_id in {None, dead_letter.agent_id}
            ):
                found.append((dead_letter_id, dead_letter))
                progress.update(f"{len(found)} dead letters read")
        progress.clear()
        return found


def _filter(
    ids: list[str] | None,
    codes: list[str] | None,
    source: str | None,
    agent: str | None,
    since: str | None,
    until: str | None,
) -> Filter:
    now = time.time()
    since_at = None if since is None else parse_time_or_age("--since", since, now)
    until_at = None if until is None else parse_time_or_age("--until", until, now)
    return Filter(frozenset(ids or ()), frozenset(codes or ()), source, agent, since_at, until_at)


def _explicit(selected: Filter, *, all_: bool) -> Filter:
    """Require a filter or --all, so that a forgotten option does not change every dead letter."""
    if selected.is_set == all_:
        raise typer.BadParameter("give ids, --code, --source, --agent, --since or --until; or --all for all of them")
    return selected


@app.command("list")
def list_(
    *,
    code: _Code = None,
    source: _Source = None,
    agent: _Agent = None,
    since: _Since = None,
    until: _Until = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Show only the newest N.")] = 100,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """List dead letters with their reasons, oldest first.

    A dead letter is a message or a command that the engine gave up on, and kept.

    \b
    Example:
      aism-engine dead-letters list --code attempts_exhausted --since 1d
    """
    selected, progress = _filter(None, code, source, agent, since, until), ProgressLine()
    found = with_admin_client(redis, prefix, lambda admin: selected.read(admin, progress))
    shown = found[-limit:]
    if json:
        print_json([_as_json(*each) for each in shown])
        return
    rows = (
        (
            dead_letter_id,
            format_age(time.time() - entry_time(dead_letter_id)),
            dead_letter.code,
            dead_letter.source,
            dead_letter.agent_id,
            dead_letter.reason,
        )
        for dead_letter_id, dead_letter in shown
    )
    print_table(("ID", "AGE", "CODE", "SOURCE", "AGENT", "REASON"), rows)
    if len(shown) < len(found):
        typer.echo(f"showing the newest {len(shown)} of {len(found)}; use --limit to show more", err=True)


@app.command()
def show(
    dead_letter_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    *,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Show a dead letter, with the original message.

    \b
    Example:
      aism-engine dead-letters show 1763884800000-0
    """
    dead_letter = with_admin_client(redis, prefix, lambda admin: _read(admin, dead_letter_id))
    if dead_letter is None:
        raise RefusedError(f"there is no dead letter {dead_letter_id}; see aism-engine dead-letters list")
    found = _as_json(dead_letter_id, dead_letter)
    if json:
        print_json(found)
    else:
        print_fields((name.replace("_", " "), value) for name, value in found.items())


@app.command()
def replay(
    ids: _Ids = None,
    *,
    code: _Code = None,
    source: _Source = None,
    agent: _Agent = None,
    since: _Since = None,
    until: _Until = None,
    all_: _All = False,
    timeout: _Timeout = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> ExitCode:
    """Process dead letters again, one after the other, oldest first, with the same checks as the first time.

    A message is applied, or becomes a new dead letter. A command is sent under a new id. A dead letter whose replay is
    refused is kept. The exit code is 1 if any of them was not applied.

    \b
    Example:
      aism-engine dead-letters replay 1763884800000-0
      aism-engine dead-letters replay --code unknown_agent --since 2h
    """
    selected = _explicit(_filter(ids, code, source, agent, since, until), all_=all_)
    timeout_s, progress = parse_duration("--timeout", timeout), ProgressLine()

    async def act(admin: AdminClient) -> list[dict[str, Any]]:
        found = [dead_letter_id for dead_letter_id, _ in await selected.read(admin, progress)]
        outcomes = []
        for dead_letter_id in (*sorted(selected.ids - set(found)), *found):  # the engine refuses unknown ids
            payload = {"dead_letter_id": dead_letter_id}
            try:
                reply = await send_request(admin, "replay", payload, timeout_s=timeout_s, json=False)
            except RefusedError as error:
                reply = {"outcome": "refused", "reason": str(error).removeprefix("refused: ")}
            shown = ("outcome", "code", "reason", "command_id", "replay_of")
            outcomes.append({**payload, **{name: reply[name] for name in shown if reply.get(name)}})
            progress.update(f"{len(outcomes)} of {len(found)} replayed")
        return outcomes

    try:
        outcomes = with_admin_client(redis, prefix, act)
    finally:
        progress.clear()
    if json:
        print_json(outcomes)
    else:
        for each in outcomes:
            typer.echo(" ".join(str(value) for name, value in each.items() if name != "replay_of"))
        counts = Counter(each["outcome"] for each in outcomes)
        typer.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "nothing to replay")
    applied = all(each["outcome"] not in {"refused", "dead_lettered"} for each in outcomes)
    return ExitCode.DONE if applied else ExitCode.REFUSED


@app.command()
def purge(
    ids: _Ids = None,
    *,
    code: _Code = None,
    source: _Source = None,
    agent: _Agent = None,
    since: _Since = None,
    until: _Until = None,
    all_: _All = False,
    reason: options.Reason = None,
    timeout: _Timeout = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Delete dead letters. The audit still records that they existed and were deleted.

    \b
    Example:
      aism-engine dead-letters purge --until 30d --reason "too old to matter"
    """
    selected = _explicit(_filter(ids, code, source, agent, since, until), all_=all_)
    timeout_s, progress = parse_duration("--timeout", timeout), ProgressLine()

    async def act(admin: AdminClient) -> int:
        found = [dead_letter_id for dead_letter_id, _ in await selected.read(admin, progress)]
        for start in range(0, len(found), _PURGE_BATCH):
            payload: dict[str, Any] = {"dead_letter_ids": found[start : start + _PURGE_BATCH]}
            payload |= {"reason": reason} if reason is not None else {}
            await send_request(admin, "purge", payload, timeout_s=timeout_s, json=json)
            progress.update(f"{min(start + _PURGE_BATCH, len(found))} of {len(found)} purged")
        return len(found)

    try:
        purged = with_admin_client(redis, prefix, act)
    finally:
        progress.clear()
    print_json({"purged": purged}) if json else typer.echo(f"{purged} purged")


async def _read(admin: AdminClient, dead_letter_id: str) -> DeadLetter | None:
    return next(iter([found async for _, found in admin.dead_letters(dead_letter_id, dead_letter_id)]), None)


def _as_json(dead_letter_id: str, dead_letter: DeadLetter) -> dict[str, Any]:
    """Build the JSON of a dead letter. The field names are a published interface."""
    return {
        "dead_letter_id": dead_letter_id,
        "dead_lettered_at": iso(entry_time(dead_letter_id)),
        "code": dead_letter.code,
        "reason": dead_letter.reason,
        "source": dead_letter.source,
        "agent_id": dead_letter.agent_id,
        "replay_of": dead_letter.replay_of,
        "size": dead_letter.size,
        "digest": dead_letter.digest,
        "raw": dead_letter.raw.decode(errors="backslashreplace"),
    }
