"""Options that commands share, and the parsing of addresses and times."""

import inspect
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial, wraps
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, get_type_hints

import typer
from msgspec import Struct
from typer.core import TyperCommand, TyperGroup

import aism_engine
from aism_engine import durations, values
from aism_engine.cli.exit_codes import EXIT_CODES
from aism_engine.terminal import print_line

_CONTEXT: Final = {"help_option_names": ["-h", "--help"]}
SHARED: Final = {"--redis": 2, "--prefix": 2, "--config": 2, "--timeout": 2, "--json": 1}
"""Options that may stand before the command, and how many words each takes."""
_UNITS: Final = ("s", "m", "h", "d")
"""Last characters of an age. An ISO time ends in none of them."""


class OptionSet(Struct, frozen=True, kw_only=True):
    """Options that several commands share: each field is one option. A command takes the set as one parameter."""


class _FastConversion:
    """Mixin for commands: converts simple values with `_process_value` instead of typer.

    Typer imports pydantic even for a missing value, and that takes longer than most commands.
    """

    def parse_args(self, context: Any, args: list[str]) -> list[str]:  # noqa: ANN401  as in typer
        for parameter in self.get_params(context):  # type: ignore[attr-defined]
            parameter.process_value = partial(_process_value, parameter, parameter.process_value)
            if parameter.param_type_name == "argument":
                # The help of an argument would also show its Python type, such as <list[str]>.
                parameter.display_type_rich = lambda **_: None
        rest: list[str] = super().parse_args(context, args)  # type: ignore[misc]
        return rest


class _Command(_FastConversion, TyperCommand):
    pass


class _Group(_FastConversion, TyperGroup):
    pass


def _process_value(parameter: Any, convert: Callable[..., Any], context: Any, value: Any) -> Any:  # noqa: ANN401
    """Convert a simple value as typer does. Typer converts all other values, and writes the error messages.

    A value is simple if it is missing, has a parser of its own, is one of a few choices, or has the right type.
    """
    kind, is_many = parameter.type_descriptor, parameter.multiple or parameter.nargs != 1
    if value is None and not parameter.required:
        value = () if is_many else None
    elif value and kind.annotation == list[str]:
        value = list(value)
    elif value is None or is_many:
        return convert(context, value)
    elif parser := kind.parameter_info.parser:
        try:
            value = parser(value)
        except ValueError:
            return convert(context, value)  # typer writes the error message
    elif value in (choices := kind.choices or ()):
        value = choices[choices.index(value)]
    elif type(value) is not kind.annotation:
        return convert(context, value)
    return value if parameter.callback is None else parameter.callback(context, parameter, value)


class CommandGroup(typer.Typer):
    """A group of commands whose help lists the exit codes. Commands may take option sets."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  as in typer
        # Bugs print a plain traceback: it stays readable in logs and shows no local variables.
        options = {"add_completion": False, "context_settings": _CONTEXT, **options}
        options |= {"rich_markup_mode": None, "pretty_exceptions_enable": False}
        super().__init__(epilog=EXIT_CODES, cls=_Group, **options)
        self.callback()(_declare_shared_options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        register = super().command(name, epilog=EXIT_CODES, context_settings=_CONTEXT, cls=_Command, **options)
        return lambda function: register(_expand_option_sets(function))


def _expand_option_sets(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the fields of its option sets as parameters: typer knows only single options."""
    hints = get_type_hints(function)
    sets = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, OptionSet)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = sets.get(parameter.name)
        parameters += [parameter] if kind is None else inspect.signature(kind).parameters.values()

    @wraps(function)
    def command(**values: Any) -> Any:  # noqa: ANN401
        for name, kind in sets.items():
            values[name] = kind(**{field: values.pop(field) for field in kind.__struct_fields__})
        return function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def parse_address(text: str) -> dict[str, str]:
    """Parse HOST:PORT or [IPV6]:PORT into settings, which validate both parts."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"expected HOST:PORT, got {values.shown(text)}")
    return {"http.host": host.strip("[]"), "http.port": port}


def parse_time(text: str, expected: str = "a time like 2026-11-23T02:00:00Z") -> float:
    """Parse an ISO time like `2026-11-23T02:00:00Z` into unix seconds. A time without a UTC offset is local."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"expected {expected}, got {values.shown(text)}") from None


def parse_time_or_age(text: str) -> float:
    """Parse an ISO time, or an age like `90s`, `10m`, `2h` or `1d`, into unix seconds."""
    if text[-1:] in _UNITS:
        with suppress(ValueError):
            return time.time() - durations.parse_duration(text)
    return parse_time(text, "a time like 2026-11-23T02:00:00Z, or an age like 10m, 2h or 1d")


def parsed(parser: Callable[[str], Any], metavar: str, help: str, *names: str) -> Any:  # noqa: A002, ANN401  as in typer
    """Declare an option. `parser` parses its value and its default; `help` must name the default."""
    return typer.Option(*names, metavar=metavar, parser=lambda value: parser(str(value)), show_default=False, help=help)


def number(help: str, least: int, most: float = inf, metavar: str = "N") -> Any:  # noqa: A002, ANN401  as in typer
    """Declare an option with a whole number within these limits."""
    allowed = f"at least {least}" if most == inf else f"{least} to {most}"
    return typer.Option(
        metavar=metavar,
        help=f"{help} Allowed: {allowed}.",
        parser=lambda value: values.whole_number(str(value), least, most),
    )


address = partial(parsed, parse_address, "HOST:PORT")
duration = partial(parsed, values.duration, "DURATION")
time_or_age = partial(parsed, parse_time_or_age, "TIME")

Redis: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help="Redis server. Default: AISM_REDIS__URL, then AISM_REDIS_URL, then the file of --config, then localhost.",
    ),
]
Prefix: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        metavar="NAME",
        help="Prefix of the keys of the fleet. Default: AISM_REDIS__PREFIX, then the file of --config, then aism.",
    ),
]
Config: TypeAlias = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in TOML; see config/engine.toml.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ReplyTimeout: TypeAlias = Annotated[
    float, duration("Longest wait for the reply of the engine. Default: 10s.", "--timeout")
]
AgentType: TypeAlias = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only agents of this type.")]
Limit: TypeAlias = Annotated[int, number("Show only the newest N.", 1)]


def _print_version(wanted: bool) -> None:  # noqa: FBT001  as typer calls it
    if wanted:
        print_line(aism_engine.__version__)
        raise typer.Exit


def _declare_shared_options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
    redis: Redis = None,
    prefix: Prefix = None,
    config: Config = None,
    timeout: ReplyTimeout = 10.0,
    json: Json = False,
) -> None:
    """Declare the options of `SHARED` for the help and for completion. `main` passes them to the command."""
