"""Runs the tour of the README, in order, in one shell."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.docs.reading import ROOT
from tests.support.server import OwnServer

TOUR: Final = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Five minutes\n")[2].partition("\n## ")[0]
LINES: Final = "".join(re.findall(r"^```\n(.*?)^```", TOUR, re.MULTILINE | re.DOTALL)).splitlines()
INSTALLS: Final = ("apt-get install ", "make install", ". .venv/bin/activate")
"""Lines that install what the tests have."""
LOG: Final = "/tmp/aism-engine.log"  # noqa: S108 - replaced by a file of the test
SHOWN: Final = (
    *("PONG", "c1 queued", '{"id":"c1","type":"state_transition"', '"ok":true,"state":"deep_work"', "\ndeep_work\n"),
    *("it leads to: inbox, direct_io", '"ok":true,"state":"inbox"'),
    *("c2 queued", '{"id":"c2","type":"review"', "succeeded", "verdict=good"),
)


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed: apt-get install redis-tools")
async def test_the_tour_does_what_it_says(tmp_path: Path) -> None:
    """On a server of its own, because the tour uses the default prefix. The first line that fails ends the shell."""
    lines = [re.sub(r" 10$", " 300", line) for line in LINES if not line.startswith(INSTALLS)]
    assert len(lines) == len(LINES) - len(INSTALLS)
    starts = next(number for number, line in enumerate(lines) if line.startswith("aism-engine run"))
    lines.insert(starts + 1, f"until grep -q fleet_loaded {LOG}; do sleep 0.1; done")
    with OwnServer() as server:
        (tool := tmp_path / "redis-cli").write_text(
            f'#!/bin/sh\nexec {shutil.which("redis-cli")} -p {server.port} "$@"\n'
        )
        tool.chmod(0o755)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")} | {
            "PATH": os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "AISM_REDIS_URL": server.url,
            "AISM_HTTP__PORT": "0",
        }
        script = "\n".join([*lines, "wait %1"]).replace(LOG, str(tmp_path / "log"))
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euc", script), env=environ, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        out = (await shell.communicate())[0].decode()
    assert shell.returncode == 0, out
    assert [each for each in SHOWN if each not in out] == []
    assert "engine_stopped" in (tmp_path / "log").read_text()
