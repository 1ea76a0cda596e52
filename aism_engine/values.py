"""Parses values that people write as arguments of `aism` and `aism-engine`.

Each function raises ValueError with a message for people.
"""

import json
import re
from functools import partial
from math import inf, isfinite, nan
from typing import Any, Final

from aism_engine.domain.plain_words import PATTERNS
from aism_engine.domain.protocol.names import (
    DEAD_LETTER_ID,
    IDENTIFIER,
    MEASUREMENT_NAME,
    PREFIX,
    STATE_NAME,
    TYPE_NAME,
)
from aism_engine.durations import EXPECTED_DURATION, MAX_DURATION_S, format_duration, parse_duration

_MAX_SHOWN: Final = 80
_MAX_DEPTH: Final = 100
"""Maximum depth of a JSON object: an arbitrary number. The decoder of the engine accepts far deeper objects."""


def shown(text: str) -> str:
    """Quote a text for a message; only the beginning of a long one."""
    quoted = repr(text)
    return quoted if len(quoted) <= _MAX_SHOWN else f"{quoted[:_MAX_SHOWN]}…"


def _name(text: str, pattern: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError(f"expected {PATTERNS[pattern]}, got {shown(text)}")
    return text


identifier = partial(_name, pattern=IDENTIFIER)
type_name = partial(_name, pattern=TYPE_NAME)
state_name = partial(_name, pattern=STATE_NAME)
measurement_name = partial(_name, pattern=MEASUREMENT_NAME)
dead_letter_id = partial(_name, pattern=DEAD_LETTER_ID)
prefix = partial(_name, pattern=PREFIX)


def number(text: str, least: float = -inf, most: float = inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    return _within(text, value, "a number", least, most)


def whole_number(text: str, least: int, most: float = inf) -> int:
    try:
        value: float = int(text)
    except ValueError:
        value = nan
    return int(_within(text, value, "a whole number", least, most))


def _within(text: str, value: float, kind: str, least: float, most: float) -> float:
    if -inf < value < inf and least <= value <= most:  # an integer may be too large for `isfinite`
        return value
    limits = "" if least == -inf else f" of at least {least}" if most == inf else f" from {least} to {most}"
    raise ValueError(f"expected {kind}{limits}, got {shown(text)}")


def duration(text: str, *, may_be_zero: bool = False) -> float:
    """Parse a duration of at most a year."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = -1.0
    if 0 < seconds <= MAX_DURATION_S or (may_be_zero and seconds == 0):
        return seconds
    least = "" if may_be_zero else "more than 0 and "
    raise ValueError(
        f"expected {EXPECTED_DURATION}, {least}at most {format_duration(MAX_DURATION_S)}, got {shown(text)}"
    )


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object that the engine accepts, where no name is given twice."""
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_object
        )
        json.dumps(value, ensure_ascii=False).encode()
        problem = f"it is nested deeper than {_MAX_DEPTH}" if _depth(value) > _MAX_DEPTH else ""
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        problem = f"it is not JSON from character {error.pos + 1}: {shown(rest)}" if rest else "its end is missing"
    except UnicodeEncodeError:
        problem = "it has half of a surrogate pair"
    except RecursionError:
        problem = f"it is nested deeper than {_MAX_DEPTH}"
    except ValueError as error:  # raised by a function below
        problem = str(error)
    if not problem and isinstance(value, dict):
        return value
    raise ValueError(f"expected a JSON object: {problem or f'got {shown(text)}'}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(shown(name) for name in names if names.count(name) > 1)} is given twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:  # noqa: PLR2004  digits of a 64-bit integer
        raise ValueError(f"{shown(text)} has more than 64 bits")
    return value


def _finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _depth(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0) if isinstance(value, dict | list) else 0
