"""The header of each script says what the script does, and an engine keeps the scripts with which it was started."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from aism_engine.clock import SystemClock
from aism_engine.store import scripts
from aism_engine.store.keys import Keys
from aism_engine.store.store import Store

LUA = files("aism_engine.store") / "lua"
SCRIPTS = sorted(path.name.removesuffix(".lua") for path in LUA.iterdir() if path.name.endswith(".lua"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_codes_of_a_script_are_the_same_in_its_header_its_code_and_its_enum(name: str) -> None:
    header, code = _split(name)
    expected = getattr(scripts, name.upper()).codes
    described = {
        found[0]: int(found[1]) for found in re.findall(r"^--   ([A-Z_]+) +(-?\d+)  +\S", header, re.MULTILINE)
    }
    assert described == expected
    defined = re.search(r"^local code = \{(.*?)\}", code, re.MULTILINE | re.DOTALL)
    assert {
        name: int(value) for name, value in re.findall(r"(\w+) = (-?\d+)", defined[1] if defined else "")
    } == expected
    assert set(re.findall(r"\bcode\.(\w+)", code)) == expected.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_header_of_a_script_lists_its_keys_its_arguments_and_what_it_returns(name: str) -> None:
    header, code = _split(name)
    assert re.search(r"^-- Returns ", header, re.MULTILINE)
    for array in ("KEYS", "ARGV"):
        described = re.findall(rf"^-- {array}\[(\d+)(\.\.)?\] ", header, re.MULTILINE)
        assert [int(number) for number, _ in described] == list(range(1, len(described) + 1))
        assert {int(number) for number in re.findall(rf"\b{array}\[(\d+)\]", code)} <= set(range(1, len(described) + 1))
        assert bool(described) == bool(re.search(rf"\b{array}\b", code))


def _split(name: str) -> tuple[str, str]:
    """Split a script into its header and its code."""
    lines = (LUA / f"{name}.lua").read_text().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "".join(lines[:end]), "".join(lines[end:])


def test_an_upgrade_does_not_change_the_scripts_of_a_running_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It replaces the files. A standby has called few scripts until then."""
    found: list[scripts.Script] = [getattr(scripts, name.upper()) for name in SCRIPTS]
    for script in found:
        vars(script).pop("text", None)
        vars(script).pop("digest", None)
    Store(None, Keys("aism"), SystemClock())
    monkeypatch.setattr(scripts, "_LUA", tmp_path)
    assert all(script.text and script.digest for script in found)
