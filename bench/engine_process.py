"""The engine under test: `aism-engine run` as a process of its own, with the default settings."""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self
from urllib.request import urlopen

from bench.harness import TIMEOUT_S, cpu_s

PROGRAM: Final = (sys.executable, "-c", "from aism_engine.cli.main import main; main()", "run", "--log-format", "json")


class EngineProcess:
    """A running engine. Its log goes to a file, so that the engine never waits for its reader."""

    def __init__(self, url: str, **settings: object) -> None:
        """Start the engine. `settings` are named as in the environment: `section__name`."""
        given = {"redis__url": url, "http__port": 0, **settings}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")}
        environ = inherited | {f"AISM_{name.upper()}": str(value) for name, value in given.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="aism-bench-")
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(PROGRAM, env=environ, stdout=subprocess.DEVNULL, stderr=stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """Return the CPU time that the engine has used, in seconds."""
        return cpu_s(self.pid)

    def wait_event(self, name: str, component: str | None = None) -> dict[str, Any]:
        """Wait until the log has an event of this name, and return the first one."""
        while True:
            ended = self._process.poll() is not None
            for line in self._log.read_bytes().splitlines(keepends=True):
                if line.startswith(b"{") and line.endswith(b"\n"):
                    event: dict[str, Any] = json.loads(line)
                    if event["event"] == name and component in {None, event.get("component")}:
                        return event
            if ended:
                raise RuntimeError(f"the engine ended before it logged {name}:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.005)

    def wait_leading(self) -> None:
        """Wait until the engine leads and has loaded its fleet."""
        self.wait_event("fleet_loaded")

    def wait_started(self) -> None:
        """Wait until all components run; the engine may be a standby."""
        self.wait_event("component_started", component="sampler")

    @cached_property
    def address(self) -> str:
        """Host and port of the HTTP endpoints."""
        host, port = self.wait_event("engine_starting")["http"]
        return f"{host}:{port}"

    def get(self, path: str) -> str:
        """Return the body of an HTTP endpoint."""
        with urlopen(f"http://{self.address}{path}", timeout=TIMEOUT_S) as reply:
            body: bytes = reply.read()
        return body.decode()

    def metrics(self) -> dict[str, float]:
        """Return all metrics, by name and labels as the engine exports them."""
        parts = (line.rpartition(" ") for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in parts}

    def kill(self) -> None:
        """Kill the engine, as a crash would."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
