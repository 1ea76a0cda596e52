"""State machines: which state may follow which, who says so, and why not.

A machine is read once, from TOML, and checked as a whole: `parse` names every problem with its file and line, or gives
a machine in which every state can be reached and can be left. From then on `Machine.check` is the only judge of a
transition, whoever asks for it: agent, operator or engine.

The entries `on_register`, `on_lost`, `on_return` and `on_goodbye` are moves that the engine makes on its own account.
They are no arrows, and `check` is not asked about them: an agent can be lost from any state.
"""

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from msgspec import Struct, ValidationError, convert, field
from msgspec.structs import force_setattr

from aism_engine.errors import ConfigError

PREVIOUS = "previous"  # the value of `on_return` that is a word, and so the one name that no state can have
ANY = "*"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_NAME_RULE = "a letter, then at most 63 letters, digits, `_`, `.` or `-`"


class State(Struct, frozen=True):
    """One state, as it is written: `to` may be `("*",)`, any state of the machine but this one."""

    description: str
    to: tuple[str, ...]


class Refusal(Struct, frozen=True):
    """Why a transition is not allowed, and what would be. `requested` is cut if it is too long to be a name."""

    code: Literal["unknown_state", "not_allowed"]
    message: str
    current: str
    requested: str
    allowed: tuple[str, ...]
    suggestions: tuple[str, ...]


