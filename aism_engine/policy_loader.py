"""Loads the state machines, and builds what decisions depend on.

Apart from `config.py`, because most commands of an operator need the settings and no machine.
"""

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from aism_engine.domain.machines.loader import read_machines
from aism_engine.domain.machines.machine import Machines
from aism_engine.domain.policy import Policy
from aism_engine.domain.responses import ResponseHandler
from aism_engine.errors import ConfigError
from aism_engine.settings import MachinesSettings, Settings


def load_machines(settings: MachinesSettings) -> Machines:
    """Load all state machines. Raises ConfigError with every problem of every file."""
    problems: list[str] = []
    texts: dict[str, str] = {}
    for file in _machine_files(settings, problems):
        try:
            texts[str(file)] = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{file}: cannot be read: {error}")
    machines, found = read_machines(texts)
    if problems or found:
        raise ConfigError(problems + found)
    named = {machine.name: machine for machine in machines.values()}
    return Machines(named, settings.default, settings.unregistered, settings.by_type)


def build_policy(settings: Settings, handlers: Mapping[str, ResponseHandler]) -> Policy:
    """Build what decisions depend on, apart from the fleet. Raises ConfigError if a machine is invalid."""
    return Policy(
        machines=load_machines(settings.machines),
        protocol=settings.protocol,
        agents=settings.agents,
        commands=settings.commands,
        mail=settings.mail,
        measurements=settings.measurements,
        divergence=settings.divergence,
        handlers=handlers,
    )


def _machine_files(settings: MachinesSettings, problems: list[str]) -> list[Traversable]:
    """Return the machine files in the configured directory, or the shipped ones if no directory is set."""
    directory: Traversable = Path(settings.directory) if settings.directory else files("aism_engine") / "machines"
    try:
        found = sorted((each for each in directory.iterdir() if each.name.endswith(".toml")), key=lambda it: it.name)
    except OSError as error:
        problems.append(f"machines.directory: {error}")
        return []
    if not found:
        problems.append(f"machines.directory: no *.toml file in {directory}")
    return found
