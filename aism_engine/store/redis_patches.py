"""Connections with patches for defects of redis-py 8.1 and CPython 3.11. Each patch says when it can go."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import hiredis
from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

_LARGE_BYTES: Final = 16_384
"""Larger arguments are sent without being copied: hiredis copies an argument of 350 kB in 0.27 ms."""


def _pack_arguments(args: Sequence[Any]) -> bytes:
    """Pack arguments without the count that begins a command."""
    return hiredis.pack_command(tuple(args)).partition(b"\n")[2] if args else b""


class _ClosedTransport:
    """Raises ConnectionError for what asyncio and uvloop raise when the peer has closed the connection.

    redis-py#4287: asyncio of CPython 3.12 to 3.14.0 raises TypeError or AttributeError, and uvloop RuntimeError. While
    the transport is open, these errors are bugs and are raised unchanged. The patch can go when redis-py 8.1 is no
    longer used: a later release has the fix.
    """

    def __init__(self, writer: asyncio.StreamWriter | None) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, AttributeError | TypeError | RuntimeError) and (
            self._writer is None or self._writer.transport.is_closing()
        ):
            raise RedisConnectionError(f"the connection was closed: {error}") from error


class _PatchedConnection:
    """Mixin for every kind of asynchronous connection."""

    _connecting: asyncio.Task[Any] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - redis-py's own signature
        super().__init__(*args, **options)
        self._connect_lock = asyncio.Lock()

    async def connect_check_health(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Connect once if two tasks ask at the same time.

        A task reads a subscription while another changes its channels. redis-py opens a socket for each task, but uses
        and closes only one of the two. No issue is filed for it. The patch can go when redis-py connects under a lock.
        """
        task = asyncio.current_task()
        if task is not None and self._connecting is task:  # a new connection subscribes, and that calls this method
            await super().connect_check_health(*args, **options)  # type: ignore[misc]
            return
        async with self._connect_lock:
            self._connecting = task
            try:
                await super().connect_check_health(*args, **options)  # type: ignore[misc]
            finally:
                self._connecting = None

    def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401
        """Pack a command in C; Python takes 0.7 µs per argument.

        redis-py#4176: asynchronous connections do not use hiredis for it. The patch can go when they do.
        """
        name = args[0]
        if isinstance(name, str) and " " in name:
            args = (*name.split(), *args[1:])
        large = [i for i, argument in enumerate(args) if type(argument) is bytes and len(argument) > _LARGE_BYTES]
        if not large:
            return [hiredis.pack_command(args)]
        pieces, start = [b"*%d\r\n" % len(args)], 0
        for i in large:
            pieces += (_pack_arguments(args[start:i]), b"$%d\r\n" % len(args[i]), args[i], b"\r\n")
            start = i + 1
        pieces.append(_pack_arguments(args[start:]))
        # asyncio of CPython 3.12 and later tries forever to send an empty last piece.
        return [piece for piece in pieces if piece]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: ANN401, FBT001, FBT002, ARG002
        """Send a command in `asyncio.timeout`.

        cpython#86296: `asyncio.wait_for`, in which redis-py sends, loses a cancellation that arrives before the send
        ends. The task would continue and could not be stopped. The patch can go with Python 3.11.
        """
        if not self.is_connected:  # type: ignore[attr-defined]
            await self.connect_check_health(check_health=False)
        try:
            async with asyncio.timeout(self.socket_timeout):  # type: ignore[attr-defined]
                await self._send_packed_command(command)
        except BaseException as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # nobody will read the reply
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from error
            if isinstance(error, OSError):
                raise RedisConnectionError(f"Error while writing to socket: {error}") from error
            raise

    async def _send_packed_command(self, command: Any) -> None:  # noqa: ANN401
        with _ClosedTransport(self._writer):  # type: ignore[attr-defined]
            await super()._send_packed_command(command)  # type: ignore[misc]

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        with _ClosedTransport(self._writer):  # type: ignore[attr-defined]
            return await super().read_response(*args, **options)  # type: ignore[misc]

    async def read_bytes(self) -> bytes:
        """Wait for bytes from the server, and return what has arrived, unparsed."""
        stream: asyncio.StreamReader = self._reader  # type: ignore[attr-defined]
        with _ClosedTransport(self._writer):  # type: ignore[attr-defined]
            found = await stream.read(1 << 16)
        if not found:
            raise RedisConnectionError("the server has closed the connection")
        return found

    async def read_bulk_string(self, max_bytes: int) -> bytes | None:
        """Read a reply that is one string; None if it is null.

        If the string is larger than `max_bytes`, the method returns b"" and leaves the string unread. The caller must
        then close the connection. redis-py reads a reply whole, and the server accepts strings of 512 MB. The method
        can go when redis-py has a limit.
        """
        stream: asyncio.StreamReader = self._reader  # type: ignore[attr-defined]
        try:
            with _ClosedTransport(self._writer):  # type: ignore[attr-defined]
                header = await stream.readuntil(b"\r\n")
                if header.startswith(b"-"):
                    raise ResponseError(header[1:-2].decode(errors="replace"))
                size = int(header[1:-2]) if header.startswith(b"$") else -1  # RESP3 has a null of its own
                if 0 <= size <= max_bytes:
                    return (await stream.readexactly(size + 2))[:-2]
        except asyncio.IncompleteReadError as error:
            raise RedisConnectionError("the server has closed the connection") from error
        return None if size < 0 else b""


