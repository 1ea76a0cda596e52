"""BullMQ as a peer: a program that does similar work, and is compared with the engine.

BullMQ is installed into a cache directory if node and npm are there. The benchmarks do not require it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

PACKAGES: Final = ("bullmq@6.7.0", "ioredis@5.11.1")
CONCURRENCY: Final = 100
"""Jobs that the worker handles at once. Of 1, 10, 50, 100, 200 and 500 it needs the least CPU time per job."""
QUEUES: Final = ("bull:bench:wait", "bull:bench:active")
"""Lists of the jobs that are not done."""
PROGRAM: Final = Path(__file__).with_name("bullmq.mjs")


def describe() -> str:
    """Return the versions, or why BullMQ is not measured."""
    if problem := install():
        return f"not measured: {problem}"
    node = subprocess.run([_node(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{', '.join(PACKAGES)}, node {node}"


@cache
def install() -> str:
    """Install the packages, unless they are installed. Returns the problem, or an empty text."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if (_modules() / "node_modules" / "bullmq").exists():
        return ""
    _modules().mkdir(parents=True, exist_ok=True)
    npm = ["npm", "install", "--prefix", str(_modules()), "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    done = subprocess.run(npm, capture_output=True, text=True, check=False)
    return f"npm install failed: {done.stderr.strip().splitlines()[-1:]}" if done.returncode else ""


def add_jobs(url: str, count: int, agents: int) -> None:
    """Add jobs that set states of agents."""
    subprocess.run([*_command(url), "add", str(count), str(agents)], check=True)


@contextmanager
def worker(url: str) -> Iterator[int]:
    """Run a worker, and kill it in the end. Yields the process id."""
    process = subprocess.Popen([*_command(url), "work", str(CONCURRENCY)])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _command(url: str) -> list[str]:
    return [_node(), str(PROGRAM), str(_modules()), url]


def _node() -> str:
    return shutil.which("node") or "node"


def _modules() -> Path:
    """Return the directory of the packages. Each combination of versions has a directory of its own."""
    cache_directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_directory / "aism-bench" / "-".join(PACKAGES)
