"""Reads machines from TOML and checks them. Every problem is reported with its file and line.

A machine that extends another inherits its entries and states, except for the keys that it writes itself. The merged
machine is what is checked.
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
from aism_engine.domain.machines.toml_lines import Path, line_numbers
from aism_engine.errors import ConfigError

ENTRIES: Final = ("initial", "on_register", "on_lost", "on_return", "on_goodbye", "on_unknown")
_ENTRY_KEYS: Final = dict.fromkeys(ENTRIES, str)
MACHINE_KEYS: Final[Mapping[str, Any]] = {"name": str, "version": int, "extends": str, "open": bool, **_ENTRY_KEYS}
STATE_KEYS: Final[Mapping[str, Any]] = {**State.__annotations__, "transitions": dict[str, dict[str, Any]]}
TRANSITION_KEYS: Final[Mapping[str, Any]] = {"requires": dict[str, str], "by": tuple[str, ...]}

_MAX: Final = 1e9
"""Largest number and duration: a larger one is taken as a typing error."""

_Table = dict[str, Any]


def parse(text: str, source: str) -> Machine:
    """Read one machine that extends no other. Raises ConfigError with all problems; `source` names the file."""
    (machine,) = parse_all({source: text}).values()
    return machine


def parse_all(texts: Mapping[str, str]) -> dict[str, Machine]:
    """Read machines from texts by file name. Raises ConfigError with all problems of all files."""
    machines, problems = read_all(texts)
    if problems:
        raise ConfigError(problems)
    return {machine.name: machine for machine in machines.values()}


def read_all(texts: Mapping[str, str]) -> tuple[dict[str, Machine], list[str]]:
    """Read machines from texts by file name. Return the valid ones by file, and the problems of the others."""
    problems: list[str] = []
    files: dict[str, _File] = {}
    for source, text in texts.items():
        try:
            file = _File(text, source)
        except ConfigError as error:
            problems += error.problems
            continue
        if file.name in files:
            file.add_problem(("machine", "name"), f"machine {file.name} is in {files[file.name].source} already")
            problems += file.formatted_problems()
        else:
            files[file.name] = file
    built = {file.source: _build(file, files) for file in files.values()}
    problems += chain.from_iterable(file.formatted_problems() for file in files.values())
    return {source: machine for source, machine in built.items() if machine is not None}, problems


def _build(file: "_File", files: Mapping[str, "_File"]) -> Machine | None:
    """Build a machine from its file and those it extends; return None and note the problems if any is invalid."""
    head, states, lineage = file.head, file.states, [file]
    while parent := lineage[-1].extends:
        if parent not in files or files[parent] in lineage:
            if parent not in files and lineage[-1] is file:
                file.add_problem(("machine", "extends"), f'no machine "{parent}"{hint(parent, files)}')
            elif parent == file.name:
                cycle = " extends ".join(each.name for each in [*lineage, file])
                file.add_problem(("machine", "extends"), f"a machine cannot extend itself: {cycle}")
            return None
        ancestor = files[parent]
        lineage.append(ancestor)
        head = {**ancestor.head, **head}
        names = {**ancestor.states, **states}
        states = {name: _merge_state(ancestor.states.get(name, {}), states.get(name, {})) for name in names}
    file.check(head, states)
    if any(each.problems for each in lineage):
        return None
    return Machine(
        **{**head, "name": file.name, "extends": file.extends},
        states={name: _build_state(keys) for name, keys in states.items()},
    )


def _build_state(keys: _Table) -> State:
    transitions = {target: convert(each, Transition) for target, each in keys.get("transitions", {}).items()}
    return State(**{**keys, "transitions": transitions})


def _merge_state(inherited: _Table, written: _Table) -> _Table:
    """Merge the keys of a state into those that it inherits, also within each transition.

    An inherited transition to a state that `to` no longer names is dropped.
    """
    kept, new, to = inherited.get("transitions", {}), written.get("transitions"), written.get("to", [ANY])
    if new == {}:
        kept = {}
    elif ANY not in to:
        kept = {target: transition for target, transition in kept.items() if target in to}
    new = new or {}
    transitions = {target: {**kept.get(target, {}), **new.get(target, {})} for target in {**kept, **new}}
    return {**inherited, **written, "transitions": transitions}


class _File:
    """A machine file and its problems by line. A path names a table, or a key in a table."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.problems: list[tuple[int, str]] = []
        self._lines = text.split("\n")
        self._line_of = line_numbers(text)
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"at line (\d+)", str(error))
            line = found[1] if found else text.rstrip().count("\n") + 1  # the error says "at end of document"
            raise ConfigError([f"{source}:{line}: not TOML: {error}"]) from None
        self.head, self.states = self._read(tables)
        self.name = self.head.get("name", source)
        self.extends = self.head.get("extends", "")

    def _read(self, tables: _Table) -> tuple[_Table, dict[str, _Table]]:
        """Return the keys of `[machine]` and of each state that are known and of the right type."""
        for key in tables.keys() - {"machine", "states"}:
            self.add_problem((key,), "unknown; a machine is written in [machine] and [states.NAME]")
        head = self._read_table(("machine",), tables.get("machine", {}), MACHINE_KEYS)
        self._require(("machine", "name"), head)
        written = tables.get("states", {})
        if not isinstance(written, dict):
            self.add_problem(("states",), "expected a table [states.NAME] for each state")
            return head, {}
        states = {name: self._read_table(("states", name), table, STATE_KEYS) for name, table in written.items()}
        for name, keys in states.items():
            for target, transition in keys.get("transitions", {}).items():
                self._read_transition(("states", name, "transitions", target), transition)
        return head, states

    def _read_table(self, path: Path, table: object, known: Mapping[str, Any]) -> _Table:
        if not isinstance(table, dict):
            self.add_problem(path, "expected a table")
            return {}
        valid: _Table = {}
        for key, value in table.items():
            try:
                valid[key] = convert(value, known[key])
            except KeyError:
                self.add_problem((*path, key), f"unknown key{hint(key, known)}")
            except ValidationError as error:
                self.add_problem((*path, key), str(error))
        return valid

    def _read_transition(self, path: Path, transition: _Table) -> None:
        found = self._read_table(path, transition, TRANSITION_KEYS)
        for key, valid in (("requires", get_args(Kind)), ("by", get_args(Actor))):
            values = found.get(key, ())
            for value in values.values() if isinstance(values, dict) else values:
                if value not in valid:
                    problem = f'unknown "{value}"{hint(value, valid)}; expected one of: {", ".join(valid)}'
                    self.add_problem((*path, key), problem)
        if "by" in found and not found["by"]:
            self.add_problem((*path, "by"), "expected at least one actor")

    def check(self, head: _Table, states: Mapping[str, _Table]) -> None:
        """Check the machine that results from this file and those it extends."""
        self._require(("machine", "initial"), head)
        if head.get("version", 1) < 1:
            self.add_problem(("machine", "version"), "expected 1 or more")
        self._check_names(head, states)
        if head.get("open"):
            if states:
                self.add_problem(("states",), "an open machine allows any state and has none of its own")
            return
        if not states:
            self.add_problem(("machine",), "a machine needs states, or open = true")
        for name, keys in states.items():
            self._check_targets(name, keys, states)
            self._check_stay(name, keys, states)
        self._check_reach(head, states)
        for entry in ENTRIES:
            if states.get(head.get(entry, ""), {}).get("max_agents"):
                problem = f'"{head[entry]}" has max_agents, which is not checked for this entry'
                self.add_problem(("machine", entry), problem)

    def _require(self, path: Path, keys: _Table) -> None:
        if path[-1] not in keys and path not in self._line_of:  # a key that is written has its own problem
            self.add_problem(path[:-1], f'"{path[-1]}" is missing')

    def _check_names(self, head: _Table, states: Collection[str]) -> None:
        is_open = head.get("open", False)
        entries: dict[Path, str] = {("machine", entry): head[entry] for entry in ENTRIES if entry in head}
        names: dict[Path, str] = {("states", name): name for name in states}
        names[("machine", "name")] = head.get("name", "x")
        for path, name in (names | entries if is_open else names).items():
            if not STATE_NAME.fullmatch(name):
                self.add_problem(path, f"not a name: expected {NAME_RULE}")
        if PREVIOUS in states:
            self.add_problem(("states", PREVIOUS), f'not a name: "{PREVIOUS}" is reserved for on_return')
        for path, name in entries.items():
            if not is_open and name not in states and (path[-1], name) != ("on_return", PREVIOUS):
                self.add_problem(path, f'unknown state "{name}"{hint(name, states)}')

    def _check_targets(self, name: str, keys: _Table, states: Collection[str]) -> None:
        path, to = ("states", name, "to"), keys.get("to")
        if to is None:
            if not keys.get("final"):
                self._require(path, keys)
            return
        for target in dict.fromkeys(to):
            if to.count(target) > 1:
                self.add_problem(path, f'"{target}" is listed twice', near=target)
            if (problem := _wrong_target(name, target, to, states)) is not None:
                self.add_problem(path, problem, near=target)
        found = targets(name, to, states)
        if not found and not keys.get("final"):
            self.add_problem(path, "no way out: expected at least one target, or final = true")
        for target in keys.get("transitions", {}):
            if target not in found:
                problem = f'{name} does not lead to "{target}"{hint(target, found)}'
                self.add_problem(("states", name, "transitions", target), problem)

    def _check_stay(self, name: str, keys: _Table, states: Collection[str]) -> None:
        path = ("states", name)
        for key in ("min_stay", "max_stay", "cooldown", "max_agents"):
            if key in keys and not 0 <= keys[key] <= _MAX:
                self.add_problem((*path, key), f"expected 0 (none) to {_MAX:g}")
        max_stay, after = keys.get("max_stay", 0), keys.get("after_max_stay")
        if max_stay and max_stay < keys.get("min_stay", 0):
            self.add_problem((*path, "max_stay"), "less than min_stay")
        if not after:
            return
        after_path = (*path, "after_max_stay")
        if not max_stay:
            self.add_problem(after_path, "max_stay is missing")
        if after not in (found := targets(name, keys.get("to", ()), states)):
            self.add_problem(after_path, f'{name} does not lead to "{after}"{hint(after, found)}')
        transition = keys.get("transitions", {}).get(after, {})
        if "engine" not in transition.get("by", ("engine",)):
            self.add_problem(after_path, f'"by" of the transition to "{after}" does not include the engine')
        if transition.get("requires"):
            self.add_problem(after_path, f'the transition to "{after}" requires a context, and the engine has none')

    def _check_reach(self, head: _Table, states: Mapping[str, _Table]) -> None:
        if head.get("initial") not in states:  # already reported
            return
        reached = dict.fromkeys(head[entry] for entry in ENTRIES if head.get(entry) in states)
        queue = list(reached)
        for name in queue:  # the loop appends to it
            found = targets(name, states[name].get("to", ()), states)
            new = dict.fromkeys(target for target in found if target in states and target not in reached)
            reached |= new
            queue += new
        for name in states.keys() - reached.keys():
            self.add_problem(("states", name), "cannot be reached from initial or an on_... entry")

    def formatted_problems(self) -> list[str]:
        return [f"{self.source}:{line}: {problem}" for line, problem in sorted(self.problems)]

    def add_problem(self, path: Path, problem: str, near: str | None = None) -> None:
        """Note a problem at the line of `path`; in a value of several lines, at the line that quotes `near`.

        A problem in an inherited part is reported at `extends`.
        """
        depth = {"machine": 1, "states": 2}.get(path[0], 0)
        table, key = ".".join(path[:depth] if len(path) > depth > 0 else path), ".".join(path[depth:] if depth else ())
        known = next(path[:length] for length in range(len(path), -1, -1) if path[:length] in self._line_of)
        if len(known) < min(len(path), 2) and ("machine", "extends") in self._line_of:
            known = ("machine", "extends")
        line = self._line_of[known]
        if near is not None:
            quoted = (f'"{near}"', f"'{near}'")
            after = range(line, len(self._lines) + 1)
            line = next((n for n in after if any(each in self._lines[n - 1] for each in quoted)), line)
        self.problems.append((line, f"{f'[{table}] {key}'.rstrip()}: {problem}"))


def _wrong_target(name: str, target: str, to: Collection[str], states: Collection[str]) -> str | None:
    if target == name:
        return "a state cannot be its own target"
    if target == ANY:
        return f'"{ANY}" means all other states, so it must be the only target' if len(to) > 1 else None
    return None if target in states else f'unknown state "{target}"{hint(target, states)}'
