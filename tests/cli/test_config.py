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
async def test_all_that_is_wrong_is_told_at_once(cli: Call, wrong: Path, command: list[str]) -> None:
    """Each problem is a line with file and key, the code is 64, and no password is shown."""
    done = await cli(*command, str(wrong))
    lines = done.err.splitlines()
    assert (done.code, done.out, len(lines)) == (64, "", 3)
    for line, key in zip(lines, ("redis.url", "redis.prefiks", "lease.ttl"), strict=True):
        assert line.startswith(f"error: file {wrong}: {key}: ")
    assert "hush" not in done.err


async def test_programs_get_the_problems_too(cli: Call, wrong: Path) -> None:
    """`--json` has them in one object."""
    found = (await cli("config", "check", str(wrong), "--json")).json
    assert (found["ok"], len(found["problems"])) == (False, 3)


async def test_a_good_configuration_is_0(cli: Call) -> None:
    """So are the defaults, and the machines that we ship."""
    assert (await cli("config", "check")).code == 0
    assert (await cli("config", "check", "--json")).json == {
        "ok": True,
        "problems": [],
        "machines": ["journey", "open"],
    }


async def test_a_machine_that_cannot_be_loaded_makes_the_configuration_wrong(cli: Call, tmp_path: Path) -> None:
    """The settings may be right in themselves: what they point to counts."""
    (tmp_path / "bad.toml").write_text('[machine]\nname = "bad"\ninitial = "a"\n[states.a]\nto = ["b"]\n')
    (tmp_path / "engine.toml").write_text(f'[machines]\ndirectory = "{tmp_path}"\n')
    done = await cli("config", "check", str(tmp_path / "engine.toml"))
    assert done.code == 64
    assert 'unknown state "b"' in done.err


async def test_show_tells_value_and_source(cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is there; the password of the server is not."""
    (tmp_path / "engine.toml").write_text("[lease]\nttl = 9\n")
    monkeypatch.setenv("AISM_REDIS_URL", "redis://user:hush@localhost")
    found = (await cli("config", "show", "--config", str(tmp_path / "engine.toml"), "--json")).json
    assert found["lease.ttl"] == {"value": 9.0, "source": f"file {tmp_path / 'engine.toml'}"}
    assert found["redis.url"] == {"value": "redis://user:***@localhost", "source": "env AISM_REDIS_URL"}
    assert found["http.port"] == {"value": 9464, "source": "default"}
    assert "hush" not in (await cli("config", "show")).out


async def test_machines_check_names_every_problem(cli: Call, tmp_path: Path) -> None:
    """A good file does not hide a bad one, nor the other way round."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[machine]\nname = "good"\nopen = true\ninitial = "x"\n')
    bad.write_text('[machine]\nname = "bad"\ninitial = "a"\n[states.a]\nto = ["b"]\n[states.c]\nto = ["a"]\n')
    done = await cli("machines", "check", str(bad), str(good), str(tmp_path / "none.toml"))
    assert done.code == 64
    assert done.out == f"{good}: good; machine good, any states\n"
    assert f"{bad}:5: " in done.err
    assert "[states.c]" in done.err
    assert "none.toml: cannot be read" in done.err
    assert (await cli("machines", "check", str(good), "--json")).json == {
        "ok": True,
        "problems": [],
        "machines": ["good"],
    }


async def test_machines_list_and_show(cli: Call) -> None:
    """Those in use, for whom they are, and where each state leads."""
    found = {machine["name"]: machine for machine in (await cli("machines", "list", "--json")).json}
    assert found["journey"]["for"] == ["all who register"]
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
