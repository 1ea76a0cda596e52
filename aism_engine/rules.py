"""What decisions obey: the settings, as the model takes them, and the machine files."""

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from aism_engine.config import Loaded, load
from aism_engine.errors import ConfigError
from aism_engine.model.decisions.responses import Handler
from aism_engine.model.divergence import RULES, Thresholds
from aism_engine.model.machine import Machines
from aism_engine.model.machine_file import parse_all
from aism_engine.model.rules import Rules
from aism_engine.settings import DivergenceSettings, MachinesSettings, Settings


def load_checked(config: Path | None = None, flags: Mapping[str, object] | None = None) -> Loaded:
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


def rules_of(settings: Settings, handlers: Mapping[str, Handler]) -> Rules:
    """Give the rules that decisions obey. Raises ConfigError where a machine is wrong."""
    return Rules(
        machines=load_machines(settings.machines),
        auto_register=settings.agents.auto_register,
        max_agents=settings.agents.max_agents,
        command_ttl_s=settings.commands.ttl,
        retention_s=settings.commands.retention,
        max_result_bytes=settings.commands.max_result_bytes,
        max_queued=settings.commands.max_queued,
        max_in_flight=settings.commands.max_in_flight,
        ack_timeout_s=settings.commands.ack_timeout,
        timeout_s=settings.commands.timeout,
        extend_on_progress=settings.commands.extend_on_progress,
        max_attempts=settings.commands.max_attempts,
        backoff_initial_s=settings.commands.backoff_initial,
        backoff_max_s=settings.commands.backoff_max,
        on_lost=settings.commands.on_lost,
        reply_ttl_s=settings.dispatcher.reply_ttl,
        inbox_keep=settings.agents.inbox_keep,
        max_measures=settings.measurements.max_names,
        max_hops=settings.messages.max_hops,
        pair_per_s=settings.messages.pair_per_second,
        pair_burst=settings.messages.pair_burst,
        events=settings.history.events,
        divergence=_thresholds(settings.divergence),
        handlers=handlers,
    )


def _thresholds(settings: DivergenceSettings) -> Thresholds:
    return Thresholds(
        rules=frozenset(rule for rule in RULES if getattr(settings, rule)),
        working_states=frozenset(settings.working_states),
        idle_evidence_after_s=settings.idle_evidence_after,
        absent_states=frozenset(settings.absent_states),
        beating_after_s=settings.beating_after,
        contradiction_after_s=settings.contradiction_after,
        unacked_commands=settings.unacked_commands,
        unfinished_commands=settings.unfinished_commands,
        clock_turns=settings.clock_turns,
        instance_turns=settings.instance_turns,
        quiet_after_s=settings.quiet_after,
        context_measurement=settings.context_measurement,
        context_limit=settings.context_limit,
        distill_states=frozenset(settings.distill_states),
        distill_after_s=settings.distill_after,
    )