PATCHED: Final[dict[type, type]] = {
    kind: type(f"Patched{kind.__name__}", (_PatchedConnection, kind), {})
    for kind in (Connection, SSLConnection, UnixDomainSocketConnection)
}
"""The patched class for each class of connection."""


class PatchedPool(ConnectionPool):
    """A pool without the statistics and retries of redis-py, which take longer than the rest of the pool's work."""

    async def get_connection(self, *_args: Any, **_options: Any) -> Any:  # noqa: ANN401 - redis-py's own signature
        connection: Any = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            if not connection.is_connected or await connection.can_read():
                await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:  # noqa: ANN401
        self._in_use_connections.remove(connection)
        if connection.should_reconnect():
            await connection.disconnect()
        self._available_connections.append(connection)


_FOLLOW_INTERVAL_S: Final = 1.0
"""Seconds between questions to a sentinel: an arbitrary number, less than a failover takes."""


class PrimaryConnection(_PatchedConnection, SentinelManagedConnection):
    """A connection to the primary that the sentinels name.

    Connecting fails if that server itself says that it is not a primary.

    redis-py#3560: redis-py checks with PING, which a demoted primary answers too. The patch can go when redis-py asks
    ROLE.
    """

    async def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE")
        role = (await self.read_response())[0]
        if role != b"master":
            raise RedisConnectionError(f"{self.host}:{self.port} is not a primary: its role is {role!r}")


class PrimaryTlsConnection(PrimaryConnection, SSLConnection):
    """The same with TLS."""


class PrimaryPool(PatchedPool, SentinelConnectionPool):
    """A pool that follows a failover, even if its connections to the old primary still work.

    redis-py#3874: redis-py asks the sentinels only when it connects. A replaced primary that is still alive keeps
    serving until the sentinels reconfigure it, some ten seconds later; then everything written meanwhile is lost. So
    the pool asks every second, and closes its connections when the primary is another one. If no sentinel answers, the
    connections stay. The patch can go when redis-py follows a failover while it is connected.
    """

    _follower: asyncio.Task[None] | None = None

    def __init__(self, service_name: str, sentinel_manager: Sentinel, **options: Any) -> None:  # noqa: ANN401
        super().__init__(service_name, sentinel_manager, **options)  # type: ignore[no-untyped-call]
        self._sentinels = tuple(sentinel_manager.sentinels)

    async def get_master_address(self) -> tuple[str, int]:
        """Ask the sentinels for the primary, and keep the list of sentinels complete.

        redis-py moves the sentinel that answers to the front. Two calls at the same time can overwrite another sentinel
        in its list: that sentinel would never be asked again, and its connection never closed.
        """
        address: tuple[str, int] = await super().get_master_address()  # type: ignore[no-untyped-call]
        known = self.sentinel_manager.sentinels
        known[:] = dict.fromkeys([*known, *self._sentinels])
        return address

    async def get_connection(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - redis-py's own signature
        if self._follower is None or self._follower.done():
            self._follower = asyncio.create_task(self._follow())
        return await super().get_connection(*args, **options)

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002
        """Close the connections; if the pool is closed for good, also those to the sentinels."""
        if inuse_connections and self._follower is not None:
            self._follower.cancel()
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self._sentinels:
                await sentinel.aclose()

    async def _follow(self) -> None:
        followed = None
        while True:
            await asyncio.sleep(_FOLLOW_INTERVAL_S)
            followed = followed or self.master_address
            with suppress(RedisError, OSError):
                primary = await self.get_master_address()
                if followed not in {None, primary}:
                    await super().disconnect()
                followed = primary
