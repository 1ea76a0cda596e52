"""Command-line arguments of programs that act for agents. Values that the engine would refuse are refused here."""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any, TypeVar

from aism_engine.domain.protocol.names import is_identifier, is_measurement_name, is_state_name, is_type_name
from aism_engine.durations import MAX_DURATION_S, format_duration, parse_duration

T = TypeVar("T")


def default_server() -> tuple[str, str]:
    """Return the URL of the server and the prefix of the keys, from the environment or their defaults."""
    url = os.environ.get("AISM_REDIS__URL") or os.environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
    return url, os.environ.get("AISM_REDIS__PREFIX") or "aism"


def add_server_options(parser: argparse.ArgumentParser, *, with_defaults: bool = True) -> None:
    url, prefix = default_server() if with_defaults else (argparse.SUPPRESS, argparse.SUPPRESS)
    url_help = "Redis server; default: AISM_REDIS_URL, then localhost"
    prefix_help = "prefix of every key: names the fleet; default: AISM_REDIS__PREFIX, then aism"
    parser.add_argument("--redis", metavar="URL", default=url, help=url_help)
    parser.add_argument("--prefix", metavar="NAME", default=prefix, help=prefix_help)


def add_shared_options(parser: argparse.ArgumentParser, *, with_defaults: bool) -> None:
    """Add the options that stand before or after a command: there without defaults, so that they replace no value."""
    agent_id, timeout_s = os.environ.get("AISM_AGENT_ID") or os.environ.get("AGENT_ID"), 30.0
    defaults: dict[str, Any] = {"agent": agent_id, "timeout": timeout_s} if with_defaults else {}
    id_help = "id of the agent; default: AISM_AGENT_ID, then AGENT_ID"
    parser.add_argument("--agent", metavar="ID", default=defaults.get("agent", argparse.SUPPRESS), help=id_help)
    add_server_options(parser, with_defaults=with_defaults)
    timeout = {"metavar": "DURATION", "type": duration, "default": defaults.get("timeout", argparse.SUPPRESS)}
    parser.add_argument("--timeout", help="longest wait for a reply; default: 30s", **timeout)


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
percent = partial(_number, least=0, most=100)
count = partial(_number, least=1, most=10_000, parse=int)
label = partial(_pair, name_type=type_name, value_type=str)
measurement = partial(_pair, name_type=measurement_name, value_type=partial(_number, least=-1e308, most=1e308))


def duration(text: str) -> float:
    """Parse a duration of at most a year; 0 means not to wait."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds > MAX_DURATION_S:
        raise argparse.ArgumentTypeError(f"expected at most {format_duration(MAX_DURATION_S)}, got {text!r}")
    return seconds


def _integer(text: str) -> int:
    if not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"{text} has more than 64 bits")
    return value


def _finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object that the engine accepts: numbers are finite and fit into 64 bits, text has no surrogates."""
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("expected a JSON object: it has half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value
