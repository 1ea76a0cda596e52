"""Reads machines from TOML and checks them. Every problem is reported with its file and line.

A machine that extends another inherits its states and the keys of its table `[machine]`. A key that its own file sets
replaces the inherited one. The checks read the merged machine.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias, get_args

from msgspec import convert

from aism_engine.domain.effects import Actor
from aism_engine.domain.machines.machine import ANY, NAME_RULE, PREVIOUS, Kind, Machine, State, Transition, walk
from aism_engine.domain.machines.toml_lines import Path, line_numbers
from aism_engine.domain.plain_words import in_plain_words
from aism_engine.domain.protocol.names import is_state_name
from aism_engine.domain.text import hint
from aism_engine.durations import parse_duration
from aism_engine.errors import ConfigError

ENTRIES: Final = ("initial", "on_register", "on_lost", "on_return", "on_goodbye", "on_unknown")
"""Keys of `[machine]` that name the state of a new agent, or the state to which the engine moves an agent."""
MACHINE_KEYS: Final = {"name": str, "version": int, "extends": str, "open": bool, **dict.fromkeys(ENTRIES, str)}
STATE_KEYS: Final[Mapping[str, Any]] = {**State.__annotations__, "transitions": dict[str, dict[str, Any]]}
TRANSITION_KEYS: Final[Mapping[str, Any]] = {"requires": dict[str, str], "by": tuple[str, ...]}

_MAX: Final = 1e9
"""Largest number and duration: a larger one is taken as a typo."""

_Table: TypeAlias = dict[str, Any]


class _Problem(NamedTuple):
    path: Path
    text: str
    near: str = ""
    """The element that is wrong, if the value at `path` is a list."""


def read_machines(
    texts: Mapping[str, str], shipped: Mapping[str, str] | None = None
) -> tuple[dict[str, Machine], list[str]]:
    """Read machines from texts by file name. Return the valid ones by file, and the problems of the others.

    A machine in `texts` replaces the one in `shipped` that has its name.
    """
    problems: list[str] = []
    files: dict[str, _File] = {}
    for source, text in texts.items():
        try:
            file = _File(text, source)
        except ConfigError as error:
            problems += error.problems
            continue
        if (first := files.setdefault(file.name, file)) is not file:
            file.add_problem(("machine", "name"), f"machine {file.name} is in {first.source} already")
            problems += file.formatted_problems()
    for source, text in (shipped or {}).items():
        files.setdefault((file := _File(text, source)).name, file)
    built = {file.source: _build(file, files) for file in files.values()}
    problems += chain.from_iterable(file.formatted_problems() for file in files.values())
    return {source: machine for source, machine in built.items() if machine is not None}, problems


def _build(file: "_File", files: Mapping[str, "_File"]) -> Machine | None:
    """Merge a file with those that it extends, and build the machine. Note problems; return None if there are any."""
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
    machine = Machine(
        **{"initial": "", **head, "name": file.name, "extends": file.extends},
        states={name: _build_state(keys) for name, keys in states.items()},
    )
    for problem in _check(machine, head):
        file.add_problem(*problem)
    return None if any(each.problems for each in lineage) else machine


def _build_state(keys: _Table) -> State:
    transitions = {target: convert(each, Transition) for target, each in keys.get("transitions", {}).items()}
    return State(**{**keys, "transitions": transitions})


def _merge_state(inherited: _Table, written: _Table) -> _Table:
    """Merge the inherited and the written keys of a state, and those of each of its transitions. Written keys win.

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
    """A machine file and its problems by line. `head` holds the keys of `[machine]`.

    A path names a table, or a key in a table.
    """

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.problems: list[tuple[int, str]] = []
        self._rejected: set[Path] = set()
        """Keys whose value has the wrong type."""
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
        """Return the valid keys of `[machine]`, and those of each state. A key with a problem is left out."""
        for key in tables.keys() - {"machine", "states"}:
            self.add_problem((key,), "unknown; a machine is written in [machine] and [states.NAME]")
        head = self._read_table(("machine",), tables.get("machine", {}), MACHINE_KEYS)
        if "name" not in head:
            self.add_problem(("machine", "name"), "missing")
        written = tables.get("states", {})
        if not isinstance(written, dict):
            self.add_problem(("states",), "expected a table [states.NAME] for each state")
            return head, {}
        states = {name: self._read_table(("states", name), table, STATE_KEYS) for name, table in written.items()}
        for name, keys in states.items():
            for target, transition in keys.get("transitions", {}).items():
                path = ("states", name, "transitions", target)
                keys["transitions"][target] = self._read_transition(path, transition)
        return head, states

    def _read_table(self, path: Path, table: object, known: Mapping[str, Any]) -> _Table:
        if not isinstance(table, dict):
            self.add_problem(path, "expected a table")
            return {}
        valid: _Table = {}
        for key, value in table.items():
            try:
                is_duration = known[key] is float and isinstance(value, str)
                valid[key] = convert(parse_duration(value) if is_duration else value, known[key])
            except KeyError:
                self.add_problem((*path, key), f"unknown key{hint(key, known)}")
            except ValueError as error:  # msgspec's ValidationError is one, too
                self.add_problem((*path, key), in_plain_words(str(error)))
                self._rejected.add((*path, key))
        return valid

    def _read_transition(self, path: Path, transition: _Table) -> _Table:
        found = self._read_table(path, transition, TRANSITION_KEYS)
        for key, valid in (("requires", get_args(Kind)), ("by", get_args(Actor))):
            values = found.get(key, ())
            wrong = set(values.values() if isinstance(values, dict) else values).difference(valid)
            for value in wrong:
                problem = f'unknown "{value}"{hint(value, valid)}; expected one of: {", ".join(valid)}'
                self.add_problem((*path, key), problem)
            if wrong:
                del found[key]
        if found.get("by") == ():
            self.add_problem((*path, "by"), "expected at least one actor")
        return found

    def formatted_problems(self) -> list[str]:
        return [f"{self.source}:{line}: {problem}" for line, problem in sorted(self.problems)]

    def add_problem(self, path: Path, problem: str, near: str = "") -> None:
        """Note a problem at the line of `path`, or at the line of `extends` if the path is inherited.

        `near` is an element of a list that may cover several lines. The problem is noted at the line that quotes it.
        """
        if path in self._rejected:  # this follows from the problem that is reported already
            return
        depth = 2 if path[0] == "states" else 1
        table, key = ".".join(path[:depth]), ".".join(path[depth:])
        known = next(path[:length] for length in range(len(path), -1, -1) if path[:length] in self._line_of)
        if len(known) < min(len(path), 2) and ("machine", "extends") in self._line_of:
            known = ("machine", "extends")
        line = self._line_of[known]
        if near:
            quoted = (f'"{near}"', f"'{near}'")
            after = range(line, len(self._lines) + 1)
            line = next((n for n in after if any(each in self._lines[n - 1] for each in quoted)), line)
        self.problems.append((line, f"{f'[{table}] {key}'.rstrip()}: {problem}"))


