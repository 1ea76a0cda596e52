"""A real primary, its replica and three sentinels, for failovers. All functions block.

No role is in a configuration file: a server that was killed comes back as a primary of its own data, and the sentinels
make a replica of it.
"""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.support.server import Cli, OwnServer, test_server_binary

T = TypeVar("T")

MASTER: Final = "fleet"
_SENTINELS: Final = 3
_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.03
_GUARD_S: Final = 300.0
"""Only guards against hanging."""
_ANSWERS_WITHIN_S: Final = 2.0
"""A server that does not answer within this time is asked again."""
_DOWN_AFTER_MS: Final = 700
"""The silence after which sentinels consider a server down, while a test waits for a failover."""
_NEVER_MS: Final = 36_000_000
"""The same at other times."""
_PERIODS: Final = "ping-period 200 info-period 400 ask-period 100 publish-period 500 tilt-period 1000"
"""Periods of the sentinels in milliseconds; the defaults are up to twenty times longer.

A primary that comes back is made a replica four `publish-period` later. With a shorter period, a sentinel that does not
know of a failover yet would demote the new primary. Servers before 7.0 have no such options, and are slower.
"""


class SentinelSetup:
    """A primary, its replica and three sentinels, as a context manager."""

    def __init__(self, folder: Path, failover_timeout_ms: int = 6000) -> None:
        self.folders = tuple(folder / f"server-{number}" for number in range(2))
        self.servers = tuple(
            OwnServer(data_dir=each, extra=("--repl-diskless-sync-delay", "0")) for each in self.folders
        )
        self.sentinels: list[int] = []
        """The ports of the sentinels."""
        self._folder = folder
        self._failover_timeout_ms = failover_timeout_ms
        self._stack = ExitStack()

    @property
    def addresses(self) -> list[str]:
        """The addresses of the sentinels, for `redis.sentinels`."""
        return [f"{_HOST}:{port}" for port in self.sentinels]

    def __enter__(self) -> Self:
        with self._stack as stack:
            primary, replica = (stack.enter_context(server) for server in self.servers)
            _ask(replica.port, "REPLICAOF", _HOST, primary.port)
            for number in range(_SENTINELS):
                config = self._folder / f"sentinel-{number}.conf"
                self.sentinels.append(stack.enter_context(_sentinel(config, primary.port, self._failover_timeout_ms)))
            self.wait_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_whole(self) -> OwnServer:
        """Wait until all agree on one primary, its replica is connected, and a failover could begin.

        Return the primary.
        """

        def whole() -> OwnServer | None:
            named = {int(_ask(port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1]) for port in self.sentinels}
            primary, replica = sorted(self.servers, key=lambda server: server.port not in named)
            roles = (_ask(primary.port, "ROLE")[0], _ask(replica.port, "ROLE"))
            follows = roles[1][0] == b"slave" and roles[1][2:4] == [primary.port, b"connected"]
            is_whole = len(named) == 1 and roles[0] == b"master" and follows and all(map(_sees_all, self.sentinels))
            return primary if is_whole else None

        return _until(whole)

    def wait_promoted(self, server: OwnServer) -> None:
        """Wait until this server is a primary, and so accepts writes.

        Only meanwhile do sentinels consider a silent primary down: a slow machine causes no failover of its own.
        """
        self._set_down_after(_DOWN_AFTER_MS)
        _until(lambda: _ask(server.port, "ROLE")[0] == b"master")
        self._set_down_after(_NEVER_MS)

    def fail_over(self) -> None:
        """Request a failover until a sentinel begins one. It refuses while it does not know an up-to-date replica."""

        def is_begun() -> bool:
            try:
                _ask(self.sentinels[0], "SENTINEL", "FAILOVER", MASTER)
            except ResponseError as refusal:
                return str(refusal).startswith("INPROG")
            return True

        _until(is_begun)

    def _set_down_after(self, milliseconds: int) -> None:
        for port in self.sentinels:
            _ask_again(port, "SENTINEL", "SET", MASTER, "down-after-milliseconds", milliseconds)

    def cut_off(self, primary: OwnServer) -> None:
        """Stop replication until `let_follow`: a failover takes back what is written meanwhile."""
        _ask_again(primary.port, "ACL", "SETUSER", "default", "-psync", "-sync")
        _ask_again(primary.port, "CLIENT", "KILL", "TYPE", "replica")

    def let_follow(self, server: OwnServer) -> None:
        """Allow this server to have a replica again."""
        _ask_again(server.port, "ACL", "SETUSER", "default", "+psync", "+sync")


@contextmanager
def _sentinel(config: Path, watched: int, failover_timeout_ms: int) -> Iterator[int]:
    """Run a sentinel, which rewrites its configuration file, and yield its port."""
    with socket.create_server((_HOST, 0)) as free:
        port = int(free.getsockname()[1])
    config.write_text(
        f"port {port}\nbind {_HOST}\nprotected-mode no\ndir {config.parent}\n"
        f"sentinel monitor {MASTER} {_HOST} {watched} {_SENTINELS // 2 + 1}\n"
        f"sentinel down-after-milliseconds {MASTER} {_NEVER_MS}\n"
        f"sentinel failover-timeout {MASTER} {failover_timeout_ms}\n"
    )
    with config.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([str(test_server_binary()), str(config), "--sentinel"], stdout=log)
    try:
        with suppress(ResponseError):
            _ask_again(port, "SENTINEL", "DEBUG", *_PERIODS.split())
        yield port
    finally:
        process.terminate()
        process.wait(_GUARD_S)


def _sees_all(sentinel: int) -> bool:
    """Tell whether the sentinel knows the current role of each server, so that it changes none."""
    primary = _table(_ask(sentinel, "SENTINEL", "MASTER", MASTER))
    replicas = [_table(each) for each in _ask(sentinel, "SENTINEL", "SLAVES", MASTER)]
    seen = (primary[b"flags"], primary[b"role-reported"], int(primary[b"num-other-sentinels"]))
    followers = [(each[b"flags"], each[b"role-reported"], each[b"master-link-status"]) for each in replicas]
    return seen == (b"master", b"master", _SENTINELS - 1) and followers == [(b"slave", b"slave", b"ok")]


def _table(found: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(found[::2], found[1::2], strict=True))


def _ask(port: int, *words: str | int) -> Any:  # noqa: ANN401 - a reply is what the command makes it
    with Cli(port, _ANSWERS_WITHIN_S) as ask:
        return ask(*words)


def _ask_again(port: int, *words: str | int) -> None:
    """Send an idempotent command until it is answered: a test may cut this connection as well."""
    _until(lambda: [_ask(port, *words)])


def _until(condition: Callable[[], T | None]) -> T:
    """Wait until `condition` returns something true, and return that. Repeat it after an error of the connection."""
    ends_at = time.monotonic() + _GUARD_S
    while time.monotonic() < ends_at:
        with suppress(OSError, RedisConnectionError, RedisTimeoutError):
            if found := condition():
                return found
        time.sleep(_POLL_S)
    raise AssertionError(f"not within {_GUARD_S} s")
