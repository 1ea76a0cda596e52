"""Laws of `config` and `machines`."""

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Call

WRONG = """
[redis]
url = "http://user:hush@localhost"
prefiks = "x"
[lease]
ttl = -1
"""


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    file = tmp_path / "engine.toml"
    file.write_text(WRONG)
    return file


@pytest.mark.parametrize("command", [["config", "check"], ["run", "--config"]], ids=" ".join)
async def test_every_problem_is_printed_at_once(cli: Call, wrong: Path, command: list[str]) -> None:
    """Each problem is one line with file and key; no password is shown."""
    done = await cli(*command, str(wrong))
    lines = done.err.splitlines()
    assert (done.code, done.out, len(lines)) == (64, "", 3)
    for line, key in zip(lines, ("redis.url", "redis.prefiks", "lease.ttl"), strict=True):
        assert line.startswith(f"error: file {wrong}: {key}: ")
    assert "hush" not in done.err


async def test_json_has_every_problem(cli: Call, wrong: Path) -> None:
    found = (await cli("config", "check", str(wrong), "--json")).json
    assert (found["ok"], len(found["problems"])) == (False, 3)


async def test_the_defaults_and_the_shipped_machines_are_valid(cli: Call) -> None:
    assert (await cli("config", "check")).code == 0
    assert (await cli("config", "check", "--json")).json == {
        "ok": True,
        "problems": [],
        "machines": ["journey", "open"],
    }


