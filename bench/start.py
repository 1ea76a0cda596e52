"""Measures how long a call of `aism`, the agents' command-line tool, takes.

The limit is a Python interpreter that does nothing. The calls alternate, so that other load on the machine affects all
of them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.harness import Options, make_server, median, progress, sample
from bench.table import Row


def rows(options: Options) -> Iterator[Row]:
    calls = options.size(31, 5)
    aism = str(Path(sys.executable).with_name("aism"))
    with make_server() as server:
        environ = {**os.environ, "AISM_AGENT_ID": "bench-1", "AISM_REDIS_URL": server.url}
        programs = {
            "limit": partial(call, [sys.executable, "-c", "pass"], environ),
            "aism whoami": partial(call, [aism, "whoami"], environ),
            "aism heartbeat": partial(call, [aism, "heartbeat"], environ),
        }
        progress(f"start: {calls} calls of each program")
        ms = {name: 1000 * median(each) for name, each in sample(calls, programs, pause_s=0).items()}
    limit = ms.pop("limit")
    for name, figure in ms.items():
        yield Row(f"call of {name}", figure, "ms", limit)


def call(program: list[str], environ: dict[str, str]) -> float:
    """Return the seconds that a program runs."""
    started_at = time.perf_counter()
    subprocess.run(program, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started_at
