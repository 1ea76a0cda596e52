"""Connections to Redis: one client per purpose, and every outage by its name.

Nothing here retries on its own account. A commit whose reply was lost must be asked again by its writer, who knows its
id; a client that resent it in silence would apply it twice (redis-py does so by default). Every timeout, the protocol
and the retries are set explicitly.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias

import hiredis
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from aism_engine.errors import ServerUnavailableError
from aism_engine.redact import redacted
from aism_engine.settings import RedisSettings
from aism_engine.store.redis_error_codes import OUTAGES

Client: TypeAlias = Any
"""A `redis.asyncio.Redis`. Its annotations describe the synchronous client at the same time, and so say nothing that
can be relied on.
"""

_BY_CLASS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (MasterNotFoundError, "no_primary"),
    (BusyLoadingError, "loading"),
    (AuthenticationError, "noauth"),
    (NoPermissionError, "noperm"),
    (ReadOnlyError, "readonly"),
    (OutOfMemoryError, "oom"),
    (RedisTimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (ConnectionRefusedError, "refused"),
    (RedisConnectionError, "connection"),
    (OSError, "connection"),
)
OUTAGE_NAMES: Final = tuple(sorted({*OUTAGES.values(), *(name for _, name in _BY_CLASS)}))
_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -?([A-Z]+)\b")
_DENIED_IN_SCRIPT: Final = re.compile(
    r"(^|@user_script: ?\d+: )(ACL failure in script|The user executing the script can't)\b"
)


def outage_of(error: BaseException) -> str | None:
    """Name the state of the server that an error tells of; none where the error tells of nothing but a bug."""
    if isinstance(error, ResponseError):
        words = str(getattr(error, "status_code", None) or error).split(maxsplit=1)
        if words and (name := OUTAGES.get(words[0])):
            return name
        within = _IN_SCRIPT.search(str(error))  # before 7.0 the word stands behind the line of the script
        if within and (name := OUTAGES.get(within[1])):
            return name
        if _DENIED_IN_SCRIPT.search(str(error)):  # it comes with the word ERR, which tells nothing
            return "noperm"
    cause = error.__cause__ or error.__context__  # redis-py wraps what the socket, or the server, said
    if isinstance(cause, ConnectionRefusedError | TimeoutError | ReadOnlyError):
        error = cause
    return next((name for kind, name in _BY_CLASS if isinstance(error, kind)), None)


@contextmanager
def naming_outages() -> Iterator[None]:
    """Turn what a client raises while the server cannot serve into `ServerUnavailableError`; anything else passes."""
    try:
        yield
    except (RedisError, OSError) as error:
        outage = outage_of(error)
        if outage is None:
            raise
        raise ServerUnavailableError(outage, str(error)) from error
    except (AttributeError, TypeError) as error:
        # Some versions of asyncio raise these on a write to a peer that has closed: redis-py #4287.
        raise ServerUnavailableError("connection", f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        if not any(word in str(error) for word in ("closed", "already waiting")):
            raise
        # uvloop's word for the same: "unable to perform operation on <TCPTransport closed=True …>".
        raise ServerUnavailableError("connection", f"{type(error).__name__}: {error}") from error


class _Mended:
    """What redis-py's asynchronous connections lack."""

    _connecting: asyncio.Task[Any] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as redis-py has it
        super().__init__(*args, **options)
        self._turn = asyncio.Lock()

    async def connect_check_health(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Connect once, though two ask for it at the same time: a subscription is read by one and told by another.

        redis-py would open two sockets and forget one of them, open.
        """
        task = asyncio.current_task()
        if task is not None and self._connecting is task:  # it subscribes again while it connects
            await super().connect_check_health(*args, **options)  # type: ignore[misc]
            return
        async with self._turn:
            self._connecting = task
            try:
                await super().connect_check_health(*args, **options)  # type: ignore[misc]
            finally:
                self._connecting = None

    def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401
        """Pack in C: in Python it takes 0.7 µs an argument."""
        name = args[0]
        if isinstance(name, str) and " " in name:
            args = (*name.split(), *args[1:])
        return [hiredis.pack_command(args)]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: ANN401, FBT001, FBT002
        """Send, and hear of a cancellation in any case.

        redis-py sends under `asyncio.wait_for`, which before Python 3.12 forgets one that comes as the send ends: one
        in six was lost. Whoever was cancelled would go on, and never be stopped.
        """
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)  # type: ignore[misc]
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # a reply is on its way that nobody awaits
            raise asyncio.CancelledError


class _Connection(_Mended, Connection):
    pass


class _SSLConnection(_Mended, SSLConnection):
    pass


class _UnixConnection(_Mended, UnixDomainSocketConnection):
    pass


_CLASSES: Final[dict[type, type]] = {
    Connection: _Connection,
    SSLConnection: _SSLConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


_ASK_EVERY_S: Final = 1.0
"""Seconds between questions to a sentinel, an arbitrary number: a failover itself takes longer."""


class _SentinelConnection(_Mended, SentinelManagedConnection):
    """A connection to whom the sentinels call the primary, if it says so itself: a demoted one answers PING, too."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE")
        role = (await self.read_response())[0]
        if role != b"master":
            raise RedisConnectionError(f"{self.host}:{self.port} is no primary: its role is {role!r}")


