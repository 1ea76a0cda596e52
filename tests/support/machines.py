"""Machines from texts, for tests."""

from collections.abc import Mapping

from aism_engine.domain.machines.loader import read_machines
from aism_engine.domain.machines.machine import Machine
from aism_engine.errors import ConfigError


def parse(text: str, source: str) -> Machine:
    """Read one machine that extends no other. Raises ConfigError with all problems; `source` names the file."""
    (machine,) = parse_all({source: text}).values()
    return machine


def parse_all(texts: Mapping[str, str]) -> dict[str, Machine]:
    """Read machines from texts by file name, and return them by name. Raises ConfigError with all problems."""
    machines, problems = read_machines(texts)
    if problems:
        raise ConfigError(problems)
    return {machine.name: machine for machine in machines.values()}
