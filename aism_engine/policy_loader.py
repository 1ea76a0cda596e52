"""Loads the state machines, and builds what decisions depend on.

This is not part of `config.py`, because most commands of an operator need the settings but no machine.
"""

from collections.abc import Iterable, Mapping
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
    """Load the machines of the configured directory, and the shipped ones that it does not replace by name.

    Raises ConfigError with every problem of every file.
    """
    problems: list[str] = []
    own = _read_directory(Path(settings.directory), problems) if settings.directory else {}
    machines, found = read_machines(own, shipped_machines())
    if problems or found:
        raise ConfigError(problems + found)
    named = {machine.name: machine for machine in machines.values()}
    return Machines(named, settings.default, settings.unregistered, settings.by_type)


def shipped_machines() -> dict[str, str]:
    """Return the texts of the machines that are part of the engine, by path."""
    return read_texts(_toml_files(files("aism_engine") / "machines"), problems=[])


def read_texts(paths: Iterable[Traversable], problems: list[str]) -> dict[str, str]:
    """Read machine files, and return their texts by path. Files that cannot be read are added to `problems`."""
    texts: dict[str, str] = {}
    for path in paths:
        try:
            texts[str(path)] = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            problems.append(f"{path}: cannot be read: not UTF-8")
    return texts


def build_policy(settings: Settings, handlers: Mapping[str, ResponseHandler]) -> Policy:
    """Build what decisions depend on, apart from the fleet. Raises ConfigError if a machine is invalid."""
    sections = {name: getattr(settings, name) for name in set(Policy.__struct_fields__) - {"machines", "handlers"}}
    return Policy(machines=load_machines(settings.machines), handlers=handlers, **sections)


def _read_directory(directory: Path, problems: list[str]) -> dict[str, str]:
    try:
        found = _toml_files(directory)
    except OSError as error:
        problems.append(f"machines.directory: {directory}: cannot be read: {error.strerror}")
        return {}
    if not found:
        problems.append(f"machines.directory: no *.toml file in {directory}")
    return read_texts(found, problems)


def _toml_files(directory: Traversable) -> list[Traversable]:
    return sorted((each for each in directory.iterdir() if each.name.endswith(".toml")), key=lambda it: it.name)