class Machine(Struct, frozen=True, kw_only=True, dict=True):
    """The states of one kind of agent, and the arrows between them.

    `on_register`, `on_lost` and `on_goodbye` are the states the engine moves an agent to; None: it stays where it is.
    `on_unknown` takes in an agent whose state this machine does not know. An `open` machine allows any name at all.
    """

    name: str
    initial: str
    open: bool = False
    on_register: str | None = None
    on_lost: str | None = None
    on_return: str = PREVIOUS
    on_goodbye: str | None = None
    on_unknown: str = ""  # as `initial`
    states: dict[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.on_unknown:
            force_setattr(self, "on_unknown", self.initial)

    def check(self, current: str, target: str) -> Refusal | None:
        """Say why an agent in `current` may not go to `target`; None if it may, or if it is there already.

        Staying is no transition: it is for the caller to see that nothing changes.
        """
        if target in self._arrows.get(current, self._rescue) or target == current:
            return None
        if self.open and _NAME.fullmatch(target):
            return None
        return self._refuse(current, target)

    def allowed(self, current: str) -> tuple[str, ...]:
        """Where `current` leads, in the order of the file; `("*",)`, anywhere, in an open machine.

        From a state that this machine does not know, the one way leads to `on_unknown`.
        """
        return (ANY,) if self.open else self._ways.get(current, (self.on_unknown,))

    @cached_property
    def _ways(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(_targets(name, state.to, self.states)) for name, state in self.states.items()}

    @cached_property
    def _arrows(self) -> dict[str, frozenset[str]]:
        return {name: frozenset(targets) for name, targets in self._ways.items()}

    @cached_property
    def _rescue(self) -> frozenset[str]:
        return frozenset((self.on_unknown,))

    def _refuse(self, current: str, target: str) -> Refusal:
        allowed = self.allowed(current)
        if not _NAME.fullmatch(target):
            requested = target if len(target) <= 64 else f"{target[:64]}…"  # noqa: PLR2004  a name's longest
            message = f"{requested!r} cannot be the name of a state: {_NAME_RULE}"
            return Refusal("unknown_state", message, current, requested, allowed, ())
        if target not in self.states:
            message = f'machine {self.name} has no state "{target}"; its states are: {", ".join(self.states)}'
            suggestions = tuple(f"did you mean {name}" for name in _guess(target, self.states))
            return Refusal("unknown_state", message, current, target, allowed, suggestions)
        path = self._path(current, target)
        message = f"{current} does not lead to {target}; it leads to: {', '.join(allowed)}"
        return Refusal("not_allowed", message, current, target, allowed, (", then ".join(path),) if path else ())

    def _path(self, current: str, target: str) -> tuple[str, ...]:
        """Find a shortest way from `current` to `target`, without `current` itself; empty if there is none."""
        came_from = {current: current}
        queue = [current]
        for state in queue:  # which grows as we go
            new = [follower for follower in self.allowed(state) if follower not in came_from]
            came_from.update(dict.fromkeys(new, state))
            queue += new
        path: list[str] = []
        while target in came_from and target != current:
            path.insert(0, target)
            target = came_from[target]
        return tuple(path)


class Machines(Struct, frozen=True):
    """The machines in use, and which one an agent lives by. One that exists is whole: it names no machine in vain."""

    machines: Mapping[str, Machine]
    default: str
    unregistered: str
    by_type: Mapping[str, str]

    def __post_init__(self) -> None:
        named = {"default": self.default, "unregistered": self.unregistered}
        named |= {f"by_type.{agent_type}": name for agent_type, name in self.by_type.items()}
        problems = [
            f'machines.{key}: no machine "{name}"{_hint(name, self.machines)}'
            for key, name in named.items()
            if name not in self.machines
        ]
        if problems:
            raise ConfigError(problems)

    def for_type(self, agent_type: str | None) -> Machine:
        """Give the machine of a type of agent; None is the type of one that never registered."""
        name = self.unregistered if agent_type is None else self.by_type.get(agent_type, self.default)
        return self.machines[name]


def parse(text: str, source: str) -> Machine:
    """Read a machine from TOML. Raises `ConfigError` with all that is wrong; `source` is the file's name in it."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = found[1] if found else text.rstrip().count("\n") + 1  # it says "at end of document"
        raise ConfigError([f"{source}:{line}: not TOML: {error}"]) from None
    draft = _Draft(text)
    head, states = draft.read(tables)
    if draft.problems:
        raise ConfigError([f"{source}:{line}: {problem}" for line, problem in sorted(draft.problems)])
    return Machine(
        **head, states={name: State(keys.get("description", ""), keys["to"]) for name, keys in states.items()}
    )


_ENTRIES = ("initial", "on_register", "on_lost", "on_return", "on_goodbye", "on_unknown")
_MACHINE_KEYS: Mapping[str, Any] = {"name": str, "open": bool} | dict.fromkeys(_ENTRIES, str)
_STATE_KEYS: Mapping[str, Any] = {"description": str, "to": tuple[str, ...]}

_Table = dict[str, Any]
_Path = tuple[str, ...]


class _Draft:
    """A machine that is being read, and all that is wrong with it, by line. A path names a table, or a key in one."""

    def __init__(self, text: str) -> None:
        self.problems: list[tuple[int, str]] = []
        self._lines = text.split("\n")
        self._where = _locate(text)

    def read(self, tables: _Table) -> tuple[_Table, dict[str, _Table]]:
        """Give the keys of `[machine]` and of each state: those that are known and of the right type."""
        for key in tables.keys() - {"machine", "states"}:
            self._say((key,), "unknown; a machine is written in [machine] and [states.NAME]")
        head = self._table(("machine",), tables.get("machine", {}), _MACHINE_KEYS, ("name", "initial"))
        written = tables.get("states", {})
        if not isinstance(written, dict):
            self._say(("states",), "expected a table [states.NAME] for each state")
            return head, {}
        states = {name: self._table(("states", name), table, _STATE_KEYS, ("to",)) for name, table in written.items()}
        self._check_names(head, states)
        if head.get("open"):
            if states:
                self._say(("states",), "an open machine knows any state, and has none of its own")
            return head, states
        if not states:
            self._say(("machine",), "a machine needs states, or open = true")
        for name, keys in states.items():
            self._check_targets(name, keys.get("to"), states)
        self._check_reach(head, states)
        return head, states

    def _table(self, path: _Path, table: object, known: Mapping[str, Any], required: Sequence[str]) -> _Table:
        if not isinstance(table, dict):
            self._say(path, "expected a table")
            return {}
        for key in required:
            if key not in table:
                self._say(path, f'"{key}" is missing')
        fit: _Table = {}
        for key, value in table.items():
            try:
                fit[key] = convert(value, known[key])
            except KeyError:
                self._say((*path, key), f"unknown key{_hint(key, known)}")
            except ValidationError as error:
                self._say((*path, key), str(error))
        return fit

    def _check_names(self, head: _Table, states: Collection[str]) -> None:
        is_open = head.get("open", False)
        entries: dict[_Path, str] = {("machine", entry): head[entry] for entry in _ENTRIES if entry in head}
        names: dict[_Path, str] = {("states", name): name for name in states}
        names[("machine", "name")] = head.get("name", "x")
        for path, name in (names | entries if is_open else names).items():
            if not _NAME.fullmatch(name):
                self._say(path, f"not a name: {_NAME_RULE}")
        if PREVIOUS in states:
            self._say(("states", PREVIOUS), f'not a name: "{PREVIOUS}" is a word of on_return')
        for path, name in entries.items():
            if not is_open and name not in states and (path[-1], name) != ("on_return", PREVIOUS):
                self._say(path, f'unknown state "{name}"{_hint(name, states)}')

    def _check_targets(self, name: str, to: tuple[str, ...] | None, states: Collection[str]) -> None:
        if to is None:  # missing, or no list: said already
            return
        path = ("states", name, "to")
        for target in dict.fromkeys(to):
            if to.count(target) > 1:
                self._say(path, f'"{target}" stands there twice', near=target)
            if target == name:
                self._say(path, "a state cannot be its own target: to stay is no transition", near=target)
            elif target == ANY:
                if len(to) > 1:
                    self._say(path, f'"{ANY}" means all other states, and stands alone', near=target)
            elif target not in states:
                self._say(path, f'unknown state "{target}"{_hint(target, states)}', near=target)
        if not _targets(name, to, states):
            self._say(path, "a dead end: every state needs a way out")

    def _check_reach(self, head: _Table, states: Mapping[str, _Table]) -> None:
        if head.get("initial") not in states:  # said already; from nowhere nothing can be reached
            return
        reached = dict.fromkeys(head[entry] for entry in _ENTRIES if head.get(entry) in states)
        queue = list(reached)
        for name in queue:  # which grows as we go
            targets = _targets(name, states[name].get("to", ()), states)
            new = dict.fromkeys(target for target in targets if target in states and target not in reached)
            reached |= new
            queue += new
        for name in states.keys() - reached.keys():
            self._say(("states", name), "cannot be reached, neither from initial nor from an on_... entry")

    def _say(self, path: _Path, problem: str, near: str | None = None) -> None:
        """Note a problem at the line of `path`; in a value that spans lines, at the line that has `near` in quotes."""
        depth = {"machine": 1, "states": 2}.get(path[0], 0)
        label = f"[{'.'.join(path[:depth])}] {path[-1]}" if len(path) > depth > 0 else f"[{'.'.join(path)}]"
        known = next(path[:length] for length in range(len(path), -1, -1) if path[:length] in self._where)
        line = self._where[known]
        if near is not None:
            quoted = (f'"{near}"', f"'{near}'")
            after = range(line, len(self._lines) + 1)
            line = next((n for n in after if any(each in self._lines[n - 1] for each in quoted)), line)
        self.problems.append((line, f"{label}: {problem}"))


_LONG_STRING = re.compile(r'"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'')
_HEADER = re.compile(r"\s*\[(.+?)\]\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([^=#\[\]]+?)\s*=")
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")


def _locate(text: str) -> dict[_Path, int]:
    """Find the line of each table and key, which tomllib does not tell: a small search, good for files of people."""
    where: dict[_Path, int] = {(): 1}
    table: _Path = ()
    text = _LONG_STRING.sub(lambda string: "\n" * string[0].count("\n"), text)  # what looks like a key in one is none
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            path = table = _parts(header[1])
        elif key := _KEY.match(line):
            path = table + _parts(key[1])
        else:
            continue
        for length in range(1, len(path) + 1):
            where.setdefault(path[:length], number)
    return where


def _parts(key: str) -> _Path:
    return tuple("".join(part) for part in _PART.findall(key))


def _targets(name: str, to: Iterable[str], states: Iterable[str]) -> list[str]:
    """Give the states that `to` means, in order; `*` is every state but `name`."""
    return [state for state in (states if ANY in to else to) if state != name]


def _guess(name: str, names: Iterable[str]) -> list[str]:
    """Find which of `names` may have been meant."""
    folded = {each.casefold(): each for each in names}
    return [folded[match] for match in get_close_matches(name.casefold(), folded)]


def _hint(name: str, names: Iterable[str]) -> str:
    return "".join(f' (did you mean "{guess}"?)' for guess in _guess(name, names)[:1])
