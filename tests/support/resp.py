"""A minimal RESP2 client, for agents without a client library."""

import socket
from types import TracebackType
from typing import Any, Self


class RespError(Exception):
    """An error reply of the server."""


class Cli:
    """One connection that runs one command at a time, in bytes: `Cli(host, port)("BRPOP", key, 0)`. It blocks.

    A command that takes longer than `timeout_s` fails with TimeoutError.
    """

    def __init__(self, host: str, port: int, timeout_s: float = 300.0) -> None:
        self._socket = socket.create_connection((host, port), timeout_s)
        self._replies = self._socket.makefile("rb")

    def __call__(self, *words: str | bytes | float) -> Any:  # noqa: ANN401  a reply is what the command makes it
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
        return self.read()

    def read(self) -> Any:  # noqa: ANN401
        """Read one more reply, such as a message on a channel that this connection has subscribed to."""
        line = self._replies.readline()
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise RespError(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                return None if rest == b"-1" else self._replies.read(int(rest) + 2)[:-2]
            case b"*":
                return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        raise ConnectionError(f"the server closed the connection, or does not speak RESP2: {line!r}")

    def close(self) -> None:
        self._replies.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
