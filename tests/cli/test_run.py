"""Laws of the daemon, as a process of its own."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.request import urlopen

from redis import Redis

from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Start
from tests.support.server import test_server_binary


def events(process: Popen[str]) -> Iterator[dict[str, Any]]:
    """Read what it logs, as it does; pytest's timeout ends a wait in vain."""
    assert process.stderr is not None
    for line in process.stderr:
        yield json.loads(line)


def await_event(log: Iterator[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(event for event in log if event["event"] == name)


def test_sigterm_stops_it_in_order(start: Start, server: EmbeddedServer, prefix: str) -> None:
    """The lease is given back, nothing is written to standard output, and the code is 0."""
    process = start("run", "--redis", server.url, "--prefix", prefix, "--http", "127.0.0.1:0")
    log = events(process)
    _, port = await_event(log, "engine_starting")["http"]
    await_event(log, "lease_taken")
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b"aism_leader 1.0" in answer.read()
    with Redis.from_url(server.url) as redis:
        assert redis.exists(f"{prefix}:engine:lease")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert not redis.exists(f"{prefix}:engine:lease")
    assert process.stdout is not None
    assert process.stdout.read() == ""


def test_it_waits_for_a_server_that_is_not_there_yet(start: Start, tmp_path: Path) -> None:
    """It says so, and starts when it appears."""
    with EmbeddedServer(test_server_binary(), append_only=False, data_dir=tmp_path) as server:
        server.kill()
        process = start("run", "--redis", server.url, "--http", "127.0.0.1:0")
        log = events(process)
        assert await_event(log, "redis_unavailable")["outage"] == "refused"
        server.start()
        await_event(log, "lease_taken")
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0


def test_an_address_in_use_is_a_clear_error(start: Start) -> None:
    """One line names the address; the code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("run", "--redis", "redis://127.0.0.1:1", "--http", f"127.0.0.1:{port}", "--log-level", "error")
        _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert err.startswith("error: cannot serve HTTP: Address already in use")
    assert str(port) in err
    assert err.count("\n") == 1


def test_it_starts_and_stops_without_redis(start: Start) -> None:
    """An outage does not keep it from stopping at once."""
    process = start("run", "--redis", "redis://127.0.0.1:1", "--http", "127.0.0.1:0")
    await_event(events(process), "redis_unavailable")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert time.monotonic() - began < 4


def test_sighup_reads_the_machines_anew(start: Start, server: EmbeddedServer, prefix: str) -> None:
    """And stops nothing: the log says which are in force."""
    process = start("run", "--redis", server.url, "--prefix", prefix, "--http", "127.0.0.1:0")
    log = events(process)
    await_event(log, "lease_taken")
    process.send_signal(signal.SIGHUP)
    assert await_event(log, "machines_reloaded")["machines"] == {"journey": 1, "open": 1}
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_a_log_file_is_reopened_at_sigusr1(start: Start, server: EmbeddedServer, prefix: str, tmp_path: Path) -> None:
    """What was moved away keeps what it had; from then on the new one is written to, and no line is lost."""
    file, moved = tmp_path / "engine.log", tmp_path / "engine.log.1"
    environ = {**os.environ, "AISM_LOGS__FILE": str(file)}
    process = start("run", "--redis", server.url, "--prefix", prefix, "--http", "127.0.0.1:0", env=environ)
    await_line(file, "lease_taken")
    file.rename(moved)
    process.send_signal(signal.SIGUSR1)
    await_line(file, "log_reopened")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert (named(moved)[-1] != "engine_stopped", named(file)[-1]) == (True, "engine_stopped")
    assert "engine_starting" in named(moved)


def await_line(file: Path, event: str) -> None:
    while not (file.exists() and event in named(file)):
        time.sleep(0.01)


def named(file: Path) -> list[str]:
    """Give the events of a log file; the last line may not be whole yet."""
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line)["event"] for line in lines if line.endswith("\n")]
