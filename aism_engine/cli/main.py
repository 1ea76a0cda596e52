"""`aism-engine`: all commands, and the one place where they begin and end."""

import platform
import sys
from collections.abc import Sequence

import typer

from aism_engine import __version__
from aism_engine.cli import (
    agents,
    commands,
    config,
    dead_letters,
    dev,
    divergences,
    doctor,
    health,
    history,
    holds,
    machines,
    options,
    run,
    scenario,
    send,
    tail,
    top,
)
from aism_engine.cli.exits import Exit, complain, report
from aism_engine.cli.output import print_json

app = options.Commands(help="The AISM Engine: it coordinates agents over Redis, and knows what they are doing.")
app.command()(run.run)
app.command()(dev.dev)
app.command()(health.health)
app.command()(scenario.scenario)
app.command()(send.send)
for name in holds.HELP:
    app.command(name)(holds.hold(name))
app.command()(tail.tail)
app.command()(top.top)
app.command()(divergences.divergences)
app.command()(history.history)
app.command()(doctor.doctor)
app.add_typer(agents.app, name="agents")
app.add_typer(commands.app, name="commands")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(machines.app, name="machines")
app.add_typer(config.app, name="config")


@app.command()
def version(*, json: options.Json = False) -> None:
    """Print which version this is."""
    if json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        typer.echo(__version__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit with its code. Errors are a line on standard error, never a traceback."""
    try:
        code = app(arguments, prog_name="aism-engine", standalone_mode=False)
    except typer.TyperException as error:
        command = context.command_path if (context := getattr(error, "ctx", None)) else "aism-engine"
        complain(f"{error.format_message().rstrip('.')}; try {command} --help")
        code = Exit.USAGE
    except Exception as error:  # noqa: BLE001  what is no error of ours is raised again
        code = report(error)
    sys.exit(code)
