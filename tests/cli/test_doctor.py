"""Laws of `aism-engine doctor`: its exit codes, its text and its JSON."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call
from tests.support.server import OwnServer


@pytest.fixture(scope="module")
def safe() -> Iterator[EmbeddedServer]:
    """A server that persists its data; the one of the other tests does not."""
    with OwnServer() as server:
        yield server


async def test_safe_server_exits_with_0(cli: Call, safe: EmbeddedServer) -> None:
    """Notes do not change that."""
    done = await cli("doctor", "--redis", safe.url)
    assert (done.code, done.err) == (0, "")
    assert "note " in done.out
    assert max(map(len, done.out.splitlines())) <= 110


async def test_unsafe_server_exits_with_1(fleet: Call) -> None:
    """The danger comes first, with its reason and its fix."""
    done = await fleet("doctor")
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[1].startswith("danger ")
    assert "Why: " in done.out
    assert "Fix: CONFIG SET appendonly yes" in done.out


async def test_json_has_every_finding(fleet: Call, prefix: str) -> None:
    done = await fleet("doctor", "--json")
    assert (done.code, done.json["ok"], done.json["prefix"]) == (1, False, prefix)
    assert done.json["findings"][0]["code"] == "persistence"
    assert all({"code", "severity", "summary", "why", "fix"} == set(finding) for finding in done.json["findings"])


async def test_max_keys_0_skips_the_scan(cli: Call, safe: EmbeddedServer) -> None:
    done = await cli("doctor", "--redis", safe.url, "--max-keys", "0", "--json")
    assert "key_types" not in {finding["code"] for finding in done.json["findings"]}


@pytest.mark.parametrize(
    ("mode", "password", "expected"), [(0o600, ":hush", "ok"), (0o644, ":hush", "warning"), (0o644, "", "ok")]
)
async def test_settings_file_is_checked(
    cli: Call, safe: EmbeddedServer, tmp_path: Path, mode: int, password: str, expected: str
) -> None:
    """A password in a file that everyone can read is a warning, and is never printed."""
    file = tmp_path / "engine.toml"
    file.write_text(f'[redis]\nurl = "{safe.url.replace("//", f"//nobody{password}@" if password else "//")}"\n')
    file.chmod(mode)
    done = await cli("doctor", "--config", str(file), "--redis", safe.url, "--json")
    found = {finding["code"]: finding["severity"] for finding in done.json["findings"]}
    assert found["config_file"] == expected
    assert "hush" not in done.out


async def test_wrong_password_differs_from_an_unreachable_server(cli: Call, safe: EmbeddedServer) -> None:
    """Each message says what to do."""
    done = await cli("doctor", "--redis", safe.url.replace("//", "//nobody:hush@"))
    assert (done.code, done.out, done.err.count("\n")) == (69, "", 1)
    assert "password" in done.err
    assert "Is it running?" not in done.err
    assert "hush" not in done.err
