"""The table of costs: how it is read and written, and the differences between two measurements in words."""

import tomllib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

Figures: TypeAlias = dict[str, dict[str, list[int]]]
"""Figures of one batch: by section, then by the name of a function or a server command."""
COMMAND: Final = "python -m tests.costs"
_FILE: Final = Path(__file__).with_name("expected.toml")
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "functions": (": calls", ": calls of C functions in it"),
    "server": (": calls",),
    "commit": ("",),
}
"""The sections of a workload, and what the figures of each line count."""
_HEADER: Final = f"""\
# What a batch of 512 messages costs. Made by `{COMMAND}`.
# functions: calls of a function, and the calls of C functions in it. Those with few calls in a batch are left out.
# server: calls of each server command, also inside scripts. commit: number of keys, arguments and bytes.
"""


def read() -> dict[str, Figures]:
    """Return the figures of each workload."""
    return tomllib.loads(_FILE.read_text(encoding="utf-8")) if _FILE.exists() else {}


def write(workloads: Mapping[str, Figures]) -> None:
    _FILE.write_text(_HEADER + "".join(chain.from_iterable(map(_lines, workloads, workloads.values()))), "utf-8")


def _lines(workload: str, figures: Figures) -> Iterator[str]:
    for section in _COLUMNS:
        yield f"\n[{workload}.{section}]\n"
        yield from (f'"{name}" = {row}\n' for name, row in sorted(figures[section].items()))


def changes(expected: Figures, actual: Figures) -> list[str]:
    """Describe each figure that has changed: those that rose come first."""
    found = []
    for section, columns in _COLUMNS.items():
        before, after = expected.get(section, {}), actual[section]
        for name in sorted(before.keys() | after.keys()):
            zeros = [0] * len(columns)
            for column, old, new in zip(columns, before.get(name, zeros), after.get(name, zeros), strict=True):
                if old != new:
                    verb = "rose" if new > old else "fell"
                    found.append((new < old, f"{section}: {name}{column} {verb} from {old} to {new}"))
    return [text for _, text in sorted(found, key=lambda each: each[0])]
