"""A blocking connection to Redis, for `aism` and for the subcommands of `aism-engine` that only read.

Importing redis-py takes ten times as long as one call. This module needs only a socket, and hiredis for the
protocol. It retries nothing, and gives every outage a name.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import hiredis

from aism_engine.errors import ServerUnavailableError
from aism_engine.server_url import ServerUrl, parse_url, tls_context
from aism_engine.store.redis_error_codes import (
    NOT_REDIS,
    MissingScriptError,
    RefusedCommandError,
    describe_connection_error,
    outage_of_reply,
)

Word: TypeAlias = str | bytes | float

_READ: Final = 65_536


class SyncRedis:
    """A connection, in RESP2. Raises ServerUnavailableError while the server cannot serve."""

    def __init__(self, url: str, *, connect_s: float = 2.0, reply_s: float = 3.0) -> None:
        """Connect, and log in. `url` is redis://, rediss:// or unix://. Raises ValueError for any other URL."""
        try:
            server = parse_url(url)
        except ValueError as error:
            raise ValueError(f"the URL of the server: {error}") from None
        self._server, self._connect_s, self._reply_s = server, connect_s, reply_s
        self._address = server.path or f"{server.host}:{server.port}"
        self._socket: socket.socket | None = None
        self._connect()

    def call(self, *words: Word, wait_s: float = 0.0) -> Any:  # noqa: ANN401 - the type of a reply depends on the command
        """Send one command. `wait_s` is how long the command itself may block."""
        return self.calls([words], wait_s=wait_s)[0]

    def calls(self, commands: Sequence[Sequence[Word]], *, wait_s: float = 0.0) -> list[Any]:
        """Send several commands in one pipeline, and return their replies. Raises the first error."""
        replies = self.replies(commands, wait_s=wait_s)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def replies(self, commands: Sequence[Sequence[Word]], *, wait_s: float = 0.0) -> list[Any]:
        """Send several commands in one pipeline, and return their replies. A reply may be an error.

        After an error of the connection the next call connects again: it must not read the replies that are left.
        """
        connected = self._socket or self._connect()
        try:
            with _naming_outages(self._address):
                connected.settimeout(wait_s + self._reply_s)
                # hiredis annotates the tuple as if it had one word.
                connected.sendall(b"".join(hiredis.pack_command(tuple(words)) for words in commands))  # type: ignore[arg-type]
                return [self._reply(connected) for _ in commands]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _connect(self) -> socket.socket:
        self._reader = hiredis.Reader(replyError=RefusedCommandError)
        with _naming_outages(self._address):
            self._socket = connected = _connect(self._server, self._connect_s)
        try:
            self._log_in(self._server)
        except BaseException:
            self.close()
            raise
        return connected

    def _log_in(self, server: ServerUrl) -> None:
        if server.username or server.password:
            self.call("AUTH", *([server.username] if server.username else []), server.password)
        if server.database:
            self.call("SELECT", server.database)

    def _reply(self, connected: socket.socket) -> Any:  # noqa: ANN401
        while (reply := self._reader.gets()) is False:
            data = connected.recv(_READ)
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            self._reader.feed(data)
        if isinstance(reply, RefusedCommandError):
            outage = outage_of_reply(str(reply))
            if outage is not None:
                return ServerUnavailableError(outage, str(reply))
            return MissingScriptError(str(reply)) if str(reply).startswith("NOSCRIPT") else reply
        return reply


def _connect(server: ServerUrl, timeout_s: float) -> socket.socket:
    if server.path:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(timeout_s)
        stream.connect(server.path)
        return stream
    # With a str, Python imports its codec for international host names, which is slow. ASCII bytes need no codec.
    host: Any = server.host.encode() if server.host.isascii() else server.host
    stream = socket.create_connection((host, server.port), timeout=timeout_s)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream if server.tls is None else tls_context(server.tls).wrap_socket(stream, server_hostname=server.host)


@contextmanager
def _naming_outages(address: str) -> Iterator[None]:
    try:
        yield
    except hiredis.ProtocolError as error:
        raise ServerUnavailableError("not_redis", f"{address}: {NOT_REDIS}") from error
    except OSError as error:
        names = {ConnectionRefusedError: "refused", TimeoutError: "timeout", ConnectionResetError: "connection"}
        is_tls = type(error).__module__ == "ssl" and type(error).__name__ != "SSLEOFError"
        outage = names.get(type(error), "tls" if is_tls else "connection")
        raise ServerUnavailableError(outage, f"{address}: {describe_connection_error(error)}") from error
