"""Servers for tests, and a connection that blocks.

The server is `AISM_TEST_SERVER` (a path or a command), else the bundled one.
"""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.retry import Retry

from aism_engine.store.embedded import EmbeddedServer, bundled_binary

_CONNECTION: Any = Connection  # redis-py does not annotate its methods


def test_server_binary() -> Path:
    named = os.environ.get("AISM_TEST_SERVER")
    return Path(shutil.which(named) or named) if named else bundled_binary()


test_server_binary.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it because of its name


class OwnServer(EmbeddedServer):
    """A server that one test may kill, restart and suspend. Everything that it has accepted is on disk."""

    def __init__(self, *, append_fsync: str = "always", extra: Sequence[str] = (), **options: Any) -> None:  # noqa: ANN401
        """Prepare a server with the options of an `EmbeddedServer`. Its append-only file has everything in order."""
        extra = ("--auto-aof-rewrite-percentage", "0", *extra)
        super().__init__(test_server_binary(), append_fsync=append_fsync, extra=extra, **options)

    def restart(self) -> None:
        """Stop the server and start it again with the same port and folder."""
        self._end(signal.SIGTERM)
        self.start()

    def pause(self) -> None:
        """Suspend the process: connections stay open, and the server does not reply."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


class Cli:
    """One connection that runs one command at a time, and returns each reply as the server sent it. It blocks."""

    def __init__(self, port: int, timeout_s: float = 300.0) -> None:
        once = Retry(NoBackoff(), 0)
        self._connection = _CONNECTION(port=port, protocol=2, socket_timeout=timeout_s, retry=once, driver_info=None)
        self._connection.connect()

    def __call__(self, *words: str | bytes | float) -> Any:  # noqa: ANN401 - a reply is what the command makes it
        self._connection.send_command(*words)
        return self.read()

    def read(self) -> Any:  # noqa: ANN401
        """Read one more reply, such as a message on a channel that this connection has subscribed to."""
        return self._connection.read_response()

    def close(self) -> None:
        self._connection.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
