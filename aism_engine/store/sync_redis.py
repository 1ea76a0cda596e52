"""A blocking connection to Redis, for a command-line tool that makes a single call.

Importing redis-py takes ten times as long as such a call. This module needs only a socket, and hiredis for the
protocol. It retries nothing, and gives every outage a name.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import hiredis

from aism_engine.errors import ServerUnavailableError
from aism_engine.redact import AMBIGUOUS_URL, is_unambiguous, redacted
from aism_engine.store.redis_error_codes import OUTAGES

Word: TypeAlias = str | bytes | float

_CONNECT_S: Final = 2.0
_REPLY_S: Final = 3.0
_READ: Final = 65_536
_SCHEMES: Final = ("redis", "rediss", "unix")


class RefusedCommandError(Exception):
    """The server refused a command, and not because of an outage: the caller has a bug."""


class SyncRedis:
    """A connection, in RESP2. Raises ServerUnavailableError while the server cannot serve."""

    def __init__(self, url: str) -> None:
        """Connect, and log in. `url` is redis://, rediss:// or unix://. Raises ValueError for any other URL."""
        if not is_unambiguous(url):
            raise ValueError(AMBIGUOUS_URL)
        where = urlsplit(url)
        options = dict(parse_qsl(where.query))
        if where.scheme not in _SCHEMES or (where.scheme == "unix" and not where.path):
            raise ValueError(f"expected redis://HOST, rediss://HOST or unix:///PATH, got {redacted(url)!r}")
        self._reader = hiredis.Reader(replyError=RefusedCommandError)
        with _naming_outages():
            self._socket = _connect(where, options)
        try:
            self._log_in(where, options)
        except BaseException:
            self.close()
            raise

    def call(self, *words: Word, wait_s: float = 0.0) -> Any:  # noqa: ANN401 - a reply is what the command makes it
        """Send one command. `wait_s` is how long the command itself may block."""
        return self.calls([words], wait_s=wait_s)[0]

    def calls(self, commands: Sequence[Sequence[Word]], *, wait_s: float = 0.0) -> list[Any]:
        """Send several commands at once, and return their replies."""
        with _naming_outages():
            self._socket.settimeout(wait_s + _REPLY_S)
            for words in commands:
                # hiredis annotates the tuple as if it had one word.
                self._socket.sendall(hiredis.pack_command(tuple(words)))  # type: ignore[arg-type]
            return [self._reply() for _ in commands]

    def close(self) -> None:
        self._socket.close()

    def _log_in(self, where: SplitResult, options: dict[str, str]) -> None:
        user = unquote(where.username or options.get("username", ""))
        password = unquote(where.password or "") or options.get("password", "")
        database = options.get("db") or (where.path.lstrip("/") if where.scheme != "unix" else "") or "0"
        if password:
            self.call("AUTH", *([user] if user else []), password)
        if database != "0":
            self.call("SELECT", database)

    def _reply(self) -> Any:  # noqa: ANN401
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(_READ)
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            self._reader.feed(data)
        if isinstance(reply, RefusedCommandError):
            outage = OUTAGES.get(str(reply).split(maxsplit=1)[0])
            raise reply if outage is None else ServerUnavailableError(outage, str(reply))
        return reply


def _connect(where: SplitResult, options: dict[str, str]) -> socket.socket:
    if where.scheme == "unix":
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(_CONNECT_S)
        stream.connect(unquote(where.path))
        return stream
    host, port = where.hostname or "localhost", where.port or 6379
    stream = socket.create_connection((host, port), timeout=_CONNECT_S)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if where.scheme == "redis":
        return stream
    import ssl  # noqa: PLC0415  it is slow to import, and few need it

    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(stream, server_hostname=host)


@contextmanager
def _naming_outages() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        names = {ConnectionRefusedError: "refused", TimeoutError: "timeout"}
        raise ServerUnavailableError(names.get(type(error), "connection"), str(error)) from error
