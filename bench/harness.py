"""Code that the benchmarks share: servers, clients, processes, CPU times, the order of measurements, and statistics.

The benchmarks use blocking calls, because they only wait for the programs that they measure.
"""

import ctypes
import os
import random
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import hiredis
import msgspec
import redis

from aism_engine.server_url import parse_url
from aism_engine.store.embedded import EmbeddedServer, bundled_binary
from aism_engine.store.keys import Keys

Client: TypeAlias = Any
"""A `redis.Redis` whose replies are bytes. Its type is `Any`, because redis-py annotates them as bytes or text."""
Command: TypeAlias = tuple[str | bytes | int | float, ...]
T = TypeVar("T")
N = TypeVar("N", bound=NamedTuple)

KEYS: Final = Keys()
PAGE: Final = 1000
"""Messages or keys in one call."""
TIMEOUT_S: Final = 60.0
"""Longest wait for a reply of the server. It only guards against hanging."""
GUARD_S: Final = 600.0
"""Longest wait for a condition. It only guards against hanging."""


class Options(NamedTuple):
    """Options of a run of the suite."""

    runs: int
    quick: bool

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def progress(text: str) -> None:
    """Say on standard error what is measured now."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# --- servers and clients ----------------------------------------------------------------------------------------------


def make_server(*, append_only: bool = False) -> EmbeddedServer:
    """Prepare a server: `AISM_TEST_SERVER` (a path or a command), else the bundled one."""
    named = os.environ.get("AISM_TEST_SERVER")
    binary = Path(shutil.which(named) or named) if named else bundled_binary()
    return EmbeddedServer(binary, append_only=append_only)


def connect(url: str, *, timeout_s: float | None = TIMEOUT_S) -> Client:
    return redis.Redis.from_url(url, socket_timeout=timeout_s)


def empty(client: Client) -> None:
    """Delete all keys, and wait until the server has freed them: otherwise that slows down what is measured next."""
    client.execute_command("FLUSHALL", "SYNC")


class RawConnection:
    """One connection without redis-py: commands are sent at once, replies are read later."""

    def __init__(self, url: str) -> None:
        server = parse_url(url)
        self._socket = socket.create_connection((server.host, server.port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = hiredis.Reader()

    def send(self, *commands: Command) -> None:
        packed = (hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]  # annotated as a 1-tuple
        self.send_packed(b"".join(packed))

    def send_packed(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> Any:  # noqa: ANN401  the type of a reply depends on the command
        while (reply := self._replies.gets()) is False:
            self._replies.feed(self._socket.recv(1 << 16))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def discard(self, replies: int) -> None:
        """Read replies that do not matter."""
        for _ in range(replies):
            self.read()

    def call(self, *commands: Command) -> list[Any]:
        self.send(*commands)
        return [self.read() for _ in commands]

    def close(self) -> None:
        self._socket.close()


def push(client: Client, queue: str, messages: Iterable[bytes | dict[str, Any]]) -> None:
    """Push messages in pages, the first one first. Dictionaries are encoded."""
    bodies = (each if isinstance(each, bytes) else msgspec.json.encode(each) for each in messages)
    while page := list(islice(bodies, PAGE)):
        client.lpush(queue, *page)


def poll(condition: Callable[[], object], interval_s: float = 0.005) -> None:
    """Wait until a condition about the server is true. Polls, because the engine must not know that it is observed."""
    give_up_at = time.monotonic() + GUARD_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"waited for {GUARD_S:.0f} s")
        time.sleep(interval_s)


def wait_empty(client: Client, *queues: str, interval_s: float = 0.005) -> None:
    poll(lambda: not any(client.llen(queue) for queue in queues), interval_s)


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def run_in_process(program: Callable[..., None], *arguments: object) -> Iterator[int]:
    """Run a function in a process of its own, and kill it in the end. Yields the process id."""
    process = get_context("spawn").Process(target=program, args=arguments, daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and all its threads, in seconds, with the resolution of the scheduler."""
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def server_cpu_s(client: Client) -> float:
    """Return the CPU time of the server, in seconds."""
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def cpu_share(pid: int, seconds: float) -> float:
    """Return the percentage of a core that a process uses in this time."""
    started_at, before_s = time.monotonic(), cpu_s(pid)
    time.sleep(seconds)
    return 100 * (cpu_s(pid) - before_s) / (time.monotonic() - started_at)


# --- runs and statistics ----------------------------------------------------------------------------------------------


def interleave(options: Options, title: str, contestants: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measure all contestants once in each run, so that other load on the machine affects all of them.

    A contestant is one side of a comparison: the engine, its limit, a peer, or the engine with other settings. Every
    second run has the reverse order, because each contestant leaves caches and server memory in another state for the
    next one.
    """
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for run in range(options.runs):
        for name in list(contestants)[:: 1 if run % 2 == 0 else -1]:
            progress(f"{title}: {name}, run {run + 1} of {options.runs}")
            results[name].append(contestants[name]())
            progress(f"{title}: {results[name][-1]}")
    return results


def sample(turns: int, probes: Mapping[str, Callable[[], float]], pause_s: float) -> dict[str, list[float]]:
    """Call each probe once in each turn; return the seconds that the probes returned.

    The pauses vary between 0.5 and 1.5 `pause_s`, so that no probe always meets the same phase of a timer.
    """
    times: dict[str, list[float]] = {name: [] for name in probes}
    for _ in range(turns):
        for name, probe in probes.items():
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311
            times[name].append(probe())
    return times


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the percentile by the nearest-rank method: always one of the values, never interpolated."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def medians(results: Mapping[str, list[N]]) -> dict[str, N]:
    """Return the median of each field, over the runs of each contestant."""
    return {name: each[0]._make(map(median, zip(*each, strict=True))) for name, each in results.items()}
