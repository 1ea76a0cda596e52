"""The options that commands share, and what they are made into."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from aism_engine.cli.exits import EXIT_CODES

Redis: TypeAlias = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="The server; else AISM_REDIS_URL, else localhost.")
]
Prefix: TypeAlias = Annotated[
    str | None, typer.Option("--prefix", metavar="NAME", help="First part of every key: the fleet's name.")
]
Config: TypeAlias = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in TOML; see config/engine.toml.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]


class CommandGroup(typer.Typer):
    """A group of commands, each of which tells its exit codes in its help."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  as typer has it
        # A bug of ours shall be a plain traceback, that can be read where logs are read.
        options |= {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
        super().__init__(epilog=EXIT_CODES, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        return super().command(name, epilog=EXIT_CODES, **options)


def address(text: str) -> tuple[str, str]:
    """Split HOST:PORT; `[::1]:80` is one too. Whether they are good is for the settings to say."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise typer.BadParameter(f"expected HOST:PORT, got {text!r}")
    return host.strip("[]"), port
