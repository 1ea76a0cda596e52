"""Argument types of `aism`: values that the engine would refuse are refused before they are sent."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from aism_engine.domain.protocol.names import is_identifier, is_measurement_name, is_state_name, is_type_name


def _name_type(what: str, is_valid: Callable[[str], bool]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not is_valid(text):
            raise argparse.ArgumentTypeError(f"{text!r} is not a valid {what}: use letters, digits, `.`, `_` and `-`")
        return text

    return check


identifier = _name_type("id", is_identifier)
type_name = _name_type("name", is_type_name)
state_name = _name_type("state name", is_state_name)
_measurement_name = _name_type("measurement name", is_measurement_name)


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text!r}")
    return value


def seconds(text: str) -> float:
    return _number(text, 0, 1e6)


def count(text: str) -> int:
    return int(_number(text, 1, 10_000))


def percent(text: str) -> float:
    return _number(text, 0, 100)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def label(text: str) -> tuple[str, str]:
    name, value = _pair(text)
    return type_name(name), value


def measurement(text: str) -> tuple[str, float]:
    name, value = _pair(text)
    return _measurement_name(name), _number(value, -1e308, 1e308)


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value
