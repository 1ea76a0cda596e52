"""`aism-engine machines`: the state machines that agents live by."""

from pathlib import Path
from typing import Annotated

import typer

from aism_engine.cli import options
from aism_engine.cli.exits import RefusedError
from aism_engine.cli.machine_text import drawn, terms
from aism_engine.cli.output import print_fields, print_json, print_table
from aism_engine.config import load_machines, load_settings
from aism_engine.domain.machines.loader import ENTRIES, read_all
from aism_engine.domain.machines.machine import Machine, Machines
from aism_engine.errors import ConfigError

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
