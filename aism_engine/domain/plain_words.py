"""Rewrites the errors of msgspec about wrong values and malformed messages, for people who do not know msgspec."""

import re
from typing import Final

from aism_engine.domain.protocol.names import (
    DEAD_LETTER_ID,
    IDENTIFIER,
    MEASUREMENT_NAME,
    PREFIX,
    STATE_NAME,
    TYPE_NAME,
)

_TYPES: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
    "bytes": "binary data",
}
_ANY_TYPE: Final = "|".join(_TYPES)
_TYPE: Final = re.compile(rf"`((?:{_ANY_TYPE})(?: \| (?:{_ANY_TYPE}))*)`")
_NAME: Final = "letters, digits, `.`, `_` and `-`, beginning with a letter or a digit"
PATTERNS: Final = {
    IDENTIFIER: f"an id of at most 128 {_NAME}",
    TYPE_NAME: f"a name of at most 64 {_NAME}",
    STATE_NAME: "a name of a state: at most 64 letters, digits, `.`, `_` and `-`, beginning with a letter",
    MEASUREMENT_NAME: f"a name of a measurement: at most 64 {_NAME}; `/` is allowed after the first character",
    r"\d{1,7}%?": "a number or a share, such as 3 or 80%",
    DEAD_LETTER_ID: "the id of a dead letter, such as 1763884800000-0",
    "(json|msgpack)": "json or msgpack",
    r"\S+:\d{1,5}": "an address HOST:PORT",
    PREFIX: "1 to 64 letters, digits, `.`, `_`, `{`, `}`, `:` and `-`",
    "(redis|rediss|unix)://": "a URL that begins with redis://, rediss:// or unix://",
}
_LIMITS: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def explain(error: Exception) -> str:
    """Describe what msgspec has raised for a message that it cannot decode or encode."""
    match error:
        case UnicodeError():
            return "text that is not valid UTF-8"
        case RecursionError():
            return "nested too deep"
        case OverflowError():
            return "an integer has more than 64 bits"
        case _:
            return in_plain_words(str(error))


def in_plain_words(message: str) -> str:
    """Rewrite a message of msgspec: the place of the value, then what was expected there."""
    text, _, where = message.partition(" - at ")
    text = re.sub(r"(JSON|MessagePack) (?:data )?is malformed: (.*) \(byte (\d+)\)", r"not \1 at byte \3: \2", text)
    text = text.replace("Input data was truncated", "the end of the message is missing")
    text = re.sub(r"Encoding objects of type (.+) is unsupported", r"a value of the type \1 cannot be encoded", text)
    text = re.sub(r"`[a-z]+` matching regex (.+)", _describe_pattern, text)
    text = re.sub(r"`str` of length >= 1\b", "text that is not empty", text)
    text = re.sub(r"(`str`)? of length (>=|<=) (\d+)", _describe_length, text)
    text = re.sub(r" (>=|<=|>|<) (-?[\d.]+)", lambda found: f", {_LIMITS[found[1]]} {float(found[2]):.15g}", text)
    text = _TYPE.sub(_describe_types, text)
    text = re.sub(r"Object missing required field (`.*`)", r"the field \1 is missing", text)
    text = re.sub(r"Object contains unknown field (`.*`)", r"there is no field \1", text)
    text = re.sub(r"^Invalid (enum )?value (.*)", r"\2 is not one of the values that are allowed here", text)
    text = re.sub(r"^Expected", "expected", text)
    place = where.replace("`", "").replace("key in $", "a name in $").replace("$[...]", "an entry")
    place = re.sub(r"\$\[(\d+)\]", lambda found: f"entry {int(found[1]) + 1}", place)
    place = place.replace("$.", "").replace("$", "").replace("[...]", ".*").strip()
    return f"{place}: {text}" if place else text


def _describe_types(found: re.Match[str]) -> str:
    return " or ".join(_TYPES.get(each, each) for each in found[1].split(" | "))


def _describe_length(found: re.Match[str]) -> str:
    unit = "characters" if found[1] else "entries"
    return f"{found[1] or ''} with {_LIMITS[found[2]]} {found[3]} {unit}"


def _describe_pattern(found: re.Match[str]) -> str:
    pattern = found[1].strip("'\"").replace("\\\\", "\\")
    known = pattern.removeprefix(r"\A").removeprefix("^").removesuffix(r"\Z")
    return PATTERNS.get(known, f"text of the form {known}")
