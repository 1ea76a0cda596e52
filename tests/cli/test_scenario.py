"""Laws of `aism-engine scenario`, as a process of its own."""

import json
import os
import signal
from pathlib import Path

from tests.cli.conftest import Start


def test_it_prints_the_figures_and_nothing_else(start: Start) -> None:
    """One object for programs; the exit code is the verdict."""
    process = start("scenario", "ping-pong", "--json")
    out, err = process.communicate(timeout=60)
    figures = json.loads(out)
    assert (process.returncode, err, figures["increments"], figures["violations"]) == (0, "", 1000, 0)


def test_a_signal_breaks_it_off_and_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    """Neither the folder of its server nor a process of its."""
    process = start("scenario", "coordination", env={**os.environ, "TMPDIR": str(tmp_path)})
    while not list(tmp_path.glob("*/server.log")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (1, "", "error: broken off\n")
    assert list(tmp_path.iterdir()) == []
