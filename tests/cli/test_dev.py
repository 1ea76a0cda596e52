"""Laws of `aism-engine dev`, as a process of its own."""

import json
import os
import pty
import signal
import time
from pathlib import Path

import pytest
from redis import Redis

from tests.cli.conftest import Start
from tests.cli.test_run import await_event, events

FIGURES = [
    *("responses_applied", "commands_dispatched", "commands_succeeded", "state_changes"),
    *("agents_lost", "dead_letters", "responses_per_second"),
]


def test_its_summary_is_one_object_of_true_figures(start: Start) -> None:
    """What it reports is what the engine has done: an hour of nothing would report nothing."""
    process = start("dev", "--duration", "5", "--agents", "12", "--seed", "7", "--json")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    summary = json.loads(out)
    assert list(summary) == FIGURES
    assert summary["responses_applied"] > 50
    assert 0 < summary["commands_succeeded"] <= summary["commands_dispatched"]
    assert 12 < summary["state_changes"] <= summary["responses_applied"] + summary["agents_lost"] * 2
    assert summary["dead_letters"] == 0
    assert summary["responses_per_second"] == pytest.approx(summary["responses_applied"] / 5, rel=0.2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_that_it_started(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """Within 5 s, the server's process and its folder too; the summary is printed and the code is 0."""
    process = start("dev", "--agents", "3", env={**os.environ, "TMPDIR": str(tmp_path)})
    log = events(process)
    url = await_event(log, "dev_started")["redis"]
    await_event(log, "lease_taken")
    with Redis.from_url(url) as redis:
        server = int(redis.info("server")["process_id"])
    began = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, time.monotonic() - began < 5) == (0, True)
    assert [line.split()[0] for line in out.splitlines()] == FIGURES
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert list(tmp_path.iterdir()) == []


def test_it_keeps_the_data_where_it_is_told_to(start: Start, tmp_path: Path) -> None:
    """A second run on the same folder finds the fleet of the first."""
    for _ in range(2):
        process = start("dev", "--agents", "2", "--seed", "7", "--duration", "1", "--data-dir", str(tmp_path))
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
    (loaded,) = [line for line in map(json.loads, err.splitlines()) if line["event"] == "fleet_loaded"]
    assert loaded["agents"] == 2


def test_on_a_terminal_it_draws_the_fleet(start: Start) -> None:
    """Agents, their states, depths and the rate are on the screen, and no line of the log tears it."""
    ours, its = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = start("dev", "--agents", "3", "--seed", "7", "--duration", "2", stderr=its, env=environ)
    os.close(its)
    screen = b""
    try:
        while chunk := os.read(ours, 65536):
            screen += chunk
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(10) == 0
    for words in (b"AISM Engine", b"architect-", b"LIVENESS", b"depths", b"responses per second"):
        assert words in screen
    assert b"component_started" not in screen
