"""`aism-engine`: all commands, and the one place where they begin and end."""

import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import typer

from aism_engine import __version__
from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode, print_error, report_error
from aism_engine.cli.output import print_json


def version(*, json: options.Json = False) -> None:
    """Print which version this is."""
    if json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        typer.echo(__version__)


COMMANDS: Final = {
    "run": "run:run",
    "dev": "dev:dev",
    "health": "health:health",
    "scenario": "scenario:scenario",
    "send": "send:send",
    "pause": "pause:pause",
    "drain": "pause:drain",
    "resume": "pause:resume",
    "tail": "tail:tail",
    "top": "top:top",
    "divergences": "divergences:divergences",
    "history": "history:history",
    "doctor": "doctor:doctor",
    "version": "main:version",
    "agents": "agents:app",
    "commands": "commands:app",
    "dead-letters": "dead_letters:app",
    "machines": "machines:app",
    "config": "config:app",
}
"""Each command, or group of them, and where it is."""


def build(first: str = "") -> options.CommandGroup:
    """Build the command line; where its first word names a command, with that one alone.

    All that is needed for all of them takes half a second to import, and `health` is called every few seconds.
    """
    app = options.CommandGroup(help="The AISM Engine: it coordinates agents over Redis, and knows what they are doing.")
    app.callback()(lambda: None)  # a single command would be the whole, without its name
    for name in (first,) if first in COMMANDS else COMMANDS:
        module, _, attribute = COMMANDS[name].partition(":")
        found = getattr(import_module(f"aism_engine.cli.{module}"), attribute)
        if isinstance(found, options.CommandGroup):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit with its code. Errors are a line on standard error, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = build(*arguments[:1])(arguments, prog_name="aism-engine", standalone_mode=False)
    except typer.TyperException as error:
        command = context.command_path if (context := getattr(error, "ctx", None)) else "aism-engine"
        print_error(f"{error.format_message().rstrip('.')}; try {command} --help")
        code = ExitCode.USAGE
    except Exception as error:  # noqa: BLE001  what is no error of ours is raised again
        code = report_error(error)
    sys.exit(code)
