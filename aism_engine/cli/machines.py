"""`aism-engine machines`: the state machines that agents live by."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.exit_codes import RefusedError
from aism_engine.cli.output import print_fields, print_json, print_table
from aism_engine.config import load_machines, load_settings
from aism_engine.domain.machines.loader import ENTRIES, read_all
from aism_engine.domain.machines.machine import ACTORS, Machine, Machines
from aism_engine.errors import ConfigError

_INDENT: Final = "    "

app = options.CommandGroup(help="Check state machines, or show those in use.")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False)], *, json: options.Json = False
) -> None:
    """Check machine files, and name all that is wrong with them, by file and line.

    \b
    Example:
      aism-engine machines check config/machines/*.toml
    """  # noqa: D301  \b keeps the lines of the example apart, here and below
    unreadable: list[str] = []
    texts: dict[str, str] = {}
    for file in files:
        try:
            texts[str(file)] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            unreadable.append(f"{file}: cannot be read: {error}")
    good, problems = read_all(texts)
    problems = unreadable + problems
    if json:
        print_json({"ok": not problems, "problems": problems, "machines": [machine.name for machine in good.values()]})
    else:
        for source, machine in good.items():
            typer.echo(f"{source}: good; machine {machine.name}, {_size(machine)}")
    if problems:
        raise ConfigError(problems)


@app.command("list")
def list_(*, config: options.Config = None, json: options.Json = False) -> None:
    """List the machines in use, and for whom they are.

    \b
    Example:
      aism-engine machines list --config /etc/aism/engine.toml
    """  # noqa: D301
    found = _load(config)
    machines = found.machines.values()
    if json:
        print_json([_described(found, each) for each in machines])
    else:
        rows = (
            (each.name, each.version, each.extends, _size(each), each.initial, ", ".join(_users(found, each)))
            for each in machines
        )
        print_table(("MACHINE", "VERSION", "EXTENDS", "SIZE", "INITIAL", "FOR"), rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    *,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Show one machine: its states, where each leads, and the moves that the engine makes.

    \b
    Example:
      aism-engine machines show journey
    """  # noqa: D301
    machine = _named(name, config)
    if json:
        print_json(machine)
        return
    head = ("version", "extends", *ENTRIES)
    print_fields([("machine", machine.name), *((key, getattr(machine, key)) for key in head)])
    if machine.open:
        typer.echo("\nopen: any state may follow any other")
        return
    typer.echo()
    rows = (
        (name, ", ".join(machine.allowed(name)) or "nowhere", "; ".join(terms(machine, name)), state.description)
        for name, state in machine.states.items()
    )
    print_table(("STATE", "LEADS TO", "TERMS", "MEANS"), rows)


@app.command()
def graph(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)], *, config: options.Config = None
) -> None:
    """Print one machine as a Mermaid diagram, for a page or an editor that draws it.

    A transition says what it asks for, and `max_stay` where the engine takes it by itself.

    \b
    Example:
      aism-engine machines graph journey > journey.mmd
    """  # noqa: D301
    typer.echo(drawn(_named(name, config)))


def _named(name: str, config: Path | None) -> Machine:
    found = _load(config)
    machine = found.machines.get(name)
    if machine is None:
        raise RefusedError(f"there is no machine {name}; there are: {', '.join(found.machines)}")
    return machine


def _load(config: Path | None) -> Machines:
    return load_machines(load_settings(config).settings.machines)


def _size(machine: Machine) -> str:
    return "any states" if machine.open else f"{len(machine.states)} states"


def _described(machines: Machines, machine: Machine) -> dict[str, object]:
    return {
        "name": machine.name,
        "version": machine.version,
        "extends": machine.extends or None,
        "states": list(machine.states),
        "for": _users(machines, machine),
    }


def _users(machines: Machines, machine: Machine) -> list[str]:
    users = [f"type {kind}" for kind, name in machines.by_type.items() if name == machine.name]
    users += ["all who register"] * (machines.default == machine.name)
    return users + ["all who never register"] * (machines.unregistered == machine.name)


def terms(machine: Machine, name: str) -> Iterator[str]:
    """Say in short what a state asks for, beside its arrows."""
    state = machine.state(name)
    if state.final:
        yield "final"
    if state.waits_for:
        yield f"waits for {state.waits_for}"
    if state.accepts_messages is not True:
        yield "messages later" if state.accepts_messages == "later" else "no messages"
    if state.min_stay:
        yield f"at least {state.min_stay:g} s"
    if state.max_stay:
        after = f", then {state.after_max_stay}" if state.after_max_stay else ""
        yield f"at most {state.max_stay:g} s{after}"
    if state.cooldown:
        yield f"not again for {state.cooldown:g} s"
    if state.max_agents:
        yield f"room for {state.max_agents}"
    for target in state.transitions:
        yield f"to {target}: {arrow_terms(machine, name, target)}"


def arrow_terms(machine: Machine, name: str, target: str) -> str:
    """Say what one arrow asks for; nothing where it is anybody's."""
    transition = machine.state(name).transitions.get(target)
    if transition is None:
        return ""
    by = f"by {' or '.join(transition.by)}" if set(transition.by) != set(ACTORS) else ""
    needs = f"needs {', '.join(transition.requires)}" if transition.requires else ""
    return ", ".join(filter(None, (by, needs)))


def drawn(machine: Machine) -> str:
    """Draw a machine in Mermaid: a `stateDiagram-v2`. Names get ids of their own, for not every name can be one."""
    ids = {name: f"s{number}" for number, name in enumerate(machine.states)}
    lines = ["stateDiagram-v2", *(f'{_INDENT}state "{name}" as {ids[name]}' for name in machine.states)]
    if machine.open:
        lines += [f'{_INDENT}state "any state" as s0', f"{_INDENT}[*] --> s0", f"{_INDENT}s0 --> s0"]
        return "\n".join(lines)
    lines.append(f"{_INDENT}[*] --> {ids[machine.initial]}")
    for name, state in machine.states.items():
        for target in machine.allowed(name):
            labels = [arrow_terms(machine, name, target)]
            if target == state.after_max_stay:
                labels.append(f"max_stay {state.max_stay:g} s")
            label = ", ".join(filter(None, labels))
            lines.append(f"{_INDENT}{ids[name]} --> {ids[target]}{f': {label}' if label else ''}")
        if state.final:
            lines.append(f"{_INDENT}{ids[name]} --> [*]")
    return "\n".join(lines)