def _check(machine: Machine, head: _Table) -> Iterator[_Problem]:
    """Check a merged machine. `head` holds the merged keys of `[machine]`."""
    states = machine.states
    if "initial" not in head:
        yield _Problem(("machine", "initial"), "missing")
    if machine.version < 1:
        yield _Problem(("machine", "version"), "expected 1 or more")
    yield from _check_names(machine, head)
    if machine.open:
        if states:
            yield _Problem(("states",), "an open machine allows any state and has none of its own")
        return
    if not states:
        yield _Problem(("machine",), "a machine needs states, or open = true")
    for name, state in states.items():
        yield from _check_targets(machine, name, state)
        yield from _check_stay(machine, name, state)
    yield from _check_entries(machine, {entry: head[entry] for entry in ENTRIES if head.get(entry) in states})


def _check_names(machine: Machine, head: _Table) -> Iterator[_Problem]:
    states = machine.states
    entries: dict[Path, str] = {("machine", entry): head[entry] for entry in ENTRIES if entry in head}
    names: dict[Path, str] = {("states", name): name for name in states}
    names[("machine", "name")] = head.get("name", "x")
    for path, name in (names | entries if machine.open else names).items():
        if not is_state_name(name):
            yield _Problem(path, f"not a name: expected {NAME_RULE}")
    if PREVIOUS in states:
        yield _Problem(("states", PREVIOUS), f'not a name: "{PREVIOUS}" is reserved for on_return')
    for path, name in entries.items():
        if not machine.open and name not in states and (path[-1], name) != ("on_return", PREVIOUS):
            yield _Problem(path, f'unknown state "{name}"{hint(name, states)}')


def _check_entries(machine: Machine, entries: Mapping[str, str]) -> Iterator[_Problem]:
    for entry, name in entries.items():
        if machine.states[name].max_agents:
            yield _Problem(("machine", entry), f'"{name}" has max_agents: choose a state without a limit')
    if "initial" in entries:
        for name in machine.states.keys() - walk(entries.values(), machine.allowed).keys():
            yield _Problem(("states", name), "cannot be reached from initial or an on_... entry")


def _check_targets(machine: Machine, name: str, state: State) -> Iterator[_Problem]:
    path, states, found = ("states", name, "to"), machine.states, machine.allowed(name)
    for target in dict.fromkeys(state.to):
        if state.to.count(target) > 1:
            yield _Problem(path, f'"{target}" is listed twice', target)
        if target == name:
            yield _Problem(path, "a state cannot be its own target", target)
        elif target != ANY and target not in states:
            yield _Problem(path, f'unknown state "{target}"{hint(target, states)}', target)
    if ANY in state.to and len(state.to) > 1:
        yield _Problem(path, f'"{ANY}" means all other states, so it must be the only target', ANY)
    if not found and not state.final:
        yield _Problem(path, "no way out: expected at least one target, or final = true")
    for target in state.transitions.keys() - found:
        problem = f'{name} does not lead to "{target}"{hint(target, found)}'
        yield _Problem(("states", name, "transitions", target), problem)


def _check_stay(machine: Machine, name: str, state: State) -> Iterator[_Problem]:
    path, after, found = ("states", name), state.after_max_stay, machine.allowed(name)
    for key in ("min_stay", "max_stay", "cooldown", "max_agents"):
        if not 0 <= getattr(state, key) <= _MAX:
            yield _Problem((*path, key), f"expected 0 (none) to {_MAX:.0f}")
    if 0 < state.max_stay < state.min_stay:
        yield _Problem((*path, "max_stay"), "less than min_stay")
    if not after:
        return
    after_path, transition = (*path, "after_max_stay"), state.transitions.get(after, Transition())
    if not state.max_stay:
        yield _Problem(after_path, "max_stay is missing")
    if after not in found:
        yield _Problem(after_path, f'{name} does not lead to "{after}"{hint(after, found)}')
    if "engine" not in transition.by:
        yield _Problem(after_path, f'"by" of the transition to "{after}" does not include the engine')
    if transition.requires:
        yield _Problem(after_path, f'the transition to "{after}" requires a context, and the engine has none')
