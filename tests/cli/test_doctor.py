"""Laws of `doctor`: its exit codes, what people see and what programs get."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call
from tests.support.server import test_server_binary


@pytest.fixture(scope="module")
def safe() -> Iterator[EmbeddedServer]:
    """A server that keeps what it is given; the one of the other tests keeps nothing."""
    with EmbeddedServer(test_server_binary()) as server:
        yield server


async def test_a_server_that_can_lose_nothing_is_0(cli: Call, safe: EmbeddedServer) -> None:
    """Notes are no reason to fail."""
    done = await cli("doctor", "--redis", safe.url)
    assert (done.code, done.err) == (0, "")
    assert "note " in done.out
    assert max(map(len, done.out.splitlines())) <= 110


async def test_a_server_that_can_lose_something_is_1(fleet: Call) -> None:
    """The danger comes first, with its reason and the way to mend it."""
    done = await fleet("doctor")
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[1].startswith("danger ")
    assert "Why: " in done.out
    assert "Fix: CONFIG SET appendonly yes" in done.out


async def test_programs_get_every_finding(fleet: Call, prefix: str) -> None:
    """`--json` has all of it, in order, and says whether it is well."""
    done = await fleet("doctor", "--json")
    assert (done.code, done.json["ok"], done.json["prefix"]) == (1, False, prefix)
    assert done.json["findings"][0]["code"] == "persistence"
    assert all({"code", "severity", "summary", "why", "fix"} == set(finding) for finding in done.json["findings"])


async def test_keys_are_left_alone_where_that_is_asked_for(cli: Call, safe: EmbeddedServer) -> None:
    done = await cli("doctor", "--redis", safe.url, "--max-keys", "0", "--json")
    assert "key_types" not in {finding["code"] for finding in done.json["findings"]}


@pytest.mark.parametrize(
    ("mode", "password", "expected"), [(0o600, ":hush", "ok"), (0o644, ":hush", "warning"), (0o644, "", "ok")]
)
async def test_the_file_of_settings_is_looked_at(
    cli: Call, safe: EmbeddedServer, tmp_path: Path, mode: int, password: str, expected: str
) -> None:
    """A password in a file that everyone can read is told of, and never shown."""
    file = tmp_path / "engine.toml"
    file.write_text(f'[redis]\nurl = "{safe.url.replace("//", f"//nobody{password}@" if password else "//")}"\n')
    file.chmod(mode)
    done = await cli("doctor", "--config", str(file), "--redis", safe.url, "--json")
    found = {finding["code"]: finding["severity"] for finding in done.json["findings"]}
    assert found["config_file"] == expected
    assert "hush" not in done.out


async def test_a_wrong_password_is_told_from_a_server_that_is_away(cli: Call, safe: EmbeddedServer) -> None:
    """What is said is what helps."""
    done = await cli("doctor", "--redis", safe.url.replace("//", "//nobody:hush@"))
    assert (done.code, done.out, done.err.count("\n")) == (69, "", 1)
    assert "password" in done.err
    assert "Is it running?" not in done.err
    assert "hush" not in done.err
