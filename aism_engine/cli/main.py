"""Entry point of `aism-engine`: the list of commands, and how errors become exit codes."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import typer

import aism_engine
from aism_engine import terminal
from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode, print_error, report_error
from aism_engine.cli.output import Output

COMPLETION: Final = "_AISM_ENGINE_COMPLETE"
"""Variable that is set while a shell completes a command line."""


def version(*, output: Output) -> None:
    """Print the version of AISM Engine.

    \b
    Example:
      aism-engine version --json
    """
    import platform  # noqa: PLC0415  slow to import

    number = aism_engine.__version__
    output.print({"version": number, "python": platform.python_version()}, number)


COMMANDS: Final = {
    "run": ("run:run", "Run the engine until SIGTERM or SIGINT."),
    "dev": ("dev:dev", "Try the engine with simulated agents on a bundled server."),
    "health": ("health:health", "Check whether an engine is ready."),
    "scenario": ("scenario:scenario", "Run a scenario and print its result."),
    "send": ("send:send", "Send a command to an agent, or to all that match a selector."),
    "pause": ("pause:pause", "Pause the delivery of commands: new ones wait until resume."),
    "drain": ("pause:drain", "Refuse new commands, and complete the accepted ones."),
    "resume": ("pause:resume", "End a pause or a drain."),
    "tail": ("tail:tail", "Print the events of a fleet, one a line, until Ctrl-C."),
    "top": ("top:top", "Watch an overview of the fleet until Ctrl-C."),
    "divergences": ("divergences:divergences", "List the open divergences, the oldest first."),
    "history": ("history:history", "Show what is recorded about an agent or a command."),
    "doctor": ("doctor:doctor", "Check the server, the permissions, the network and the keys."),
    "version": ("main:version", "Print the version of AISM Engine."),
    "agents": ("agents:app", "List, show or forget agents, or confirm losses."),
    "commands": ("commands:app", "List commands, show one, wait for it, or cancel it."),
    "dead-letters": ("dead_letters:app", "List dead letters, show one, replay or purge them."),
    "machines": ("machines:app", "Check or show state machines."),
    "config": ("config:app", "Check or show the settings."),
}
"""Each command or group: `module:attribute` of this package, and its line in the help.

The lines stand here so that the help can be printed without importing the commands.
"""


def build(first: str = "", *, import_all: bool = False) -> options.CommandGroup:
    """Build the command line with only the command `first`, or with all commands if `import_all`.

    If `first` is not a command, the result lists all commands with their lines in the help, but imports none of them.
    Importing all takes half a second, and container health checks call `health` every few seconds.
    """
    app = options.CommandGroup(
        add_completion=True, help="AISM Engine: coordinates agents over Redis and records what they do."
    )
    for name in (first,) if first in COMMANDS and not import_all else COMMANDS:
        place, summary = COMMANDS[name]
        module, _, attribute = place.partition(":")
        if not import_all and name != first:
            app.command(name, help=summary)(lambda: None)
            continue
        found = getattr(import_module(f"aism_engine.cli.{module}"), attribute)
        if isinstance(found, options.CommandGroup):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. Errors are printed on standard error, without a traceback."""
    terminal.run(_run, arguments, print_error)


def _run(arguments: Sequence[str]) -> int:
    if problem := terminal.invalid_argument(arguments):
        print_error(problem)
        return ExitCode.USAGE
    if COMPLETION in os.environ:
        arguments = terminal.words_to_complete()
    words, rest = _split(arguments)
    try:
        app = build(*words[:1])
        return int(app(words + rest, prog_name="aism-engine", standalone_mode=False) or ExitCode.DONE)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else " ".join(["aism-engine", *words])
        message = terminal.describe_usage_error(error.format_message())
        if message.startswith("there is no command ") and context:
            message += f". Choose from: {', '.join(map(repr, context.command.commands))}"
        print_error(f"{message}. See {command} --help")
        return ExitCode.USAGE
    except Exception as error:  # noqa: BLE001  report_error re-raises bugs
        return report_error(error)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that name a command, and the rest.

    Shared options that stand before or between these words come first in the rest. If the command is incomplete and
    nothing follows it, the rest is --help.
    """
    words: list[str] = []
    moved: list[str] = []
    rest, expected = list(arguments), 1
    while rest and len(words) < expected:
        flag, equals, _ = rest[0].partition("=")
        if flag in options.SHARED:
            count = 1 if equals else options.SHARED[flag]
            moved += rest[:count]
            del rest[:count]
        elif flag.startswith("-"):
            break
        else:
            words.append(rest.pop(0))
            expected = 2 if COMMANDS.get(words[0], ("",))[0].endswith(":app") else 1
    return words, moved + rest if rest or len(words) == expected else ["--help", *moved]