async def test_check_loads_the_machines_that_the_settings_name(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[machine]\nname = "bad"\ninitial = "a"\n[states.a]\nto = ["b"]\n')
    (tmp_path / "engine.toml").write_text(f'[machines]\ndirectory = "{tmp_path}"\n')
    done = await cli("config", "check", str(tmp_path / "engine.toml"))
    assert done.code == 64
    assert 'unknown state "b"' in done.err


async def test_show_has_value_and_source_and_hides_passwords(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine.toml").write_text("[lease]\nttl = 9\n")
    monkeypatch.setenv("AISM_REDIS_URL", "redis://user:hush@localhost")
    found = (await cli("config", "show", "--config", str(tmp_path / "engine.toml"), "--json")).json
    assert found["lease.ttl"] == {"value": 9.0, "source": f"file {tmp_path / 'engine.toml'}"}
    assert found["redis.url"] == {"value": "redis://user:***@localhost", "source": "env AISM_REDIS_URL"}
    assert found["http.port"] == {"value": 9464, "source": "default"}
    assert "hush" not in (await cli("config", "show")).out


async def test_shown_settings_are_toml_that_sets_the_same_values(cli: Call, tmp_path: Path) -> None:
    given, shown = tmp_path / "given.toml", tmp_path / "shown.toml"
    given.write_text(
        '[machines]\nby_type = { "a.b" = "journey", scribe = "open" }\n[logs]\nfile = "/a \\u007f\\"b\\""\n'
        '[liveness.by_type]\nbuilder = { silent_after = "90s", lost_after = "1h" }\n'
    )
    lines = (await cli("config", "show", "--config", str(given))).out.splitlines()[1:]
    rows = [re.fullmatch(r"(\S+) +(.*?) {2,}(default|file .*)", line) for line in lines]
    settings = [(row[1], row[2]) for row in rows if row is not None]
    assert len(settings) == len(lines)
    assert dict(settings)["machines.by_type"] == '{ "a.b" = "journey", scribe = "open" }'
    assert dict(settings)["liveness.by_type"] == '{ builder = { silent_after = "90s", lost_after = "1h" } }'
    shown.write_text("".join(f"{name} = {value}\n" for name, value in settings))
    found = [(await cli("config", "show", "--config", str(file), "--json")).json for file in (given, shown)]
    first, again = ({name: setting["value"] for name, setting in each.items()} for each in found)
    assert again == first


async def test_machines_check_prints_valid_files_and_every_problem(cli: Call, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[machine]\nname = "good"\nopen = true\ninitial = "x"\n')
    bad.write_text('[machine]\nname = "bad"\ninitial = "a"\n[states.a]\nto = ["b"]\n[states.c]\nto = ["a"]\n')
    done = await cli("machines", "check", str(bad), str(good), str(tmp_path / "none.toml"))
    assert done.code == 64
    assert done.out == f"{good}: ok; machine good, arbitrary states\n"
    assert f"{bad}:5: " in done.err
    assert "[states.c]" in done.err
    assert "none.toml: cannot be read" in done.err
    assert (await cli("machines", "check", str(good), "--json")).json == {
        "ok": True,
        "problems": [],
        "machines": ["good"],
    }


async def test_a_file_that_is_not_utf_8_is_a_problem(cli: Call, tmp_path: Path) -> None:
    (file := tmp_path / "latin.toml").write_bytes(b'[machine]\nname = "caf\xe9"\n')
    done = await cli("machines", "check", str(file))
    assert (done.code, done.err) == (64, f"error: {file}: cannot be read: not UTF-8\n")


async def test_own_machines_are_added_to_the_shipped_ones(cli: Call, tmp_path: Path) -> None:
    """An own machine can extend a shipped one, and the default of `machines.default` stays valid."""
    settings, own = tmp_path / "engine.toml", tmp_path / "own"
    settings.write_text(f'[machines]\ndirectory = "{own}"\nby_type = {{ scribe = "scribe" }}\n')
    own.mkdir()
    (own / "scribe.toml").write_text('[machine]\nname = "scribe"\nextends = "journey"\n')
    found = (await cli("machines", "list", "--config", str(settings), "--json")).json
    assert {machine["name"]: machine["applies_to"] for machine in found} == {
        "scribe": ["type scribe"],
        "journey": ["all registered agents"],
        "open": ["all unregistered agents"],
    }
    checked = await cli("machines", "check", str(own / "scribe.toml"), "--json")
    assert (checked.code, checked.json["machines"]) == (0, ["scribe"])


async def test_an_own_machine_replaces_the_shipped_one_of_its_name(cli: Call, tmp_path: Path) -> None:
    settings = tmp_path / "engine.conf"
    settings.write_text(f'[machines]\ndirectory = "{tmp_path}"\n')
    (tmp_path / "mine.toml").write_text('[machine]\nname = "journey"\nversion = 7\nopen = true\ninitial = "x"\n')
    found = (await cli("machines", "list", "--config", str(settings), "--json")).json
    assert {machine["name"]: machine["version"] for machine in found} == {"journey": 7, "open": 1}


async def test_machines_list_and_show(cli: Call) -> None:
    found = {machine["name"]: machine for machine in (await cli("machines", "list", "--json")).json}
    assert found["journey"]["applies_to"] == ["all registered agents"]
    shown = (await cli("machines", "show", "journey", "--json")).json
    assert shown["states"]["offline"]["to"] == ["bootstrap"]
    assert "bootstrap" in (await cli("machines", "show", "journey")).out
    assert (await cli("machines", "show", "nothing")).code == 1


async def test_machines_graph_draws_every_transition(cli: Call) -> None:
    """In Mermaid, each state under an id of its own."""
    states = (await cli("machines", "show", "journey", "--json")).json["states"]
    lines = (await cli("machines", "graph", "journey")).out.splitlines()
    names = {name_id: name for name, name_id in re.findall(r'state "(.+)" as (s\d+)', "\n".join(lines))}
    drawn = {(names[start], names[end]) for start, end in re.findall(r"(s\d+) --> (s\d+)", "\n".join(lines))}
    assert lines[0] == "stateDiagram-v2"
    assert drawn == {(name, target) for name, state in states.items() for target in state["to"]}


async def test_a_byte_order_mark_at_the_start_of_a_file_is_accepted(cli: Call, tmp_path: Path) -> None:
    """Editors on Windows write one, into settings and machines."""
    machine, settings = tmp_path / "good.toml", tmp_path / "engine.toml"
    machine.write_text('[machine]\nname = "good"\nopen = true\ninitial = "x"\n', encoding="utf-8-sig")
    settings.write_text(
        f'[machines]\ndirectory = "{tmp_path}"\ndefault = "good"\nunregistered = "good"\n', encoding="utf-8-sig"
    )
    assert (await cli("machines", "check", str(machine))).code == 0
    settings.rename(tmp_path / "engine.conf")
    assert (await cli("config", "check", str(tmp_path / "engine.conf"), "--json")).json["machines"] == [
        "good",
        "journey",
        "open",
    ]
