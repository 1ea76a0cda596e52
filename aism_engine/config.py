"""Reading the settings: what is in force, and where each value came from.

The last that names a setting wins: the defaults here, the TOML file, `AISM_SECTION__KEY` in the environment, a flag.
Every value of every source is checked, also one that a later source overrides, and all problems are reported at once.
`reference()` writes config/engine.toml from the structs of settings.py.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import fields

from aism_engine.errors import ConfigError
from aism_engine.redact import redacted
from aism_engine.settings import Settings


class LoadedSettings(NamedTuple):
    """The settings in force, and the source of each: dotted key -> default, file PATH, env VARIABLE or flag."""

    settings: Settings
    sources: dict[str, str]


_SECTIONS = {section.name: section.type for section in fields(Settings)}
_SETTINGS = {f"{name}.{field.name}": field.type for name, section in _SECTIONS.items() for field in fields(section)}
_ALIASES = {"AISM_REDIS_URL": "redis.url"}  # the one variable that all our entry points share
_LONGEST_SHOWN = 80  # of a wrong value; enough to recognise it

_HEAD = """\
# Every setting of the AISM Engine, with its default. Durations are seconds, sizes are bytes.
#
# The last that names a setting wins: its default, this file, the environment, a flag of the command line. A variable
# is AISM_SECTION__KEY, such as AISM_LEASE__TTL=5 (tables as JSON); AISM_REDIS_URL is short for AISM_REDIS__URL.
# `aism-engine config check` says all that is wrong, `aism-engine config show` what is in force and where it came from.
"""


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> LoadedSettings:
    """Read all sources. `overrides` maps dotted keys to values or their text; None stands for a flag not given.

    Raises ConfigError with every problem of every source.
    """
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    sources = dict.fromkeys(_SETTINGS, "default")
    broken = set()
    for key, raw, source in chain(
        _from_file(path, problems) if path else (),
        _from_environment(os.environ if environ is None else environ),
        ((key, value, "flag") for key, value in (overrides or {}).items() if value is not None),
    ):
        section, _, name = key.partition(".")
        before = len(problems)
        if key not in _SETTINGS:
            problems.append(f"{source}: {key}: unknown setting{_hint(key, _SETTINGS)}")
            continue
        strict = source.startswith("file")
        values[section][name] = _converted(_SETTINGS[key], raw, f"{source}: {key}", problems, strict=strict)
        sources[key] = source
        if len(problems) > before:
            broken.add(section)
    sections = {}
    for section in (name for name in _SECTIONS if name not in broken):
        try:
            sections[section] = _SECTIONS[section](**values[section])
        except ValueError as error:  # two of its settings contradict each other
            origins = {sources[f"{section}.{name}"] for name in values[section]}
            problems.append(f"{', '.join(sorted(origins))}: {section}.{error}")
    if problems:
        raise ConfigError(problems)
    return LoadedSettings(Settings(**sections), sources)


def descriptions() -> dict[str, str]:
    """What each setting is, in one line with its unit, by dotted key."""
    return {
        key: next(meta.description for meta in get_args(kind)[1:] if meta.description)
        for key, kind in _SETTINGS.items()
    }


def reference() -> str:
    """The text of config/engine.toml: every setting with its default and what it is."""
    lines, described, defaults = [_HEAD], descriptions(), Settings()
    for name, section in _SECTIONS.items():
        lines += [f"# {section.__doc__}", f"[{name}]"]
        for field in fields(section):
            default = msgspec.json.encode(getattr(getattr(defaults, name), field.name)).decode()  # is TOML too
            lines += [f"# {described[f'{name}.{field.name}']}", f"{field.name} = {default}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _from_file(path: Path, problems: list[str]) -> Iterator[tuple[str, object, str]]:
    source = f"file {path}"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{source}: cannot be read: {error.strerror}")
        return
    except (ValueError, RecursionError) as error:  # of the syntax, with its line, or of the encoding
        problems.append(f"{source}: not TOML: {error}")
        return
    for section, table in document.items():
        if section not in _SECTIONS:
            problems.append(f"{source}: {section}: unknown section{_hint(section, _SECTIONS)}")
        elif not isinstance(table, dict):
            problems.append(f"{source}: {section}: expected a table, got {_shown(table)}")
        else:
            yield from ((f"{section}.{name}", value, source) for name, value in table.items())


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    yield from ((key, environ[name], f"env {name}") for name, key in _ALIASES.items() if name in environ)
    for name in sorted(environ):
        section, separator, key = name.removeprefix("AISM_").partition("__")
        if name.startswith("AISM_") and separator:
            yield f"{section}.{key}".lower(), environ[name], f"env {name}"


def _converted(kind: object, raw: object, where: str, problems: list[str], *, strict: bool) -> object:
    """Convert one value. Each thing wrong with it is a line of `problems`, and the result is then void."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(bare) is dict or (isinstance(bare, type) and issubclass(bare, Struct)):
        return _converted_table(bare, raw, where, problems, strict=strict)
    try:
        return msgspec.convert(raw, kind, strict=strict)
    except msgspec.ValidationError as error:
        choice = " or ".join(map(repr, get_args(bare))) if get_origin(bare) is Literal else ""
        expected = choice or str(error).removeprefix("Expected ").partition(", got")[0]
        problems.append(f"{where}: expected {expected}, got {_shown(raw)}")
        return None


def _converted_table(kind: Any, raw: object, where: str, problems: list[str], *, strict: bool) -> object:  # noqa: ANN401  a type form
    """Convert a table in a section: of names that are free, or of a struct, whose names are all to be given."""
    before, table = len(problems), raw
    if isinstance(raw, str) and not strict:
        with suppress(msgspec.DecodeError, RecursionError):
            table = msgspec.json.decode(raw)
    if not isinstance(table, dict):
        problems.append(f"{where}: expected a table, got {_shown(raw)}")
        return None
    free = get_origin(kind) is dict
    known = dict.fromkeys(table, get_args(kind)[1]) if free else {field.name: field.type for field in fields(kind)}
    problems += (f"{where}.{name}: unknown setting{_hint(name, known)}" for name in table if name not in known)
    problems += (f"{where}.{name}: missing" for name in known if name not in table)
    given = [name for name in known if name in table]
    values = {name: _converted(known[name], table[name], f"{where}.{name}", problems, strict=True) for name in given}
    try:
        return values if free or len(problems) > before else kind(**values)
    except ValueError as error:  # two of its settings contradict each other
        problems.append(f"{where}.{error}")
        return None


def _shown(value: object) -> str:
    text = redacted(repr(value))
    if "://" not in text:  # a URL that lacks its head may hold a password all the same
        text = re.sub(r":\S*@", ":***@", text)
    return text[:_LONGEST_SHOWN]


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {nearest[0]}?" if nearest else ""
