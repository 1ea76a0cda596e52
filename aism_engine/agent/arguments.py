"""Command-line arguments of programs that act for agents. Values that the engine would refuse are refused here."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from aism_engine import values

T = TypeVar("T")


def default_server() -> tuple[str, str]:
    """Return the URL of the server and the prefix of the keys, from the environment or their defaults.

    AISM_REDIS_URL is short for AISM_REDIS__URL, which wins if both are set.
    """
    url = os.environ.get("AISM_REDIS__URL") or os.environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
    return url, os.environ.get("AISM_REDIS__PREFIX") or "aism"


def add_server_options(parser: argparse.ArgumentParser, *, with_defaults: bool = True) -> None:
    url, prefix = default_server() if with_defaults else (argparse.SUPPRESS, argparse.SUPPRESS)
    url_help = "Redis server; default: AISM_REDIS__URL, then AISM_REDIS_URL, then localhost"
    prefix_help = "prefix of every key: names the fleet; default: AISM_REDIS__PREFIX, then aism"
    parser.add_argument("--redis", metavar="URL", default=url, help=url_help)
    parser.add_argument("--prefix", metavar="NAME", type=parsed(values.prefix), default=prefix, help=prefix_help)


def add_shared_options(parser: argparse.ArgumentParser, *, with_defaults: bool) -> None:
    """Add the options that may stand before or after a command.

    Those after it have no defaults: a default would replace the value of the same option before the command.
    """
    agent_id, timeout_s = os.environ.get("AISM_AGENT_ID") or os.environ.get("AGENT_ID"), 30.0
    defaults: dict[str, Any] = {"agent": agent_id, "timeout": timeout_s} if with_defaults else {}
    id_help = "id of the agent; default: AISM_AGENT_ID, then AGENT_ID"
    parser.add_argument("--agent", metavar="ID", default=defaults.get("agent", argparse.SUPPRESS), help=id_help)
    add_server_options(parser, with_defaults=with_defaults)
    timeout = {"metavar": "DURATION", "type": duration, "default": defaults.get("timeout", argparse.SUPPRESS)}
    parser.add_argument("--timeout", help="longest wait for a reply; default: 30s", **timeout)


def parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make an argparse type whose errors are shown: argparse hides the message of a ValueError."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _pair(text: str, parse_name: Callable[[str], str], parse_value: Callable[[str], T]) -> tuple[str, T]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected NAME=VALUE, got {values.shown(text)}")
    return parse_name(name), parse_value(value)


identifier = parsed(values.identifier)
type_name = parsed(values.type_name)
state_name = parsed(values.state_name)
percent = parsed(partial(values.number, least=0, most=100))
count = parsed(partial(values.whole_number, least=1, most=10_000))
duration = parsed(partial(values.duration, may_be_zero=True))
json_object = parsed(values.json_object)
label = parsed(partial(_pair, parse_name=values.type_name, parse_value=str))
measurement = parsed(partial(_pair, parse_name=values.measurement_name, parse_value=values.number))
