"""`aism-engine config`: checks and shows the settings."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from aism_engine.cli import options
from aism_engine.cli.output import Output, table_lines
from aism_engine.config import as_toml, load_settings
from aism_engine.errors import ConfigError
from aism_engine.policy_loader import load_machines
from aism_engine.redact import redacted

app = options.CommandGroup(help="Check or show the settings.")


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Settings in TOML. Default: none.")] = None,
    *,
    config: options.Config = None,
    output: Output,
) -> None:
    """Check the settings and the state machines that they name. Print every problem.

    AISM_ variables of the environment override the file, as they do for `aism-engine run`.

    \b
    Example:
      aism-engine config check /etc/aism/engine.toml
    """
    if file is not None and config is not None:
        raise typer.BadParameter("FILE and --config exclude each other: give only one of them")
    file = file or config
    try:
        machines = sorted(load_machines(load_settings(file).settings.machines).machines)
    except ConfigError as error:
        output.print({"ok": False, "problems": [redacted(problem) for problem in error.problems]}, "")
        raise
    text = f"{file or 'the defaults'}: ok; machines: {', '.join(machines)}"
    output.print({"ok": True, "problems": [], "machines": machines}, text)


@app.command()
def show(*, config: options.Config = None, output: Output) -> None:
    """Show every setting in force, its value and its source.

    \b
    Example:
      aism-engine config show --config /etc/aism/engine.toml
    """
    settings, sources = load_settings(config)
    found = {
        f"{section}.{name}": {"value": _hide_password(name, value), "source": sources[f"{section}.{name}"]}
        for section, table in msgspec.to_builtins(settings).items()
        for name, value in table.items()
    }
    rows = [{"setting": key, **each, "value": as_toml(key, each["value"])} for key, each in found.items()]
    output.print(found, "\n".join(table_lines(rows, ("setting", "value", "source"))))


def _hide_password(name: str, value: object) -> object:
    if name.endswith("password") and value:
        return "***"
    return redacted(value) if isinstance(value, str) else value
