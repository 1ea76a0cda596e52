"""`aism-engine dead-letters`: what was given up on, and what to do with it."""

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
from aism_engine.ops.audit_log import instant

app = options.CommandGroup(help="List dead letters, show one, replay or purge them.")

_AT_ONCE: Final = 1000
"""Letters in a request to purge."""
_Ids: TypeAlias = Annotated[list[str] | None, typer.Argument(metavar="ID", show_default=False)]
_Code: TypeAlias = Annotated[list[str] | None, typer.Option(metavar="CODE", help="Only with these; repeatable.")]
_Source: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="Only from response_queue, request_queue or commands.")
]
_Agent: TypeAlias = Annotated[str | None, typer.Option(metavar="ID", help="Only of this agent.")]
_Since: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TIME", help="Buried since then: an ISO time, or 2h ago.")
]
_Until: TypeAlias = Annotated[str | None, typer.Option(metavar="TIME", help="Buried before that.")]
_All: TypeAlias = Annotated[bool, typer.Option("--all", help="Every one of them.")]
_Timeout: TypeAlias = Annotated[str, typer.Option(metavar="TIME", help="Longest wait for an answer of the engine.")]


class Filter(Struct, frozen=True):
    """Which letters are meant. What is not given does not matter."""

    ids: frozenset[str]
    codes: frozenset[str]
    source: str | None
    agent_id: str | None
    since: float | None
    until: float | None

    @property
    def given(self) -> bool:
        return any((self.ids, self.codes, self.source, self.agent_id, self.since, self.until))

    async def read(self, admin: AdminClient, progress: ProgressLine) -> list[tuple[str, DeadLetter]]:
        since = "-" if self.since is None else f"{self.since * 1000:.0f}"
        until = "+" if self.until is None else f"({self.until * 1000:.0f}"
        found = []
        async for dead_letter_id, letter in admin.dead_letters(since, until):
            if (
                (not self.ids or dead_letter_id in self.ids)
                and (not self.codes or letter.code in self.codes)
                and self.source in {None, letter.source}
                and self.agent_id in {None, letter.agent_id}
            ):
                found.append((dead_letter_id, letter))
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


@app.command("list")
def list_(  # noqa: PLR0913  each is a flag
    *,
    code: _Code = None,
    source: _Source = None,
    agent: _Agent = None,
    since: _Since = None,
    until: _Until = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="So many, the newest.")] = 100,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """List what was given up on, the oldest first, with the reason.

    \b
    Example:
      aism-engine dead-letters list --code attempts_exhausted --since 1d
    """  # noqa: D301  \b keeps the lines of the example apart, here and below
    wanted, progress = _filter(None, code, source, agent, since, until), ProgressLine()
    found = with_admin_client(redis, prefix, lambda admin: wanted.read(admin, progress))
    shown = found[-limit:]
    if json:
        print_json([_described(*each) for each in shown])
        return
    rows = (
        (
            dead_letter_id,
            format_age(time.time() - instant(dead_letter_id)),
            letter.code,
            letter.source,
            letter.agent_id,
            letter.reason,
        )
        for dead_letter_id, letter in shown
    )
    print_table(("LETTER", "AGE", "CODE", "SOURCE", "AGENT", "REASON"), rows)
    if len(shown) < len(found):
        typer.echo(f"the newest {len(shown)} of {len(found)}; --limit shows more", err=True)


