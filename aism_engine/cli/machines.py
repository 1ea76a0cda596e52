"""`aism-engine machines`: the state machines that agents live by."""

from pathlib import Path
from typing import Annotated

import typer

from aism_engine.app import load_machines
from aism_engine.cli import options
from aism_engine.cli.exits import RefusedError
from aism_engine.cli.output import print_fields, print_json, print_table
from aism_engine.config import load
from aism_engine.errors import ConfigError
from aism_engine.model.machine import Machine, Machines
from aism_engine.model.machine_file import read_all

app = options.Commands(help="Check state machines, or show those in use.")


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
        print_json([{"name": each.name, "states": list(each.states), "for": _users(found, each)} for each in machines])
    else:
        rows = ((each.name, _size(each), each.initial, ", ".join(_users(found, each))) for each in machines)
        print_table(("MACHINE", "SIZE", "INITIAL", "FOR"), rows)


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
    found = _load(config)
    machine = found.machines.get(name)
    if machine is None:
        raise RefusedError(f"there is no machine {name}; there are: {', '.join(found.machines)}")
    if json:
        print_json(machine)
        return
    moves = ("initial", "on_register", "on_lost", "on_return", "on_goodbye", "on_unknown")
    print_fields([("machine", machine.name), *((move, getattr(machine, move)) for move in moves)])
    if machine.open:
        typer.echo("\nopen: any state may follow any other")
    else:
        typer.echo()
        rows = ((state, ", ".join(machine.allowed(state)), each.description) for state, each in machine.states.items())
        print_table(("STATE", "LEADS TO", "MEANS"), rows)


def _load(config: Path | None) -> Machines:
    return load_machines(load(config).settings.machines)


def _size(machine: Machine) -> str:
    return "any states" if machine.open else f"{len(machine.states)} states"


def _users(machines: Machines, machine: Machine) -> list[str]:
    users = [f"type {kind}" for kind, name in machines.by_type.items() if name == machine.name]
    users += ["all who register"] * (machines.default == machine.name)
    return users + ["all who never register"] * (machines.unregistered == machine.name)