class _SentinelPool(SentinelConnectionPool):
    """A pool that goes where its primary goes, without being sent away.

    An old primary that lives on after a failover serves as if nothing had happened, until the sentinels make a replica
    of it, some ten seconds later; then all that it was told meanwhile is gone. So the pool asks now and then who the
    primary is, and when it is another lets go of every connection. While no sentinel answers, all stays as it is.
    """

    _following: asyncio.Task[None] | None = None

    async def get_connection(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as redis-py has it
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow())
        return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002
        """Close its connections, and where it is for good those to the sentinels, too."""
        if inuse_connections and self._following is not None:
            self._following.cancel()
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()

    async def _follow(self) -> None:
        followed = None
        while True:
            await asyncio.sleep(_ASK_EVERY_S)
            followed = followed or self.master_address
            with suppress(RedisError, OSError):
                primary = await self.get_master_address()  # type: ignore[no-untyped-call]
                if followed not in {None, primary}:
                    await super().disconnect()
                followed = primary


def connect(settings: RedisSettings, purpose: str, *, timeout_s: float | None = None) -> Client:
    """Make a client for one purpose; `CLIENT LIST` shows it by that name, or by none. It connects when first used.

    With sentinels, the host and port of the URL do not count: each new connection goes to whom they call the primary.
    """
    bounds = {"socket_connect_timeout": settings.connect_timeout, "retry": Retry(NoBackoff(), 0)}
    options: dict[str, Any] = {
        **bounds,
        "protocol": settings.protocol,
        "socket_timeout": timeout_s or settings.socket_timeout,
        "socket_keepalive": True,
        "socket_read_size": 1 << 18,
        "health_check_interval": 0,
        "decode_responses": False,
        "client_name": f"aism-{purpose}" if purpose else None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    pool = ConnectionPool.from_url(settings.url, **options)
    if settings.sentinels:
        known = {name: value for name, value in pool.connection_kwargs.items() if name not in {"host", "port"}}
        addresses = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in settings.sentinels)]
        asking = {**bounds, "socket_timeout": settings.connect_timeout, "password": settings.sentinel_password or None}
        manager = Sentinel(addresses, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        known |= {"connection_class": _SentinelConnection}
        pool = _SentinelPool(settings.sentinel_master, manager, **known)  # type: ignore[no-untyped-call]
    else:
        pool.connection_class = _CLASSES[pool.connection_class]
    return Redis.from_pool(pool)  # which owns it: closing the client closes its connections


def connect_url(url: str, purpose: str, *, timeout_s: float | None = None) -> Client:
    """Make a client for one who knows nothing of the server but its URL, as agents do."""
    return connect(RedisSettings(url=url), purpose, timeout_s=timeout_s)


def where(settings: RedisSettings) -> str:
    """Name the server for people: its URL without the password, or who is asked for it."""
    if settings.sentinels:
        return f"{settings.sentinel_master} by {', '.join(settings.sentinels)}"
    return redacted(settings.url)
