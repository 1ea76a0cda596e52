"""`aism-engine history`: the recorded facts about an agent or a command, and an agent at an instant."""

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from msgspec.structs import asdict

from aism_engine import values
from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions, call_fleet
from aism_engine.cli.exit_codes import FailedError
from aism_engine.cli.output import Output, ProgressLine, print_notice
from aism_engine.cli.tail import format_item
from aism_engine.clock import from_iso, iso
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.archive.directory import read_identity
from aism_engine.ops.audit_log import BEGINNING, AuditLine, AuditTail, Cursor, EntryKey, entry_day, entry_time
from aism_engine.ops.reconnect import Reconnect
from aism_engine.ops.timeline import AgentAtInstant, Timeline

_FOLLOW_INTERVAL_S: Final = 0.2
_SLACK_S: Final = 60.0
"""A fact may be written this long after it happened: a commit takes time, and is retried after an outage."""
_COMMAND_COLUMNS: Final = ("command_id", "type", "status", "began", "basis")
"""`basis` is `recorded`, `inferred` or `unknown`: whether missing facts could change the answer."""


class _Period(NamedTuple):
    since: float = float("-inf")
    until: float = float("inf")

    def contains(self, at: float) -> bool:
        return self.since <= at <= self.until


def history(
    name: Annotated[
        str, typer.Argument(metavar="AGENT|COMMAND", parser=values.identifier, help="Id of an agent or of a command.")
    ],
    *,
    since: Annotated[float | None, options.time_or_age("Only facts since this time: ISO, or an age like 2h.")] = None,
    until: Annotated[float | None, options.time_or_age("Only facts until this ISO time, or an age like 1h.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Continue with new facts, until Ctrl-C.")] = False,
    at: Annotated[
        float | None, options.time_or_age("Show the agent as it was at this time: ISO, or an age like 2h.")
    ] = None,
    archive: Annotated[
        str | None, typer.Option("--archive", metavar="DIR", help="Archive to read. Default: that of the settings.")
    ] = None,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """Show what is recorded about an agent or a command.

    Prints one fact a line. With --at, prints the agent as it was at that instant. The archive and the audit in Redis
    are read as one log. Where entries are missing, a line says so. With --at, the basis `inferred` means that missing
    entries could change the answer.

    \b
    Example:
      aism-engine history architect-a1b2c3 --since 2h
      aism-engine history architect-a1b2c3 --at 2026-11-23T02:00:00Z --archive /var/lib/aism/archive
    """
    if at is not None and (since is not None or until is not None or follow):
        raise typer.BadParameter("--at is a single instant: it cannot be combined with --since, --until or --follow")
    if follow and until is not None:
        raise typer.BadParameter("--follow has no end: it cannot be combined with --until")
    settings = fleet.settings({"archive.directory": archive})
    server, path = settings.redis, settings.archive.directory
    period = _Period(float("-inf") if since is None else since, float("inf") if until is None else until)
    with ProgressLine() as progress, suppress(KeyboardInterrupt):  # Ctrl-C is the regular end of --follow
        source = _Source(name, _open_archive(path, server.prefix, progress) if path else None, progress)
        if at is not None:
            agent = call_fleet(server, lambda admin: _reconstruct(admin, source, at))
            progress.clear()
            _print_agent(agent, output)
            return
        printed = call_fleet(server, lambda admin: _print_facts(admin, source, period, output, follow=follow))
        if not printed and not follow:
            raise FailedError(f"no facts about {name} are recorded in that period; {_retention(source.first)}")


# --- reading ----------------------------------------------------------------------------------------------------------


class _Source:
    """Reads the archive and the audit as one log. Yields lines that contain `name`, and notes of missing entries."""

    def __init__(self, name: str, archive: ArchiveReader | None, progress: ProgressLine) -> None:
        self.name = name
        self.first = ""
        """Id of the oldest entry that is kept."""
        self.progress = progress
        self._archive = archive

    async def lines(self, admin: AdminClient, period: _Period, *, follow: bool = False) -> AsyncGenerator[AuditLine]:
        cursor, archive = Cursor(), self._archive
        if archive is not None:
            days = (_day(period.since - _SLACK_S, ""), _day(period.until + 86400, "9999-12-31"))
            for line in archive.lines(self.name, *days):
                yield line
            cursor, self.first = archive.cursor, archive.first
        if cursor.id == BEGINNING and period.since > _SLACK_S:
            cursor = Cursor(f"{(period.since - _SLACK_S) * 1000:.0f}-0")
        tail, needle = AuditTail(admin.audit, cursor, self._find_known), self.name.encode()
        reconnect = Reconnect(print_notice)
        while True:
            page = await reconnect.call(tail.read)
            self.first = self.first or page.first
            self.progress.update(f"the audit, {page.behind or 0} entries left")
            for line in page.lines:
                if line.gap or line.rollback or needle in bytes(line.facts):
                    yield line
            if page.lines and entry_time(tail.cursor.id) > period.until + _SLACK_S:
                return
            if not page.more:
                if not follow:
                    return
                await asyncio.sleep(_FOLLOW_INTERVAL_S)

    async def _find_known(self, entries: Collection[EntryKey]) -> set[EntryKey]:
        """Return which of these entries were read before: those in the archive. Without an archive, none are."""
        return self._archive.known(entries) if self._archive is not None else set()


def _open_archive(path: str, prefix: str, progress: ProgressLine) -> ArchiveReader:
    folder = Path(path)
    try:
        read_identity(folder, prefix)
    except OSError as error:
        raise FailedError(
            f"{path} is not an archive: {error.strerror}; give the directory of one with --archive"
        ) from None
    return ArchiveReader(folder, progress.update)


def _day(at: float, default: str) -> str:
    return entry_day(f"{at * 1000:.0f}-0") if 0 <= at < float("inf") else default


def _retention(first: str) -> str:
    return f"entries are kept since {iso(entry_time(first))}" if first else "no entries are kept"


# --- facts ------------------------------------------------------------------------------------------------------------


async def _print_facts(admin: AdminClient, source: _Source, period: _Period, output: Output, *, follow: bool) -> int:
    """Print the facts, and return how many."""
    printed = 0
    async with aclosing(source.lines(admin, period, follow=follow)) as lines:
        async for line in lines:
            for item in _select(line, source.name, period):
                source.progress.clear()
                printed += "event" in item
                output.print(item, format_item(item, "%Y-%m-%d %H:%M:%S.%f"))
    return printed


def _select(line: AuditLine, name: str, period: _Period) -> list[dict[str, Any]]:
    """Return the facts of a line that name this id, each with the id of its entry, or a note of missing entries."""
    if note := line.gap or line.rollback:
        return line.items() if period.contains(entry_time(note.before)) else []
    return [
        {"entry": line.id, **fact}
        for fact in line.decoded_facts()
        if name in {fact.get("agent_id"), fact.get("command_id")} and period.contains(_time_of(fact))
    ]


def _time_of(fact: dict[str, Any]) -> float:
    try:
        return from_iso(fact["at"])
    except (KeyError, TypeError, ValueError):
        return float("nan")  # not written by an engine; no period contains it


# --- an instant -------------------------------------------------------------------------------------------------------


async def _reconstruct(admin: AdminClient, source: _Source, at: float) -> AgentAtInstant:
    """Reconstruct the agent at an instant.

    Reads the current record before the facts, so that the facts include every change made after that.
    """
    timeline, now = Timeline(source.name), await admin.agent(source.name)
    async with aclosing(source.lines(admin, _Period())) as lines:
        async for line in lines:
            timeline.add(line)
    agent = timeline.reconstruct(at, source.first, now)
    if agent.basis == "unknown" and not agent.open_commands:
        raise FailedError(
            f"no facts about an agent {source.name} are recorded for {agent.at}; {_retention(source.first)}"
        )
    return agent


def _print_agent(agent: AgentAtInstant, output: Output) -> None:
    basis = "" if agent.basis == "recorded" else f" ({agent.basis})"
    state = agent.state or ("not in the fleet" if agent.presence == "not_in_fleet" else "unknown")
    commands = [{**asdict(command), "began": command.since} for command in agent.open_commands]
    changed = {"state": f"{state}{basis}", "open_commands": commands}
    output.print_fields(agent, {"open_commands": _COMMAND_COLUMNS}, changed=changed)