@app.command()
def show(
    dead_letter_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    *,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Show a dead letter, with the message as it came.

    \b
    Example:
      aism-engine dead-letters show 1763884800000-0
    """  # noqa: D301
    letters = with_admin_client(redis, prefix, lambda admin: _all_of(admin, dead_letter_id))
    if not letters:
        raise RefusedError(f"there is no dead letter {dead_letter_id}; aism-engine dead-letters list shows all")
    found = _described(dead_letter_id, letters[0])
    if json:
        print_json(found)
    else:
        print_fields((name.replace("_", " "), value) for name, value in found.items())


@app.command()
def replay(  # noqa: PLR0913  each is a flag
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
    """Let the engine decide on them once more, one after the other in their order, by the same checks as at first.

    A message is applied now, or buried again as a new letter; a command is sent under a new id. One that is refused
    stays where it is. ExitCode code 1 says that not all have gone through.

    \b
    Example:
      aism-engine dead-letters replay 1763884800000-0
      aism-engine dead-letters replay --code unknown_agent --since 2h
    """  # noqa: D301
    wanted = _meant(_filter(ids, code, source, agent, since, until), all_=all_)
    timeout_s, progress = parse_duration("--timeout", timeout), ProgressLine()

    async def act(admin: AdminClient) -> list[dict[str, Any]]:
        found, outcomes = await wanted.read(admin, progress), []
        missing = sorted(wanted.ids - {dead_letter_id for dead_letter_id, _ in found})
        for dead_letter_id in (*missing, *(dead_letter_id for dead_letter_id, _ in found)):
            try:
                reply = await send_request(
                    admin, "replay", {"dead_letter_id": dead_letter_id}, timeout_s=timeout_s, json=False
                )
            except RefusedError as error:
                reply = {"outcome": "refused", "reason": str(error).removeprefix("refused: ")}
            kept = ("outcome", "code", "reason", "command_id", "replay_of")
            outcomes.append(
                {"dead_letter_id": dead_letter_id, **{name: reply[name] for name in kept if reply.get(name)}}
            )
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
    gone_through = all(each["outcome"] not in {"refused", "dead_lettered"} for each in outcomes)
    return ExitCode.DONE if gone_through else ExitCode.REFUSED


@app.command()
def purge(  # noqa: PLR0913  each is a flag
    ids: _Ids = None,
    *,
    code: _Code = None,
    source: _Source = None,
    agent: _Agent = None,
    since: _Since = None,
    until: _Until = None,
    all_: _All = False,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="For the audit.")] = None,
    timeout: _Timeout = "10s",
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Remove dead letters for good. The audit keeps that they were there, and that they were removed.

    \b
    Example:
      aism-engine dead-letters purge --until 30d --reason "too old to matter"
    """  # noqa: D301
    wanted = _meant(_filter(ids, code, source, agent, since, until), all_=all_)
    timeout_s, progress = parse_duration("--timeout", timeout), ProgressLine()

    async def act(admin: AdminClient) -> int:
        found = [dead_letter_id for dead_letter_id, _ in await wanted.read(admin, progress)]
        for start in range(0, len(found), _AT_ONCE):
            payload: dict[str, Any] = {"dead_letter_ids": found[start : start + _AT_ONCE]}
            payload |= {"reason": reason} if reason is not None else {}
            await send_request(admin, "purge", payload, timeout_s=timeout_s, json=json)
            progress.update(f"{start} of {len(found)} purged")
        return len(found)

    try:
        purged = with_admin_client(redis, prefix, act)
    finally:
        progress.clear()
    print_json({"purged": purged}) if json else typer.echo(f"{purged} purged")


async def _all_of(admin: AdminClient, dead_letter_id: str) -> list[DeadLetter]:
    return [letter async for _, letter in admin.dead_letters(dead_letter_id, dead_letter_id)]


def _meant(wanted: Filter, *, all_: bool) -> Filter:
    if wanted.given == all_:
        raise typer.BadParameter("say which: ids, --code, --source, --agent, --since or --until; or --all")
    return wanted


def _described(dead_letter_id: str, letter: DeadLetter) -> dict[str, Any]:
    """Build what programs get: the names are published, and so for ever."""
    return {
        "dead_letter_id": dead_letter_id,
        "buried_at": iso(instant(dead_letter_id)),
        "code": letter.code,
        "reason": letter.reason,
        "source": letter.source,
        "agent_id": letter.agent_id,
        "replay_of": letter.replay_of,
        "size": letter.size,
        "digest": letter.digest,
        "raw": letter.raw.decode(errors="backslashreplace"),
    }
