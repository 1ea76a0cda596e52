"""Laws of `aism-engine run`, run as a process."""

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
from tests.support.server import OwnServer


def read_events(process: Popen[str]) -> Iterator[dict[str, Any]]:
    """Read the log of a process as it is written; the time limit of pytest ends a read that hangs."""
    assert process.stderr is not None
    for line in process.stderr:
        yield json.loads(line)


def await_event(log: Iterator[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(event for event in log if event["event"] == name)


def test_signals_reload_the_machines_and_stop_in_order(start: Start, server: EmbeddedServer, prefix: str) -> None:
    """SIGHUP reloads without a stop. SIGTERM releases the lease; the code is 0 and standard output is empty."""
    process = start("run", "--redis", server.url, "--prefix", prefix, "--http", "127.0.0.1:0")
    log = read_events(process)
    _, port = await_event(log, "engine_starting")["http"]
    await_event(log, "lease_taken")
    with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        assert b"aism_leader 1.0" in reply.read()
    process.send_signal(signal.SIGHUP)
    assert await_event(log, "machines_reloaded")["machines"] == {"journey": 1, "open": 1}
    with Redis.from_url(server.url) as redis:
        assert redis.exists(f"{prefix}:engine:lease")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not redis.exists(f"{prefix}:engine:lease")
    assert process.stdout is not None
    assert process.stdout.read() == ""


def test_the_engine_waits_for_a_server_that_is_not_there_yet(start: Start, tmp_path: Path) -> None:
    with OwnServer(append_only=False, data_dir=tmp_path) as server:
        server.kill()
        process = start("run", "--redis", server.url, "--http", "127.0.0.1:0")
        log = read_events(process)
        assert await_event(log, "redis_unavailable")["outage"] == "refused"
        server.start()
        await_event(log, "lease_taken")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0


def test_an_address_in_use_is_one_line(start: Start) -> None:
    """The line names the address; the code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("run", "--redis", "redis://127.0.0.1:1", "--http", f"127.0.0.1:{port}", "--log-level", "error")
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith("error: cannot serve HTTP at 127.0.0.1:")
    assert str(port) in err
    assert err.count("\n") == 1


def test_an_outage_does_not_delay_the_stop(start: Start) -> None:
    """The engine stops in order, well before `supervisor.shutdown_timeout`, which would end it by force."""
    environ = {**os.environ, "AISM_SUPERVISOR__SHUTDOWN_TIMEOUT": "3600"}
    process = start("run", "--redis", "redis://127.0.0.1:1", "--http", "127.0.0.1:0", env=environ)
    log = read_events(process)
    await_event(log, "redis_unavailable")
    process.send_signal(signal.SIGTERM)
    await_event(log, "engine_stopped")
    assert process.wait() == 0


def test_sigusr1_reopens_the_log_file(start: Start, server: EmbeddedServer, prefix: str, tmp_path: Path) -> None:
    """The renamed file keeps its lines, later lines go to the new one, and none is lost."""
    file, moved = tmp_path / "engine.log", tmp_path / "engine.log.1"
    environ = {**os.environ, "AISM_LOGS__FILE": str(file)}
    process = start("run", "--redis", server.url, "--prefix", prefix, "--http", "127.0.0.1:0", env=environ)
    await_line(file, "lease_taken")
    file.rename(moved)
    process.send_signal(signal.SIGUSR1)
    await_line(file, "log_reopened")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert (event_names(moved)[-1] != "engine_stopped", event_names(file)[-1]) == (True, "engine_stopped")
    assert "engine_starting" in event_names(moved)


def await_line(file: Path, event: str) -> None:
    while not (file.exists() and event in event_names(file)):
        time.sleep(0.01)


def event_names(file: Path) -> list[str]:
    """Read the events of a log file; the last line may still be incomplete."""
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line)["event"] for line in lines if line.endswith("\n")]
