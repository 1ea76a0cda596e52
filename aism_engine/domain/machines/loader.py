"""How a machine is written: TOML in, checked machines out, and every mistake by file and line.

A machine may extend another: it has all its states and entries, but for those that it writes itself, key by key. What
is checked is the machine that comes of it.
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any, Final, get_args

from msgspec import ValidationError, convert

from aism_engine.domain.effects import Actor
from aism_engine.domain.machines.machine import (
    ANY,
    NAME_RULE,
    PREVIOUS,
    STATE_NAME,
    Kind,
    Machine,
    State,
    Transition,
    hint,
    targets,
)
from aism_engine.errors import ConfigError

ENTRIES: Final = ("initial", "on_register", "on_lost", "on_return", "on_goodbye", "on_unknown")
MACHINE_KEYS: Final[Mapping[str, Any]] = {
    "name": str,
    "version": int,
    "extends": str,
    "open": bool,
    **dict.fromkeys(ENTRIES, str),
}
STATE_KEYS: Final[Mapping[str, Any]] = {
    **{name: kind for name, kind in State.__annotations__.items() if name != "transitions"},
    "transitions": dict[str, dict[str, Any]],
}
TRANSITION_KEYS: Final[Mapping[str, Any]] = {"requires": dict[str, str], "by": tuple[str, ...]}

_MOST: Final = 1e9
"""Of anything that is counted, or lasts: what is more is a slip of the hand."""

_Table = dict[str, Any]
_Path = tuple[str, ...]


def parse(text: str, source: str) -> Machine:
    """Read one machine that extends no other. Raises `ConfigError` with all that is wrong; `source` names the file."""
    (machine,) = parse_all({source: text}).values()
    return machine


def parse_all(texts: Mapping[str, str]) -> dict[str, Machine]:
    """Read machines, by the names of their files. Raises `ConfigError` with all that is wrong with any of them."""
    machines, problems = read_all(texts)
    if problems:
        raise ConfigError(problems)
    return {machine.name: machine for machine in machines.values()}


def read_all(texts: Mapping[str, str]) -> tuple[dict[str, Machine], list[str]]:
    """Read machines as `parse_all` does: those that are good, by their files, and what is wrong with the others."""
    problems: list[str] = []
    files: dict[str, _File] = {}
    for source, text in texts.items():
        try:
            file = _File(text, source)
        except ConfigError as error:
            problems += error.problems
            continue
        if file.name in files:
            file.say(("machine", "name"), f"there is a machine {file.name} already, in {files[file.name].source}")
            problems += file.told()
        else:
            files[file.name] = file
    built = {file.source: _machine(file, files) for file in files.values()}
    problems += chain.from_iterable(file.told() for file in files.values())
    return {source: machine for source, machine in built.items() if machine is not None}, problems


def _machine(file: "_File", files: Mapping[str, "_File"]) -> Machine | None:
    """Build a machine from its file and those that it extends; none where something is wrong, which its file notes."""
    head, states, line = file.head, file.states, [file]
    while parent := line[-1].extends:
        if parent not in files or files[parent] in line:
            if parent not in files and line[-1] is file:
                file.say(("machine", "extends"), f'no machine "{parent}"{hint(parent, files)}')
            elif parent == file.name:
                way = " extends ".join(each.name for each in [*line, file])
                file.say(("machine", "extends"), f"a machine cannot extend itself: {way}")
            return None
        ancestor = files[parent]
        line.append(ancestor)
        head = {**ancestor.head, **head}
        states = {
            name: _extended(ancestor.states.get(name, {}), states.get(name, {}))
            for name in {**ancestor.states, **states}
        }
    file.check(head, states)
    if any(each.problems for each in line):
        return None
    return Machine(
        **{**head, "name": file.name, "extends": file.extends},
        states={
            name: State(
                **{key: value for key, value in keys.items() if key != "transitions"},
                transitions={
                    target: convert(transition, Transition)
                    for target, transition in keys.get("transitions", {}).items()
                },
            )
            for name, keys in states.items()
        },
    )


def _extended(inherited: "_Table", written: "_Table") -> "_Table":
    """Merge the keys of a state into those that it inherits, also within each transition.

    An inherited transition to a state that `to` no longer names is dropped.
    """
    kept, anew, ways = inherited.get("transitions", {}), written.get("transitions"), written.get("to", ["*"])
    if anew == {}:
        kept = {}
    elif "*" not in ways:
        kept = {target: transition for target, transition in kept.items() if target in ways}
    anew = anew or {}
    transitions = {target: {**kept.get(target, {}), **anew.get(target, {})} for target in {**kept, **anew}}
    return {**inherited, **written, "transitions": transitions}


class _File:
    """A machine that is being read, and all that is wrong with it, by line. A path names a table, or a key in one."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.problems: list[tuple[int, str]] = []
        self._lines = text.split("\n")
        self._where = _locate(text)
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"at line (\d+)", str(error))
            line = found[1] if found else text.rstrip().count("\n") + 1  # it says "at end of document"
            raise ConfigError([f"{source}:{line}: not TOML: {error}"]) from None
        self.head, self.states = self._read(tables)
        self.name = self.head.get("name", source)
        self.extends = self.head.get("extends", "")

    def told(self) -> list[str]:
        return [f"{self.source}:{line}: {problem}" for line, problem in sorted(self.problems)]

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, tables: _Table) -> tuple[_Table, dict[str, _Table]]:
        """Give the keys of `[machine]` and of each state: those that are known and of the right type."""
        for key in tables.keys() - {"machine", "states"}:
            self.say((key,), "unknown; a machine is written in [machine] and [states.NAME]")
        head = self._table(("machine",), tables.get("machine", {}), MACHINE_KEYS)
        if "name" not in head and not self._told(("machine", "name")):
            self.say(("machine",), '"name" is missing')
        written = tables.get("states", {})
        if not isinstance(written, dict):
            self.say(("states",), "expected a table [states.NAME] for each state")
            return head, {}
        states = {}
        for name, table in written.items():
            states[name] = self._table(("states", name), table, STATE_KEYS)
            for target, transition in states[name].get("transitions", {}).items():
                self._read_transition(("states", name, "transitions", target), transition)
        return head, states

    def _table(self, path: _Path, table: object, known: Mapping[str, Any]) -> _Table:
        if not isinstance(table, dict):
            self.say(path, "expected a table")
            return {}
        fit: _Table = {}
        for key, value in table.items():
            try:
                fit[key] = convert(value, known[key])
            except KeyError:
                self.say((*path, key), f"unknown key{hint(key, known)}")
            except ValidationError as error:
                self.say((*path, key), str(error))
        return fit

    def _read_transition(self, path: _Path, transition: _Table) -> None:
        found = self._table(path, transition, TRANSITION_KEYS)
        for key, allowed in (("requires", get_args(Kind)), ("by", get_args(Actor))):
            values = found.get(key, ())
            for value in values.values() if isinstance(values, dict) else values:
                if value not in allowed:
                    self.say((*path, key), f'unknown "{value}"{hint(value, allowed)}; there are: {", ".join(allowed)}')
        if "by" in found and not found["by"]:
            self.say((*path, "by"), "a transition that nobody may take is none")

    # --- checking ---------------------------------------------------------------------------------------------------

    def check(self, head: _Table, states: Mapping[str, _Table]) -> None:
        """Check the machine that comes of this file and those that it extends."""
        if "initial" not in head and not self._told(("machine", "initial")):
            self.say(("machine",), '"initial" is missing')
        if head.get("version", 1) < 1:
            self.say(("machine", "version"), "versions are counted from 1")
        self._check_names(head, states)
        if head.get("open"):
            if states:
                self.say(("states",), "an open machine knows any state, and has none of its own")
            return
        if not states:
            self.say(("machine",), "a machine needs states, or open = true")
        for name, keys in states.items():
            self._check_targets(name, keys, states)
            self._check_stay(name, keys, states)
        self._check_reach(head, states)
        for entry in ENTRIES:
            if states.get(head.get(entry, ""), {}).get("max_agents"):
                self.say(("machine", entry), f'"{head[entry]}" has max_agents: the engine could not keep to it here')

    def _check_names(self, head: _Table, states: Collection[str]) -> None:
        is_open = head.get("open", False)
        entries: dict[_Path, str] = {("machine", entry): head[entry] for entry in ENTRIES if entry in head}
        names: dict[_Path, str] = {("states", name): name for name in states}
        names[("machine", "name")] = head.get("name", "x")
        for path, name in (names | entries if is_open else names).items():
            if not STATE_NAME.fullmatch(name):
                self.say(path, f"not a name: {NAME_RULE}")
        if PREVIOUS in states:
            self.say(("states", PREVIOUS), f'not a name: "{PREVIOUS}" is a word of on_return')
        for path, name in entries.items():
            if not is_open and name not in states and (path[-1], name) != ("on_return", PREVIOUS):
                self.say(path, f'unknown state "{name}"{hint(name, states)}')

    def _check_targets(self, name: str, keys: _Table, states: Collection[str]) -> None:
        path, to = ("states", name, "to"), keys.get("to")
        if to is None:
            if not keys.get("final") and not self._told(path):
                self.say(("states", name), '"to" is missing')
            return
        for target in dict.fromkeys(to):
            if to.count(target) > 1:
                self.say(path, f'"{target}" stands there twice', near=target)
            if (problem := _wrong_target(name, target, to, states)) is not None:
                self.say(path, problem, near=target)
        ways = targets(name, to, states)
        if not ways and not keys.get("final"):
            self.say(path, "a dead end: every state needs a way out, or final = true")
        for target in keys.get("transitions", {}):
            if target not in ways:
                self.say(
                    ("states", name, "transitions", target), f'{name} does not lead to "{target}"{hint(target, ways)}'
                )

    def _check_stay(self, name: str, keys: _Table, states: Collection[str]) -> None:
        path = ("states", name)
        for key in ("min_stay", "max_stay", "cooldown", "max_agents"):
            if key in keys and not 0 <= keys[key] <= _MOST:
                self.say((*path, key), f"expected 0, for none, to {_MOST:g}")
        longest, after = keys.get("max_stay", 0), keys.get("after_max_stay")
        if longest and longest < keys.get("min_stay", 0):
            self.say((*path, "max_stay"), "less than min_stay")
        if not after:
            return
        if not longest:
            self.say((*path, "after_max_stay"), "there is no max_stay")
        if after not in (ways := targets(name, keys.get("to", ()), states)):
            self.say((*path, "after_max_stay"), f'{name} does not lead to "{after}"{hint(after, ways)}')
        transition = keys.get("transitions", {}).get(after, {})
        if "engine" not in transition.get("by", ("engine",)):
            self.say((*path, "after_max_stay"), f'the engine may not take the transition to "{after}": see its "by"')
        if transition.get("requires"):
            self.say(
                (*path, "after_max_stay"), f'the transition to "{after}" requires a context, and the engine has none'
            )

    def _check_reach(self, head: _Table, states: Mapping[str, _Table]) -> None:
        if head.get("initial") not in states:  # said already; from nowhere nothing can be reached
            return
        reached = dict.fromkeys(head[entry] for entry in ENTRIES if head.get(entry) in states)
        queue = list(reached)
        for name in queue:  # which grows as we go
            ways = targets(name, states[name].get("to", ()), states)
            new = dict.fromkeys(target for target in ways if target in states and target not in reached)
            reached |= new
            queue += new
        for name in states.keys() - reached.keys():
            self.say(("states", name), "cannot be reached, neither from initial nor from an on_... entry")

    # --- telling ----------------------------------------------------------------------------------------------------

    def say(self, path: _Path, problem: str, near: str | None = None) -> None:
        """Note a problem at the line of `path`; in a value that spans lines, at the line that has `near` in quotes.

        What stands in a file that this one extends is told at `extends`.
        """
        depth = {"machine": 1, "states": 2}.get(path[0], 0)
        label = (
            f"[{'.'.join(path[:depth])}] {'.'.join(path[depth:])}" if len(path) > depth > 0 else f"[{'.'.join(path)}]"
        )
        known = next(path[:length] for length in range(len(path), -1, -1) if path[:length] in self._where)
        if len(known) < min(len(path), 2) and ("machine", "extends") in self._where:
            known = ("machine", "extends")
        line = self._where[known]
        if near is not None:
            quoted = (f'"{near}"', f"'{near}'")
            after = range(line, len(self._lines) + 1)
            line = next((n for n in after if any(each in self._lines[n - 1] for each in quoted)), line)
        self.problems.append((line, f"{label}: {problem}"))

    def _told(self, path: _Path) -> bool:
        """Tell whether something was said of this key already: it is there, and is wrong."""
        return path in self._where


def _wrong_target(name: str, target: str, to: Collection[str], states: Collection[str]) -> str | None:
    if target == name:
        return "a state cannot be its own target: to stay is no transition"
    if target == ANY:
        return f'"{ANY}" means all other states, and stands alone' if len(to) > 1 else None
    return None if target in states else f'unknown state "{target}"{hint(target, states)}'


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
