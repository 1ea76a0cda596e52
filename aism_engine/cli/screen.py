"""The screen of `aism-engine top` and `aism-engine dev`: an overview of a fleet, or one of its agents.

The overview has one section for each problem, with the agents that have it, and one for the agents without a problem.
Sections are cut to fit the height. Keys change the selection, the sort order and the scroll position, which `Screen`
keeps. `Screen` does not write to the terminal.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from rich.text import Text

from aism_engine.cli.agents import AGENT_TABLES, agent_as_json
from aism_engine.cli.commands import command_as_json
from aism_engine.cli.output import field_lines, table_lines
from aism_engine.cli.pending import format_hold, held_as_json
from aism_engine.clock import iso
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.views import STUCK_RULES, AgentView, Overview, Problem
from aism_engine.terminal import printable

Section: TypeAlias = Problem | None
"""The agents with a problem, or those without any."""

_COLOURS: Final[dict[Section, str]] = {
    Problem.LOST: "red",
    Problem.SILENT: "yellow",
    Problem.STUCK: "magenta",
    Problem.DIVERGING: "magenta",
    Problem.WAITING_FOR_HUMAN: "cyan",
    Problem.HELD: "blue",
    None: "green",
}
_COLUMNS: Final = ("agent_id", "type", "state", "since", "open", "why")
_COMMAND_COLUMNS: Final = ("command_id", "agent_id", "type", "status", "accepted_at")
_LEAST_LINES: Final = 3
"""Lines of the smallest section that shows an agent: its title, the agent, and how many more there are."""
_KEYS: Final = "s sort  up/down or j/k select  Enter show agent  ? help  q quit"
_HELP: Final = """\
s           sort each list by the next of: name, time, open commands, type, state
up, k       select the agent above; in an agent, scroll up
down, j     select the agent below; in an agent, scroll down
Enter       show the selected agent
Esc, q      go back, or quit
?           show this help

