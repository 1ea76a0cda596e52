"""What decisions obey: the settings, as the model takes them, and the machine files."""

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from aism_engine.config import LoadedSettings, load
from aism_engine.domain.machines.loader import parse_all
from aism_engine.domain.machines.machine import Machines
from aism_engine.domain.policy import Policy
from aism_engine.domain.responses import ResponseHandler
from aism_engine.errors import ConfigError
from aism_engine.settings import MachinesSettings, Settings


def load_settings_and_machines(config: Path | None = None, flags: Mapping[str, object] | None = None) -> LoadedSettings:
    """Load the settings and check the machines; a flag of None was not given. Raises ConfigError with all problems."""
    loaded = load(config, overrides=flags)
    load_machines(loaded.settings.machines)
    return loaded


def load_machines(settings: MachinesSettings) -> Machines:
    """Read and check all machines. Raises ConfigError with every problem of every file."""
    problems: list[str] = []
    texts: dict[str, str] = {}
    for file in _machine_files(settings, problems):
        try:
            texts[str(file)] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{file}: cannot be read: {error}")
    try:
        machines = parse_all(texts)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return Machines(machines, settings.default, settings.unregistered, settings.by_type)


def _machine_files(settings: MachinesSettings, problems: list[str]) -> list[Traversable]:
    """Find the machine files: those of the directory, else those that we ship."""
    folder: Traversable = Path(settings.directory) if settings.directory else files("aism_engine") / "machines"
    try:
        found = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    except OSError as error:
        problems.append(f"machines.directory: {error}")
        return []
    if not found:
        problems.append(f"machines.directory: no file *.toml in {folder}")
    return found


def policy_of(settings: Settings, handlers: Mapping[str, ResponseHandler]) -> Policy:
    """Build the policy from the settings and the machine files. Raises ConfigError where a machine is invalid."""
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
