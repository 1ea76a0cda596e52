"""A real primary, its replica and three sentinels, for failovers.

No role is in a configuration file: a server that was killed comes back as a primary of its own data, and the sentinels
make a replica of it.
"""

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from aism_engine.store.embedded import EmbeddedServer
from tests.support.resp import Cli, RespError

MASTER: Final = "fleet"
_SENTINELS: Final = 3
_QUORUM: Final = 2
_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.03
_ANSWERS_WITHIN_S: Final = 2.0
_DOWN_AFTER_S: Final = 0.7
"""The silence after which sentinels consider a server down, while a test waits for a failover."""
_NEVER_S: Final = 36_000.0
"""The same at other times."""
_PERIODS_MS: Final = {
    "ping-period": 200,
    "info-period": 400,
    "ask-period": 100,
    "publish-period": 500,
    "tilt-period": 1000,
}
"""Periods of the sentinels in milliseconds; the defaults are up to twenty times longer.

A primary that comes back is made a replica four `publish-period` later. With a shorter period, a sentinel that does not
know of a failover yet would demote the new primary. Servers before 7.0 have no such options, and are slower.
"""


class SentinelSetup:
    """A primary, its replica and three sentinels, as a context manager. All methods block."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        failover_timeout_s: float = 6.0,
        append_fsync: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        """`append_fsync` None: nothing is persisted."""
        self.folders = tuple(folder / f"server-{number}" for number in range(2))
        self.servers = tuple(
            EmbeddedServer(
                binary,
                data_dir=each,
                append_only=append_fsync is not None,
                append_fsync=append_fsync or "no",
                extra=("--repl-diskless-sync-delay", "0", *extra),
            )
            for each in self.folders
        )
        self.sentinels: list[int] = []
        """The ports of the sentinels."""
        self._binary = binary
        self._folder = folder
        self._timing = {"down-after-milliseconds": _NEVER_S, "failover-timeout": failover_timeout_s}
        self._stack = ExitStack()

    @property
    def addresses(self) -> list[str]:
        """The addresses of the sentinels, for `redis.sentinels`."""
        return [f"{_HOST}:{port}" for port in self.sentinels]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            primary, replica = (stack.enter_context(server) for server in self.servers)
            with Cli(_HOST, replica.port) as ask:
                ask("REPLICAOF", _HOST, primary.port)
            for number in range(_SENTINELS):
                config = self._folder / f"sentinel-{number}.conf"
                self.sentinels.append(stack.enter_context(_sentinel(self._binary, config, primary.port, self._timing)))
            self.wait_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def named(self, sentinel: int) -> EmbeddedServer | None:
        """Return the primary according to the sentinel on this port; None where it does not answer."""
        with suppress(OSError, RespError), _asking(sentinel) as ask:
            _, port = ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
            return next((server for server in self.servers if server.port == int(port)), None)
        return None

    def is_whole(self) -> bool:
        """Tell whether all agree on one primary, its replica is connected, and a failover could begin."""
        named = {self.named(sentinel) for sentinel in self.sentinels}
        primary = named.pop()
        if named or primary is None:
            return False
        replica = self.other(primary)
        try:
            return (
                _role(primary)[0] == b"master"
                and _follows(_role(replica), primary.port)
                and all(_sees_all(sentinel) for sentinel in self.sentinels)
            )
        except (OSError, RespError):
            return False

    def wait_whole(self, within_s: float = 300.0) -> EmbeddedServer:
        """Wait until the setup is whole, and return the primary."""
        ends_at = time.monotonic() + within_s
        while not self.is_whole():
            if time.monotonic() > ends_at:
                raise AssertionError(f"not whole within {within_s} s: {self.views()}")
            time.sleep(_POLL_S)
        primary = self.named(self.sentinels[0])
        assert primary is not None
        return primary

    def wait_promoted(self, server: EmbeddedServer, within_s: float = 300.0) -> bool:
        """Wait until this server is a primary, and so accepts writes. Returns whether it was promoted in time.

        Only meanwhile do sentinels consider a silent primary down: a slow machine causes no failover of its own.
        """
        self._set_down_after(_DOWN_AFTER_S)
        try:
            ends_at = time.monotonic() + within_s
            while time.monotonic() < ends_at:
                with suppress(OSError, RespError):
                    if _role(server)[0] == b"master":
                        return True
                time.sleep(_POLL_S)
            return False
        finally:
            self._set_down_after(_NEVER_S)

    def fail_over(self) -> None:
        """Request a failover until a sentinel begins one. It refuses while it does not know an up-to-date replica."""
        while True:
            try:
                with _asking(self.sentinels[0]) as ask:
                    ask("SENTINEL", "FAILOVER", MASTER)
            except (OSError, RespError) as error:
                if str(error).startswith("INPROG"):
                    return
                time.sleep(_POLL_S)
            else:
                return

    def _set_down_after(self, seconds: float) -> None:
        for port in self.sentinels:
            _send(port, "SENTINEL", "SET", MASTER, "down-after-milliseconds", str(round(seconds * 1000)))

    def cut_off(self, primary: EmbeddedServer) -> None:
        """Stop replication until `let_follow`: a failover takes back what is written meanwhile."""
        _send(primary.port, "ACL", "SETUSER", "default", "-psync", "-sync")
        _send(primary.port, "CLIENT", "KILL", "TYPE", "replica")

    def let_follow(self, server: EmbeddedServer) -> None:
        """Allow this server to have a replica again."""
        _send(server.port, "ACL", "SETUSER", "default", "+psync", "+sync")

    def other(self, server: EmbeddedServer) -> EmbeddedServer:
        return self.servers[1 - self.servers.index(server)]

    def views(self) -> dict[str, Any]:
        """Return how each server and sentinel sees the others, for messages of failures."""
        found: dict[str, Any] = {}
        for server in self.servers:
            with suppress(OSError, RespError):
                found[f"server {server.port}"] = _role(server)
        for port in self.sentinels:
            with suppress(OSError, RespError):
                found[f"sentinel {port}"] = _facts(port)
        return found


@contextmanager
def _sentinel(binary: Path, config: Path, watched: int, timing: dict[str, float]) -> Iterator[int]:
    """Run a sentinel, which rewrites its configuration file, and yield its port."""
    with socket.create_server((_HOST, 0)) as free:
        port = int(free.getsockname()[1])
    lines = [f"port {port}", f"bind {_HOST}", "protected-mode no", f"dir {config.parent}"]
    lines.append(f"sentinel monitor {MASTER} {_HOST} {watched} {_QUORUM}")
    lines += [f"sentinel {name} {MASTER} {round(seconds * 1000)}" for name, seconds in timing.items()]
    config.write_text("\n".join(lines) + "\n")
    with config.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([str(binary), str(config), "--sentinel"], stdout=log)
    try:
        _set_periods(port)
        yield port
    finally:
        process.terminate()
        process.wait(300)


def _set_periods(port: int, within_s: float = 300.0) -> None:
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        with suppress(OSError), _asking(port) as ask:
            for name, period_ms in _PERIODS_MS.items():
                with suppress(RespError):
                    ask("SENTINEL", "DEBUG", name, period_ms)
            return
        time.sleep(_POLL_S)
    raise AssertionError("a sentinel does not answer")


def _asking(port: int) -> Cli:
    return Cli(_HOST, port, _ANSWERS_WITHIN_S)


def _send(port: int, *words: str) -> None:
    """Send an idempotent command, and repeat it: a test may cut this connection as well."""
    ends_at = time.monotonic() + 300
    while True:
        try:
            with _asking(port) as ask:
                ask(*words)
        except OSError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(_POLL_S)
        else:
            return


def _role(server: EmbeddedServer) -> list[Any]:
    with _asking(server.port) as ask:
        found: list[Any] = ask("ROLE")
    return found


def _follows(role: list[Any], port: int) -> bool:
    return role[0] == b"slave" and role[2:4] == [port, b"connected"]


def _facts(sentinel: int) -> dict[bytes, bytes]:
    with _asking(sentinel) as ask:
        return _table(ask("SENTINEL", "MASTER", MASTER))


def _sees_all(sentinel: int) -> bool:
    """Tell whether the sentinel knows the current role of each server, so that it changes none."""
    with _asking(sentinel) as ask:
        primary = _table(ask("SENTINEL", "MASTER", MASTER))
        replicas = [_table(each) for each in ask("SENTINEL", "SLAVES", MASTER)]
    seen = (primary[b"flags"], primary[b"role-reported"], int(primary[b"num-other-sentinels"]))
    followers = [(each[b"flags"], each[b"role-reported"], each[b"master-link-status"]) for each in replicas]
    return seen == (b"master", b"master", _SENTINELS - 1) and followers == [(b"slave", b"slave", b"ok")]


def _table(found: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(found[::2], found[1::2], strict=True))