A list that is longer than the screen ends with the command that prints it as a whole.
The lists are described in docs/operating.md."""


class Row(NamedTuple):
    """An agent in one of the sections."""

    section: Section
    view: AgentView

    @property
    def since_and_why(self) -> tuple[str, str]:
        """When the problem began, in ISO 8601, and its reason.

        Without a problem: when the agent entered its state, and an empty reason.
        """
        agent, why = self.view.agent, ""
        match self.section:
            case Problem.LOST:
                at, why = agent.lost_at, f"was in {agent.lost_from}"
            case Problem.SILENT:
                at = self.view.silent_since or 0.0
            case Problem.HELD:
                at, by = agent.held_at, f" by {agent.held_by}" if agent.held_by else ""
                why = f"{agent.hold}{by}: {agent.hold_reason}".removesuffix(": ")
            case Problem.STUCK | Problem.DIVERGING:
                is_stuck = self.section is Problem.STUCK
                found = [each for rule, each in agent.divergences.items() if (rule in STUCK_RULES) == is_stuck]
                return min(each.since for each in found), "; ".join(each.reason for each in found)
            case _:
                at = agent.since
        return iso(at) if at else "", why

    def as_json(self) -> dict[str, Any]:
        agent, (since, why) = self.view.agent, self.since_and_why
        return {
            "agent_id": agent.agent_id,
            "type": agent.type,
            "state": agent.state,
            "since": since,
            "open": len(self.view.commands) or None,
            "why": why,
        }


_SORTS: Final[dict[str, Callable[[Row], Any] | None]] = {
    "name": None,
    "time": lambda row: row.since_and_why,
    "open commands": lambda row: -len(row.view.commands),
    "type": lambda row: row.view.agent.type,
    "state": lambda row: row.view.agent.state,
}
"""Sort keys for the agents of a section, by name. None keeps the order of the overview, which is sorted by id."""


class Screen:
    """Draws an overview, one agent, or the help, as lines for a terminal of a given size.

    `head` returns lines to draw above the overview. `slowest` limits the list of the commands that have been open
    longest.
    """

    def __init__(self, head: Callable[[], Sequence[str]], slowest: int) -> None:
        self._head = head
        self._slowest = slowest
        self.overview: Overview | None = None
        """None until a fleet was read."""
        self._counts: Mapping[str, Any] = {}
        self._sections: dict[Section, list[Row]] = {}
        self._sort = next(iter(_SORTS))
        self._selected = 0
        self._scrolled = 0
        self._shows_help = False
        self.agent_id: str | None = None
        """The agent that is shown instead of the overview."""
        self.agent: AgentView | None = None
        self.outage = ""

    # --- data and keys ------------------------------------------------------------------------------------------------

    async def read(self, admin: AdminClient) -> None:
        """Read what is shown. Raises ServerUnavailableError."""
        if (agent_id := self.agent_id) is None:
            self.update(await admin.overview())
        else:
            view = await admin.agent(agent_id)
            if agent_id == self.agent_id:
                self.agent = view
        self.outage = ""

    def update(self, overview: Overview) -> None:
        """Show a new overview. The same agent stays selected."""
        before, self.overview, self._counts = self._selected_row, overview, overview.counts
        sections: dict[Section, list[Row]] = {
            problem: [Row(problem, view) for view in views] for problem, views in overview.problems.items()
        }
        sections[None] = [Row(None, view) for view in overview.agents if not view.problems]
        key = _SORTS[self._sort]
        self._sections = {name: sorted(rows, key=key) if key else rows for name, rows in sections.items() if rows}
        if before is not None:
            same = (before.section, before.view.agent.agent_id)
            places = (at for at, row in enumerate(self._rows) if (row.section, row.view.agent.agent_id) == same)
            self._selected = next(places, self._selected)
        self._selected = max(0, min(self._selected, len(self._rows) - 1))

    def press(self, key: str) -> bool:
        """React to a key or an event. Return False if it ends the program."""
        step = {"up": -1, "down": 1}.get(key, 0)
        if key == "quit":
            return False
        if key in {"q", "escape"}:
            goes_back = self._shows_help or self.agent_id is not None
            self.agent_id, self._shows_help = None, False
            return goes_back
        if key == "?":
            self._shows_help = not self._shows_help
        elif self.agent_id is not None:
            self._scrolled = max(0, self._scrolled + step)
        elif key == "enter" and (row := self._selected_row) is not None:
            self.agent_id, self.agent, self._scrolled = row.view.agent.agent_id, row.view, 0
        elif key == "s" and self.overview is not None:
            names = list(_SORTS)
            self._sort = names[(names.index(self._sort) + 1) % len(names)]
            self.update(self.overview)
        else:
            self._selected = max(0, min(self._selected + step, len(self._rows) - 1))
        return True

    @property
    def _rows(self) -> list[Row]:
        return [row for rows in self._sections.values() for row in rows]

    @property
    def _selected_row(self) -> Row | None:
        return self._rows[self._selected] if self._rows else None

    # --- drawing ------------------------------------------------------------------------------------------------------

    def draw(self, width: int | None, height: int, *, keys: bool) -> list[Text]:
        """Return at most `height` lines, each cut to `width` if given. `keys` adds the selection and the key help."""
        room = height - keys
        if self._shows_help:
            lines = [Text(line) for line in _HELP.splitlines()]
        elif self.agent_id is not None:
            lines = self._draw_agent(width, room)
        else:
            head = self._draw_head()[: room // 2]
            lines = [*head, *self._draw_sections(room - len(head), keys=keys)]
        if self.outage:
            lines.insert(0, Text(printable(self.outage), style="bold red"))
        lines = lines[:room]
        if keys:
            lines += [Text()] * (room - len(lines)) + [Text(f"{_KEYS}  sorted by {self._sort}", style="dim")]
        for line in lines:
            if width is not None:
                line.truncate(width, overflow="ellipsis")
        return lines

    def _draw_agent(self, width: int | None, height: int) -> list[Text]:
        if self.agent is None:
            return [Text(printable(f"agent {self.agent_id} is no longer known"), style="red")]
        lines = field_lines(agent_as_json(self.agent), AGENT_TABLES)
        if width is not None:
            lines = [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]
        self._scrolled = min(self._scrolled, max(0, len(lines) - height))
        return [Text(line) for line in lines[self._scrolled :]]

    def _draw_head(self) -> list[Text]:
        overview = self.overview
        lines = [Text(printable(line)) for line in self._head()]
        if overview is None:
            return [*lines, Text("reading the fleet")]
        counts = self._counts
        total = Text.assemble((f"{len(overview.agents)} agents", "bold"), f"  {_format_counts(counts['by_liveness'])}")
        if absence := overview.lease.absence:
            total.append(f"  {absence}", style="red")
        lines.append(total)
        if overview.fleet_hold.hold:
            lines.append(Text(printable(format_hold("the fleet", held_as_json(overview.fleet_hold))), style="yellow"))
        for name in ("by_state", "by_type", "queues", "commands", "rates"):
            label = f"{name.removeprefix('by_'):<10}"
            lines.append(Text.assemble((label, "dim"), printable(_format_counts(counts[name]) or "-")))
        return lines

    def _draw_sections(self, room: int, *, keys: bool) -> list[Text]:
        """Draw the agents with a problem, the other agents where lines are left, and the slowest commands."""
        overview, sections = self.overview, self._sections
        commands = [] if overview is None else [command_as_json(each) for each in overview.slowest(self._slowest)]
        command_lines = ["", *table_lines(commands, _COMMAND_COLUMNS)] if commands else []
        selected = self._selected_row
        needs = {section: len(rows) + 1 for section, rows in sections.items()}
        if None in needs:
            # Agents without a problem get the lines that are left. If one of them is selected, they also get a share.
            needs[None] = _LEAST_LINES if selected is not None and selected.section is None else 0
        first = list(needs).index(selected.section) if selected else 0
        *budgets, for_commands = _share(room - 1, [*needs.values(), len(command_lines)], first)
        if None in sections:
            budgets[-1] += room - 1 - sum(budgets) - for_commands
        visible = [_visible(rows, lines, selected) for rows, lines in zip(sections.values(), budgets, strict=True)]
        heading, *texts = table_lines([row.as_json() for rows in visible for row in rows], _COLUMNS)
        lines = [Text(heading, style="dim")] if texts else []
        for (section, rows), shown, budget in zip(sections.items(), visible, budgets, strict=True):
            colour = _COLOURS[section]
            title = (section or "no problem").replace("_", " ").upper()
            lines += [Text(f"{title}: {len(rows)}", style=f"bold {colour}")] if budget > 0 else []
            for row in shown:
                style = "reverse" if keys and row is selected else colour if section else ""
                lines.append(Text(texts.pop(0), style=style))
            if 1 < budget <= len(rows):
                command = "aism-engine agents list" + (f" --problem {section}" if section else "")
                lines.append(Text(f"… and {len(rows) - len(shown)} more: {command}", style=colour))
        gap = [Text()] * (room - len(lines) - for_commands if keys else 0)  # keeps the commands at the bottom
        return [*lines, *gap, *(Text(line) for line in command_lines[:for_commands])]


def _visible(rows: Sequence[Row], lines: int, selected: Row | None) -> Sequence[Row]:
    """Return the rows of a section that fit into `lines` lines.

    These are the first rows. If `selected` is a later row, they are the rows up to `selected`. The title takes one of
    the lines. If rows are left out, the line that counts them takes another.
    """
    count = max(0, lines - (1 if len(rows) < lines else 2))
    at = next((at for at, row in enumerate(rows) if row is selected), 0)
    start = max(0, at - count + 1)
    return rows[start : start + count]


def _format_counts(counts: dict[str, int] | dict[str, float]) -> str:
    return "  ".join(f"{name or '-'} {count}" for name, count in counts.items())


def _share(room: int, needs: Sequence[int], first: int) -> list[int]:
    """Share `room` lines evenly among lists that need `needs` lines; none gets more than it needs.

    The list at index `first` gets up to `_LEAST_LINES` before the others get any.
    """
    given = [0] * len(needs)
    given[first] = max(0, min(needs[first], _LEAST_LINES, room))
    room -= given[first]
    while room > 0 and given != list(needs):
        for at, need in enumerate(needs):
            if room > 0 and given[at] < need:
                given[at] += 1
                room -= 1
    return given
