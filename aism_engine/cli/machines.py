"""`aism-engine machines`: checks and shows state machines, as tables and as Mermaid diagrams."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.exit_codes import FailedError
from aism_engine.cli.output import Output, as_json_text, fields_as_json
from aism_engine.config import load_settings
from aism_engine.domain.machines.loader import read_machines
from aism_engine.domain.machines.machine import ACTORS, Machine, Machines, State
from aism_engine.durations import format_duration
from aism_engine.errors import ConfigError
from aism_engine.policy_loader import load_machines, read_texts, shipped_machines
from aism_engine.terminal import print_line

app = options.CommandGroup(help="Check or show state machines.")

_OPEN: Final = "yes: any state may follow any other"
_INDENT: Final = "    "
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a machine.")]


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Machines in TOML.")], *, output: Output
) -> None:
    """Check machine files. Print every problem with its file and line.

    \b
    Example:
      aism-engine machines check config/machines/*.toml
    """
    unreadable: list[str] = []
    texts = read_texts(files, unreadable)
    machines, problems = read_machines(texts, shipped_machines())
    problems = unreadable + problems
    valid = {source: machine for source, machine in machines.items() if source in texts}
    names = [machine.name for machine in valid.values()]
    lines = [
        f"{source}: ok; machine {each.name}, {len(each.states) or 'arbitrary'} states" for source, each in valid.items()
    ]
    output.print({"ok": not problems, "problems": problems, "machines": names}, "\n".join(lines))
    if problems:
        raise ConfigError(problems)


@app.command("list")
def list_(*, config: options.Config = None, output: Output) -> None:
    """List all machines, shipped and your own. Each one names the agents that it applies to.

    \b
    Example:
      aism-engine machines list --config /etc/aism/engine.toml
    """
    found = _load(config)
    columns = ("name", "version", "extends", "states", "initial", "applies_to")
    output.print_table([_as_json(found, machine) for machine in found.machines.values()], columns)


@app.command()
def show(name: _Name, *, config: options.Config = None, output: Output) -> None:
    """Show one machine: its states, their targets and their conditions.

    \b
    Example:
      aism-engine machines show journey
    """
    machine = _get(name, config)
    states = [
        {
            "state": state,
            "targets": machine.allowed(state) or "none",
            "conditions": "; ".join(_conditions(machine, state)),
            "description": machine.states[state].description,
        }
        for state in machine.states
    ]
    columns = ("state", "targets", "conditions", "description")
    output.print_fields(
        machine, {"states": columns}, changed={"states": states, "open": _OPEN if machine.open else "no"}
    )


@app.command()
def graph(name: _Name, *, config: options.Config = None) -> None:
    """Print one machine as a Mermaid diagram.

    The label of a transition names its conditions. A label like `max_stay 10m` marks the transition that the engine
    makes when an agent has been in the state for 10 minutes.

    \b
    Example:
      aism-engine machines graph journey > journey.mmd
    """
    print_line(_mermaid(_get(name, config)))


def _get(name: str, config: Path | None) -> Machine:
    found = _load(config)
    machine = found.machines.get(name)
    if machine is None:
        raise FailedError(f"there is no machine {name}. The machines are: {', '.join(found.machines)}")
    return machine


def _load(config: Path | None) -> Machines:
    return load_machines(load_settings(config).settings.machines)


def _as_json(machines: Machines, machine: Machine) -> dict[str, object]:
    head = fields_as_json(machine, "name", "version", "extends", "initial", "open")
    return head | {"states": list(machine.states), "applies_to": _applies_to(machines, machine)}


def _applies_to(machines: Machines, machine: Machine) -> list[str]:
    agents = [f"type {kind}" for kind, name in machines.by_type.items() if name == machine.name]
    agents += ["all registered agents"] * (machines.default == machine.name)
    return agents + ["all unregistered agents"] * (machines.unregistered == machine.name)


def _conditions(machine: Machine, name: str) -> Iterator[str]:
    """Yield the settings of a state that are not the defaults, and the conditions of its transitions."""
    state, default = machine.state(name), State()
    for field in sorted(set(State.__struct_fields__) - {"description", "to", "transitions"}):
        if (value := getattr(state, field)) != getattr(default, field):
            shown = format_duration(value) if isinstance(value, float) else as_json_text(value)
            yield f"{field} = {shown}"
    for target in state.transitions:
        yield f"to {target}: {_transition_conditions(machine, name, target)}"


def _transition_conditions(machine: Machine, name: str, target: str) -> str:
    transition = machine.state(name).transitions.get(target)
    if transition is None:
        return ""
    by = f"by {' or '.join(transition.by)}" if set(transition.by) != set(ACTORS) else ""
    needs = f"needs {', '.join(transition.requires)}" if transition.requires else ""
    return ", ".join(filter(None, (by, needs)))


def _mermaid(machine: Machine) -> str:
    """Draw a machine as a Mermaid `stateDiagram-v2`. States get generated ids: Mermaid does not allow every name."""
    ids = {name: f"s{number}" for number, name in enumerate(machine.states)}
    lines = ["stateDiagram-v2", *(f'{_INDENT}state "{name}" as {ids[name]}' for name in machine.states)]
    if machine.open:
        lines += [f'{_INDENT}state "any state" as s0', f"{_INDENT}[*] --> s0", f"{_INDENT}s0 --> s0"]
        return "\n".join(lines)
    lines.append(f"{_INDENT}[*] --> {ids[machine.initial]}")
    for name, state in machine.states.items():
        for target in machine.allowed(name):
            labels = [_transition_conditions(machine, name, target)]
            if target == state.after_max_stay:
                labels.append(f"max_stay {format_duration(state.max_stay)}")
            label = ", ".join(filter(None, labels))
            lines.append(f"{_INDENT}{ids[name]} --> {ids[target]}{f': {label}' if label else ''}")
        if state.final:
            lines.append(f"{_INDENT}{ids[name]} --> [*]")
    return "\n".join(lines)
