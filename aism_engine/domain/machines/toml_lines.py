"""Line numbers of tables and keys in a TOML file, which tomllib does not report. Good enough for hand-written files."""

import re
from typing import TypeAlias

Path: TypeAlias = tuple[str, ...]
"""Names of nested tables, and of a key in the last one."""

_LONG_STRING = re.compile(r'"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'')
_HEADER = re.compile(r"\s*\[(.+?)\]\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([^=#\[\]]+?)\s*=")
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")


def line_numbers(text: str) -> dict[Path, int]:
    """Return the line of each table and key, and 1 for the file."""
    line_of: dict[Path, int] = {(): 1}
    table: Path = ()
    text = _LONG_STRING.sub(lambda string: "\n" * string[0].count("\n"), text)  # a long string may contain a key
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            path = table = _parts(header[1])
        elif key := _KEY.match(line):
            path = table + _parts(key[1])
        else:
            continue
        for length in range(1, len(path) + 1):
            line_of.setdefault(path[:length], number)
    return line_of


def _parts(key: str) -> Path:
    return tuple("".join(part) for part in _PART.findall(key))
