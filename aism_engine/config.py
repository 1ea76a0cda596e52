"""Loads the settings, and records where each came from.

Later sources override earlier ones: the defaults in settings.py, the TOML file, `AISM_SECTION__KEY` in the environment,
command-line flags. Every value of every source is validated, even one that a later source overrides, and all problems
are reported at once. `make config` writes config/engine.toml with `render_reference()`.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import fields

from aism_engine.domain.plain_words import explain, in_plain_words
from aism_engine.domain.policy import DURATION
from aism_engine.durations import EXPECTED_DURATION, format_duration, parse_duration
from aism_engine.errors import ConfigError
from aism_engine.redact import redacted
from aism_engine.settings import Settings


class LoadedSettings(NamedTuple):
    """Settings and the source of each, by dotted key: `default`, `file PATH`, `env VARIABLE` or `flag`."""

    settings: Settings
    sources: dict[str, str]


_SECTIONS: Final = {section.name: section.type for section in fields(Settings)}
_SETTINGS: Final = {
    f"{name}.{field.name}": field.type for name, section in _SECTIONS.items() for field in fields(section)
}
_ALIASES: Final = {"AISM_REDIS_URL": "redis.url"}  # the variable that `aism` and `aism-engine` share
_SHOWN_CHARACTERS: Final = 80  # how much of a wrong value a problem shows

_REFERENCE_HEADER: Final = """\
# Every setting of the AISM Engine, with its default. A duration is a text such as "500ms", "90s", "10m", "2h" or
# "1d", or a number of seconds. Sizes are bytes.
# `make config` generates this file from aism_engine/settings.py and aism_engine/domain/policy.py.
#
# Later sources override earlier ones: the default, this file, the environment, a command-line flag. The environment
# variable of a setting is AISM_SECTION__KEY, for example AISM_LEASE__TTL=5; tables and lists are JSON. AISM_REDIS_URL
# is short for AISM_REDIS__URL. `aism-engine config check` reports all problems; `aism-engine config show` prints the
# settings in force and their sources.
"""


def load_settings(
    path: Path | None = None, *, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None
) -> LoadedSettings:
    """Load the settings from all sources.

    `overrides` maps the dotted key of each flag to its value, which may be text as in the environment, or to None if
    the flag was not given. Raises ConfigError with every problem of every source.
    """
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    sources = dict.fromkeys(_SETTINGS, "default")
    invalid_sections = set()
    for key, raw, source in chain(
        _from_file(path, problems) if path else (),
        _from_environment(os.environ if environ is None else environ),
        ((key, value, "flag") for key, value in (overrides or {}).items() if value is not None),
    ):
        section, _, name = key.partition(".")
        known_problems = len(problems)
        if key not in _SETTINGS:
            problems.append(f"{source}: {key}: unknown setting{_suggestion(key, _SETTINGS)}")
            continue
        strict = source.startswith("file")
        values[section][name] = _convert(_SETTINGS[key], raw, f"{source}: {key}", problems, strict=strict)
        sources[key] = source
        if len(problems) > known_problems:
            invalid_sections.add(section)
    sections = {}
    for section in (name for name in _SECTIONS if name not in invalid_sections):
        try:
            sections[section] = _SECTIONS[section](**values[section])
        except ValueError as error:  # two settings of the section contradict each other
            origins = {sources[f"{section}.{name}"] for name in values[section]}
            problems.append(f"{', '.join(sorted(origins))}: {section}.{error}")
    if problems:
        raise ConfigError(problems)
    return LoadedSettings(Settings(**sections), sources)


def descriptions() -> dict[str, str]:
    """Return the one-line description of each setting, by dotted key."""
    return {key: next(each for each in get_args(kind)[1:] if isinstance(each, str)) for key, kind in _SETTINGS.items()}


def as_toml(key: str, value: object) -> str:
    """Write the value of a setting in TOML on one line, a duration with its unit."""
    return _as_toml(_SETTINGS[key], value)


def _as_toml(kind: object, value: object) -> str:
    if isinstance(value, dict):
        kinds = _kinds_of_table(_without_annotation(kind), value)
        entries = (f"{_toml_key(name)} = {_as_toml(kinds[name], each)}" for name, each in value.items())
        return f"{{ {', '.join(entries)} }}" if value else "{}"
    if DURATION in get_args(kind) and isinstance(value, float):
        value = format_duration(value)
    # Other values are written as in JSON, but TOML does not allow the character DEL.
    return msgspec.json.encode(value).decode().replace("\x7f", r"\u007f")


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _as_toml(str, name)


def render_reference() -> str:
    """Return the text of config/engine.toml: every setting with its description and default."""
    lines, described, defaults = [_REFERENCE_HEADER], descriptions(), Settings()
    for name, section in _SECTIONS.items():
        lines += [f"# {section.__doc__}", f"[{name}]"]
        for field in fields(section):
            default = as_toml(f"{name}.{field.name}", getattr(getattr(defaults, name), field.name))
            lines += [f"# {described[f'{name}.{field.name}']}", f"{field.name} = {default}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _from_file(path: Path, problems: list[str]) -> Iterator[tuple[str, object, str]]:
    import tomllib  # noqa: PLC0415  slow to import

    source = f"file {path}"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problems.append(f"{source}: cannot be read: {error.strerror}")
        return
    except (ValueError, RecursionError) as error:  # wrong syntax or wrong encoding
        problems.append(f"{source}: not TOML: {explain(error)}")
        return
    for section, table in document.items():
        if section not in _SECTIONS:
            problems.append(f"{source}: {section}: unknown section{_suggestion(section, _SECTIONS)}")
        elif not isinstance(table, dict):
            problems.append(f"{source}: {section}: expected a table, got {_shown(table)}")
        else:
            yield from ((f"{section}.{name}", value, source) for name, value in table.items())


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    """Yield what the environment sets. An empty variable counts as not set, as in `aism`."""
    yield from ((key, environ[name], f"env {name}") for name, key in _ALIASES.items() if environ.get(name))
    for name in sorted(name for name, value in environ.items() if value):
        section, separator, key = name.removeprefix("AISM_").partition("__")
        if name.startswith("AISM_") and separator:
            yield f"{section}.{key}".lower(), environ[name], f"env {name}"


def _convert(kind: object, raw: object, where: str, problems: list[str], *, strict: bool) -> object:
    """Convert one value. If `strict`, it must have its type already, as in TOML; otherwise it may be text.

    Problems are appended to `problems`; the result is then invalid.
    """
    bare = _without_annotation(kind)
    if isinstance(raw, str) and raw.lstrip().startswith("[") and not strict:  # a list in the environment is JSON
        with suppress(msgspec.DecodeError, RecursionError):
            raw = msgspec.json.decode(raw)
    if get_origin(bare) is dict or (isinstance(bare, type) and issubclass(bare, Struct)):
        return _convert_table(bare, raw, where, problems, strict=strict)
    is_duration = DURATION in get_args(kind)
    try:
        value = parse_duration(raw) if is_duration and isinstance(raw, str) else raw
        return msgspec.convert(value, kind, strict=strict)
    except ValueError as error:  # msgspec's ValidationError is one, too
        if is_duration:
            expected = f"{EXPECTED_DURATION}, more than 0 and at most {format_duration(DURATION.le or 0)}"
        elif get_origin(bare) is Literal or str(error).startswith("Invalid enum value"):
            expected = " or ".join(map(repr, _choices(bare)))
        else:
            expected = in_plain_words(str(error)).replace("expected ", "").partition(", got")[0]
        problems.append(f"{where}: expected {expected}, got {_shown(raw)}")
        return None


def _choices(kind: object) -> list[object]:
    """Return the values of every Literal within a type."""
    inner = get_args(kind)
    return list(inner) if get_origin(kind) is Literal else [value for each in inner for value in _choices(each)]


def _convert_table(kind: Any, raw: object, where: str, problems: list[str], *, strict: bool) -> object:  # noqa: ANN401  a type form
    """Convert a table inside a section: a dict with free keys, or a struct whose fields are all required."""
    known_problems, table = len(problems), raw
    if isinstance(raw, str) and not strict:
        with suppress(msgspec.DecodeError, RecursionError):
            table = msgspec.json.decode(raw)
    if not isinstance(table, dict):
        problems.append(f"{where}: expected a table, got {_shown(raw)}")
        return None
    known = _kinds_of_table(kind, table)
    problems += (f"{where}.{name}: unknown setting{_suggestion(name, known)}" for name in table if name not in known)
    problems += (f"{where}.{name}: missing" for name in known if name not in table)
    given = [name for name in known if name in table]
    values = {name: _convert(known[name], table[name], f"{where}.{name}", problems, strict=True) for name in given}
    try:
        return values if get_origin(kind) is dict or len(problems) > known_problems else kind(**values)
    except ValueError as error:  # two settings of the table contradict each other
        problems.append(f"{where}.{error}")
        return None


def _kinds_of_table(kind: Any, table: Mapping[str, object]) -> dict[str, Any]:  # noqa: ANN401  a type form
    """Return the type of each value, by name. A dict may have any names, so its names are those in `table`."""
    if get_origin(kind) is dict:
        return dict.fromkeys(table, get_args(kind)[1])
    return {field.name: field.type for field in fields(kind)}


def _without_annotation(kind: object) -> Any:  # noqa: ANN401  a type form
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _shown(value: object) -> str:
    text = redacted(repr(value))
    if "://" not in text:  # a URL without its scheme may still hold a password
        text = re.sub(r":\S*@", ":***@", text)
    return text[:_SHOWN_CHARACTERS]


def _suggestion(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {nearest[0]}?" if nearest else ""
