"""Provides shell completion of `aism`: declares the commands and options of its argparse parser for typer as well."""

import argparse
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Annotated, Any, Final

import typer

from aism_engine.terminal import words_to_complete

_BY_TYPER: Final = {"help", "install_completion", "show_completion"}
"""Options that typer adds itself."""


def complete(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Print or install the completion script of a shell, or print the completions of a command line."""
    words_to_complete()  # Bash splits words at `:` and `=`; this joins them in the variables that typer reads
    app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False)
    _add_commands(app, parser)
    return int(app(arguments, prog_name="aism", standalone_mode=False) or 0)


def _add_commands(app: typer.Typer, parser: argparse.ArgumentParser) -> None:
    app.callback()(_declare_options(parser))
    for name, each in _commands(parser).items():
        if _commands(each):
            group = typer.Typer(help=each.description)
            _add_commands(group, each)
            app.add_typer(group, name=name)
        else:
            app.command(name, help=each.description)(_declare_options(each))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = (each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction))  # noqa: SLF001  argparse has no other way
    return dict(next(found, {}))


def _declare_options(parser: argparse.ArgumentParser) -> Callable[..., None]:
    def function(**_values: Any) -> None:  # noqa: ANN401
        """Do nothing: typer completes and does not call it."""

    parameters = [
        Parameter(
            each.dest,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[bool if each.nargs == 0 else str, typer.Option(*each.option_strings, help=each.help)],
        )
        for each in parser._actions  # noqa: SLF001
        if each.option_strings and each.dest not in _BY_TYPER
    ]
    function.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return function
