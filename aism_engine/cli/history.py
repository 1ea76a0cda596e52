"""`aism-engine history`: what has become of an agent or a command, and how an agent stood at an instant."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import with_admin_client
from aism_engine.cli.exit_codes import RefusedError
from aism_engine.cli.options import parse_time_or_age
from aism_engine.cli.output import ProgressLine, print_fields, print_json, print_table
from aism_engine.cli.tail import described
from aism_engine.clock import from_iso, iso
from aism_engine.config import load_settings
from aism_engine.domain.protocol.names import is_identifier
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.archive import directory
from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.audit_log import BEGINNING, Cursor, Line, day, instant
from aism_engine.ops.audit_stream import Tail
from aism_engine.ops.timeline import Present, Standing, Timeline

_LOOK_EVERY_S: Final = 0.2
_SLACK_S: Final = 60.0
"""A fact is written a little after it was so: by the time of one commit, and its repetitions after an outage."""


class _Span(NamedTuple):
    since: float = float("-inf")
    until: float = float("inf")

    def holds(self, at: float) -> bool:
        return self.since <= at <= self.until


def history(  # noqa: PLR0913  each is a flag
    name: Annotated[str, typer.Argument(metavar="AGENT|COMMAND", show_default=False, help="The id of either.")],
    *,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From then on: an ISO time, or 10m, 2h ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Up to then.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens, until Ctrl-C.")] = False,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="The agent's state and open commands at that instant.")
    ] = None,
    archive: Annotated[
        str | None, typer.Option("--archive", metavar="DIR", help="An archive to read with the audit.")
    ] = None,
    config: options.Config = None,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """Tell what has become of an agent or a command: each fact on a line.

    The archive (of --archive, or the setting archive.directory) and the audit in Redis are read as one. Where
    something is missing in between, a line says so.

    \b
    Example:
      aism-engine history architect-a1b2c3 --since 2h
      aism-engine history architect-a1b2c3 --at 2026-11-23T02:00:00Z --archive /var/lib/aism/archive
    """  # noqa: D301  \b keeps the lines of the example apart
    if not is_identifier(name):
        raise typer.BadParameter(f"AGENT|COMMAND: {name!r} is no id")
    now = time.time()
    given = {"--since": since, "--until": until, "--at": at}
    times = {option: parse_time_or_age(option, text, now) for option, text in given.items() if text is not None}
    if at is not None and (since is not None or until is not None or follow):
        raise typer.BadParameter("--at stands alone: it is one instant")
    if follow and until is not None:
        raise typer.BadParameter("--follow goes on, --until ends: give one of them")
    flags = {"redis.url": redis, "redis.prefix": prefix, "archive.directory": archive}
    settings = load_settings(config, overrides=flags).settings
    server, path = settings.redis, settings.archive.directory
    progress = ProgressLine()
    source = _Source(name, _reader(path, server.prefix, progress) if path else None, progress)
    try:
        if at is not None:
            standing = with_admin_client(server.url, server.prefix, lambda admin: _stood(admin, source, times["--at"]))
            progress.clear()
            _show(standing, json=json)
            return
        span = _Span(times.get("--since", float("-inf")), times.get("--until", float("inf")))
        told = with_admin_client(
            server.url, server.prefix, lambda admin: _tell(admin, source, span, follow=follow, json=json)
        )
    except KeyboardInterrupt:  # the way to end it
        return
    finally:
        progress.clear()
    if not told and not follow:
        kept = f"it is kept since {iso(instant(source.first))}" if source.first else "nothing is kept"
        raise RefusedError(f"nothing is told of {name} there; {kept}")


# --- reading ----------------------------------------------------------------------------------------------------------


class _Source:
    """The archive and the audit, as one log, narrowed to the lines that name an id, or tell of something missing."""

    def __init__(self, name: str, reader: ArchiveReader | None, progress: ProgressLine) -> None:
        self.name = name
        self.first = ""
        """The oldest entry that is kept."""
        self._reader = reader
        self.progress = progress

    async def lines(self, admin: AdminClient, span: _Span, *, follow: bool = False) -> AsyncGenerator[Line]:
        cursor, reader = Cursor(), self._reader
        if reader is not None:
            days = (_day(span.since - _SLACK_S, ""), _day(span.until + 86400, "9999-12-31"))
            for line in reader.lines(self.name, *days):
                yield line
            cursor, self.first = reader.cursor, reader.first
        if cursor.id == BEGINNING and span.since > _SLACK_S:
            cursor = Cursor(f"{(span.since - _SLACK_S) * 1000:.0f}-0")
        tail, needle = Tail(admin.history, cursor, self._known), self.name.encode()
        while True:
            reading = await tail.read()
            self.first = self.first or reading.first
            self.progress.update(f"the audit, {reading.behind or 0} entries left")
            for line in reading.lines:
                if line.gap or line.rewound or needle in bytes(line.facts):
                    yield line
            if reading.lines and instant(tail.cursor.id) > span.until + _SLACK_S:
                return
            if not reading.more:
                if not follow:
                    return
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _known(self, entries: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        return self._reader.known(entries) if self._reader is not None else set()


def _reader(path: str, prefix: str, progress: ProgressLine) -> ArchiveReader:
    folder_path = Path(path)
    try:
        found = directory.identity(folder_path)
    except OSError as error:
        raise RefusedError(f"there is no archive in {path}: {error.strerror}") from None
    if found.prefix != prefix:
        raise RefusedError(f"{path} is the archive of the fleet {found.prefix!r}, not of {prefix!r}: give its --prefix")
    return ArchiveReader(folder_path, progress.update)


def _day(at: float, otherwise: str) -> str:
    return day(f"{at * 1000:.0f}-0") if 0 <= at < float("inf") else otherwise


# --- facts ------------------------------------------------------------------------------------------------------------


async def _tell(admin: AdminClient, source: _Source, span: _Span, *, follow: bool, json: bool) -> int:
    """Print what is told, and count it."""
    told = 0
    async with aclosing(source.lines(admin, span, follow=follow)) as lines:
        async for line in lines:
            for fact in _told(line, source.name, span):
                source.progress.clear()
                told += "event" in fact
                print_json(fact) if json else typer.echo(_written(fact))
    return told


def _told(line: Line, name: str, span: _Span) -> list[dict[str, Any]]:
    """Pick what is to be told of a line: the facts about this id, each with the entry that it stands in."""
    if line.gap is not None:
        return [{"gap": line.gap}] if span.holds(instant(line.gap.before)) else []
    if line.rewound is not None:
        return [{"rewound": line.rewound}] if span.holds(instant(line.rewound.before)) else []
    return [
        {"entry": line.id, **fact}
        for fact in line.decoded()
        if name in {fact.get("agent_id"), fact.get("command_id")} and span.holds(_at(fact))
    ]


def _at(fact: dict[str, Any]) -> float:
    try:
        return from_iso(fact["at"])
    except (KeyError, TypeError, ValueError):
        return float("nan")  # it is none of ours, and in no span


def _written(fact: dict[str, Any]) -> str:
    if gap := fact.get("gap"):
        lost = "an unknown number of" if gap.entries is None else gap.entries
        return f"--- {lost} entries are missing between {iso(instant(gap.after))} and {iso(instant(gap.before))} ---"
    if rewound := fact.get("rewound"):
        since = iso(instant(rewound.after))
        return f"--- the server went back to {since}: what is told above of later was undone ---"
    when = datetime.fromtimestamp(_at(fact)).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"{when}  {described({name: value for name, value in fact.items() if name not in {'entry', 'at'}})}"


# --- an instant -------------------------------------------------------------------------------------------------------


async def _stood(admin: AdminClient, source: _Source, at: float) -> Standing:
    """Replay all that is kept. What is so now is read first: what changes meanwhile is then among the facts."""
    present, timeline = None, Timeline(source.name)
    if (seen := await admin.agent(source.name)) is not None:
        commands = [(each.command_id, each.type, each.status.value, each.accepted_at) for each in seen.commands]
        present = Present(state=seen.agent.state, since=seen.agent.since, type=seen.agent.type, commands=commands)
    async with aclosing(source.lines(admin, _Span())) as lines:
        async for line in lines:
            timeline.add(line)
    standing = timeline.standing(at, source.first, present)
    if standing.basis == "unknown" and not standing.open_commands:
        kept = f"it is kept since {standing.recorded_since}" if standing.recorded_since else "nothing is kept"
        raise RefusedError(f"nothing is told of an agent {source.name} at {standing.at}; {kept}")
    return standing


def _show(standing: Standing, *, json: bool) -> None:
    if json:
        print_json(standing)
        return
    sure = "" if standing.basis == "recorded" else f" ({standing.basis})"
    state = standing.state or ("not in the fleet" if standing.presence == "absent" else "unknown")
    fields: list[tuple[str, object]] = [
        ("agent", standing.agent_id),
        ("at", standing.at),
        ("state", f"{state}{sure}"),
        ("since", standing.since),
        ("type", standing.type),
        ("presence", standing.presence),
        ("open", len(standing.open_commands)),
        ("kept since", standing.recorded_since),
        *(("note", note) for note in standing.notes),
    ]
    print_fields(fields)
    if standing.open_commands:
        typer.echo()
        rows = ((each.command_id, each.type, each.status, each.since, each.basis) for each in standing.open_commands)
        print_table(("COMMAND", "TYPE", "STATUS", "SINCE", "BASIS"), rows)
