"""Entry point of `aism-engine`: the list of commands, and how errors become exit codes."""

import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import typer

from aism_engine import __version__
from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode, print_error, report_error
from aism_engine.cli.output import Output


def version(*, output: Output) -> None:
    """Print the version of AISM Engine.

    \b
    Example:
      aism-engine version --json
    """
    output.print({"version": __version__, "python": platform.python_version()}, __version__)


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
"""Each command or group, as `module:attribute` of this package."""


def build(first: str = "") -> options.CommandGroup:
    """Build the command line: only command `first` if there is one of that name, else all.

    Importing all commands takes half a second, and container health checks call `health` every few seconds.
    """
    app = options.CommandGroup(help="AISM Engine: coordinates agents over Redis and records what they do.")
    app.callback()(lambda: None)  # without a callback, typer would drop the name of a single command
    for name in (first,) if first in COMMANDS else COMMANDS:
        module, _, attribute = COMMANDS[name].partition(":")
        found = getattr(import_module(f"aism_engine.cli.{module}"), attribute)
        if isinstance(found, options.CommandGroup):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. Errors are printed on standard error, without a traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = build(*arguments[:1])(arguments, prog_name="aism-engine", standalone_mode=False)
    except typer.TyperException as error:
        command = context.command_path if (context := getattr(error, "ctx", None)) else "aism-engine"
        # The prefixes add no information, and are wrong if each argument is valid and only the combination is not.
        message = error.format_message().removeprefix("Invalid value: ").replace("Value error, ", "").rstrip(".")
        print_error(f"{message}. See {command} --help")
        code = ExitCode.USAGE
    except Exception as error:  # noqa: BLE001  report_error raises bugs again
        code = report_error(error)
    sys.exit(code)
