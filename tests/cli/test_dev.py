"""Laws of `aism-engine dev`, run as a process."""

import json
import os
import pty
import signal
from pathlib import Path

import pytest
from redis import Redis

from tests.cli.conftest import Start
from tests.cli.test_run import await_event, read_events

FIELDS = [
    *("responses_applied", "commands_dispatched", "commands_succeeded", "state_changes"),
    *("agents_lost", "dead_letters", "responses_per_second"),
]


def test_summary_is_consistent_with_itself(start: Start) -> None:
    process = start("dev", "--agents", "12", "--seed", "7", "--json")
    log = read_events(process)
    while not await_event(log, "dev_progress")["commands_succeeded"]:
        pass
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 0
    summary = json.loads(out)
    assert list(summary) == FIELDS
    assert 0 < summary["commands_succeeded"] <= summary["commands_dispatched"]
    assert summary["state_changes"] <= summary["responses_applied"] + summary["agents_lost"] * 2
    assert summary["dead_letters"] == 0
    assert summary["responses_per_second"] > 0


def test_dev_stops_after_its_duration(start: Start) -> None:
    process = start("dev", "--duration", "100ms", "--agents", "1", "--json")
    out, _ = process.communicate()
    assert (process.returncode, list(json.loads(out))) == (0, FIELDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """The server's process and its directory are gone, the summary is printed, and the code is 0."""
    process = start("dev", "--agents", "3", env={**os.environ, "TMPDIR": str(tmp_path)})
    log = read_events(process)
    url = await_event(log, "dev_started")["redis"]
    await_event(log, "lease_taken")
    with Redis.from_url(url) as redis:
        server = int(redis.info("server")["process_id"])
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert [line.split()[0] for line in out.splitlines()] == FIELDS
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert list(tmp_path.iterdir()) == []


def test_data_dir_keeps_the_fleet(start: Start, tmp_path: Path) -> None:
    """A second run on the same directory loads the fleet of the first."""
    for loaded in (0, 2):
        process = start("dev", "--agents", "2", "--seed", "7", "--data-dir", str(tmp_path))
        log = read_events(process)
        assert await_event(log, "fleet_loaded")["agents"] == loaded
        while await_event(log, "dev_progress")["state_changes"] < 2:
            pass
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 0


def test_a_terminal_shows_the_fleet(start: Start) -> None:
    """What it is, agents, states, queue depths, the rate and how to stop it, and no log lines below warning."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = start("dev", "--agents", "3", "--seed", "7", stderr=theirs, env=environ)
    os.close(theirs)
    expected = (
        b" tail --redis redis://",
        b"Ctrl-C stops everything",
        b"AISM Engine",
        b"architect-",
        b"STATE",
        b"queues",
        b"responses per second",
    )
    screen, is_stopping = b"", False
    try:
        while chunk := os.read(ours, 65536):
            screen += chunk
            if not is_stopping and all(text in screen for text in expected):
                is_stopping = True  # a second signal at the very end would meet no handler
                process.send_signal(signal.SIGINT)
    except OSError:  # the process has closed its end
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0
    assert [text for text in expected if text not in screen] == []
    assert b"component_started" not in screen
