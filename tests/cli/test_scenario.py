"""Laws of `aism-engine scenario`, run as a process."""

import json
import os
import signal
from pathlib import Path

from tests.cli.conftest import Start


def test_the_result_is_one_json_object(start: Start) -> None:
    process = start("scenario", "ping-pong", "--json")
    out, err = process.communicate()
    result = json.loads(out)
    assert (process.returncode, err, result["increments"], result["violations"]) == (0, "", 1000, 0)


def test_a_signal_interrupts_and_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    """Neither the directory of the server nor an agent's process, which would keep standard error open."""
    process = start("scenario", "coordination", env={**os.environ, "TMPDIR": str(tmp_path)})
    while not list(tmp_path.glob("*/server.log")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (1, "", "error: scenario coordination was interrupted\n")
    assert list(tmp_path.iterdir()) == []
