"""Command-line arguments of programs that act for agents. Values that the engine would refuse are refused here."""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from aism_engine.domain.protocol.names import is_identifier, is_measurement_name, is_state_name, is_type_name

T = TypeVar("T")


def default_server() -> tuple[str, str]:
    """Return the URL of the server and the prefix of the keys, from the environment or their defaults."""
    url = os.environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
    return url, os.environ.get("AISM_REDIS__PREFIX") or "aism"


def add_server_options(parser: argparse.ArgumentParser) -> None:
    url, prefix = default_server()
    url_help = "Redis server; default: AISM_REDIS_URL, then localhost"
    prefix_help = "prefix of every key: names the fleet; default: AISM_REDIS__PREFIX, then aism"
    parser.add_argument("--redis", metavar="URL", default=url, help=url_help)
    parser.add_argument("--prefix", metavar="NAME", default=prefix, help=prefix_help)


# --- types ------------------------------------------------------------------------------------------------------------


def _name(text: str, what: str, is_valid: Callable[[str], bool]) -> str:
    if not is_valid(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid {what}: use letters, digits, `.`, `_` and `-`")
    return text


def _number(text: str, least: float, most: float, parse: Callable[[str], float] = float) -> float:
    try:
        value = parse(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text!r}")
    return value


def _pair(text: str, name_type: Callable[[str], str], value_type: Callable[[str], T]) -> tuple[str, T]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name_type(name), value_type(value)


identifier = partial(_name, what="id", is_valid=is_identifier)
type_name = partial(_name, what="name", is_valid=is_type_name)
state_name = partial(_name, what="state name", is_valid=is_state_name)
measurement_name = partial(_name, what="measurement name", is_valid=is_measurement_name)
seconds = partial(_number, least=0, most=1e6)
percent = partial(_number, least=0, most=100)
count = partial(_number, least=1, most=10_000, parse=int)
label = partial(_pair, name_type=type_name, value_type=str)
measurement = partial(_pair, name_type=measurement_name, value_type=partial(_number, least=-1e308, most=1e308))


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value
