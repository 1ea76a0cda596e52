"""Connections to Redis, one client per purpose, and a name for every outage.

No client retries. By default redis-py sends a command again when its reply is lost, and could push a message twice.
Only the writer sends a commit again: under the same id, and while this engine leads. All timeouts and retries are set
explicitly.
"""

import asyncio
import re
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, InvalidResponse, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from aism_engine.errors import ServerUnavailableError
from aism_engine.redact import redacted
from aism_engine.server_url import parse_url
from aism_engine.settings import RedisSettings
from aism_engine.store.client_type import Client
from aism_engine.store.redis_error_codes import (
    NOT_REDIS,
    REPLY_OUTAGES,
    MissingScriptError,
    describe_connection_error,
    outage_of_reply,
)
from aism_engine.store.redis_patches import PATCHED, PatchedPool, PrimaryConnection, PrimaryPool, PrimaryTlsConnection

_BY_CLASS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (MasterNotFoundError, "no_primary"),
    (AuthenticationError, "noauth"),
    (ssl.SSLEOFError, "connection"),
    (ssl.SSLError, "tls"),
    (RedisTimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (ConnectionRefusedError, "refused"),
    (RedisConnectionError, "connection"),
    (OSError, "connection"),
    (InvalidResponse, "not_redis"),
)
_ADDRESS: Final = re.compile(r"(?:connecting to|reading from) (\S*[:/]\S*?)\.?( |$)")
_SEND_ITERATIONS: Final = 3
"""Iterations of the event loop that redis-py needs to send a request."""
OUTAGE_NAMES: Final = tuple(sorted(REPLY_OUTAGES.union(name for _, name in _BY_CLASS)))


def outage_of(error: BaseException) -> str | None:
    """Return the name of the outage that an error means; None if it means a bug."""
    if isinstance(error, RedisError) and (name := outage_of_reply(str(error), error.status_code)):
        return name
    cause = error.__cause__ or error.__context__  # redis-py wraps the error of the socket or of the server
    if isinstance(cause, ConnectionRefusedError | TimeoutError | ReadOnlyError | ssl.SSLError):
        error = cause
    return next((name for kind, name in _BY_CLASS if isinstance(error, kind)), None)


@contextmanager
def naming_outages() -> Iterator[None]:
    """Turn the error of a connection into `ServerUnavailableError` if it means an outage; raise others unchanged."""
    try:
        yield
    except NoScriptError as error:
        raise MissingScriptError(str(error)) from error
    except (RedisError, OSError) as error:
        outage = outage_of(error)
        if outage is None:
            raise
        raise ServerUnavailableError(outage, _describe(error)) from error


def _describe(error: BaseException) -> str:
    """Describe an error by its cause and its address. Only the message of redis-py contains the address."""
    if isinstance(error, InvalidResponse):
        return NOT_REDIS
    cause = error.__cause__ or error.__context__
    if not isinstance(cause, OSError) or not (text := describe_connection_error(cause)):
        return str(error)
    address = _ADDRESS.search(str(error))
    return f"{address[1]}: {text}" if address else text


class NamingRedis(Redis):
    """A client that names outages: its commands raise `ServerUnavailableError` while the server cannot serve."""

    is_blocking = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Send one command, and return its reply.

        redis-py adds retries and statistics of its own to each call, which take a third of its time. We use neither.
        """
        with naming_outages():
            pool: Any = self.connection_pool
            connection = await pool.get_connection()
            try:
                await connection.send_command(*args)
                return await self.parse_response(connection, args[0], **options)
            finally:
                await pool.release(connection)

    async def execute_commands(self, commands: Iterable[Sequence[Any]], *, raise_wrong_type: bool = True) -> list[Any]:
        """Send commands at once, and return their replies. Raises the first error.

        With `raise_wrong_type` False, the error about a key of the wrong type is the reply instead.
        """
        pipeline = self.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        with naming_outages():
            # redis-py would raise the first error itself, with a text that begins with the command, not with its code.
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and (raise_wrong_type or outage_of(reply) != "wrong_type"):
                    raise reply
        return replies


async def until_sent() -> None:
    """Wait until redis-py has sent the first request of a task that was just created."""
    for _ in range(_SEND_ITERATIONS):
        await asyncio.sleep(0)


def connect(settings: RedisSettings, purpose: str, *, timeout_s: float | None = None) -> Client:
    """Make a client for one purpose; it connects when first used.

    `CLIENT LIST` shows the purpose. With sentinels, the host and port of the URL are ignored: each new connection goes
    to the primary that the sentinels name, and rediss:// applies to the sentinels as well.
    """
    server = parse_url(settings.url)
    tls = server.tls or {}
    limits = {"socket_connect_timeout": settings.connect_timeout, "retry": Retry(NoBackoff(), 0)}
    options: dict[str, Any] = {
        "db": server.database,
        "username": server.username or None,
        "password": server.password or None,
        **limits,
        **tls,
        "protocol": settings.protocol,
        "socket_timeout": timeout_s or settings.socket_timeout,
        "socket_read_size": 1 << 18,
        "health_check_interval": 0,
        "decode_responses": False,
        "client_name": f"aism-{purpose}" if purpose else None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if settings.sentinels:
        split = (address.rpartition(":") for address in settings.sentinels)
        addresses = [(host.strip("[]"), int(port)) for host, _, port in split]
        own = {**limits, "socket_timeout": settings.connect_timeout, "password": settings.sentinel_password or None}
        manager = Sentinel(addresses, sentinel_kwargs=own | tls | {"ssl": bool(tls)})  # type: ignore[no-untyped-call]
        options["connection_class"] = PrimaryTlsConnection if tls else PrimaryConnection
        pool: PatchedPool = PrimaryPool(settings.sentinel_master, manager, **options)
    elif server.path:
        pool = PatchedPool(PATCHED[UnixDomainSocketConnection], path=server.path, **options)
    else:
        kind = PATCHED[SSLConnection if tls else Connection]
        pool = PatchedPool(kind, host=server.host, port=server.port, **options)
    return NamingRedis.from_pool(pool)  # the client owns the pool: closing it closes the connections


def connect_url(url: str, purpose: str, *, timeout_s: float | None = None) -> Client:
    """Make a client from a URL alone. `timeout_s` replaces the default timeouts, that of connecting included."""
    if timeout_s is None:
        return connect(RedisSettings(url=url), purpose)
    return connect(RedisSettings(url=url, connect_timeout=timeout_s, socket_timeout=timeout_s), purpose)


def server_address(settings: RedisSettings) -> str:
    """Return the address of the server for people: its URL without the password, or its sentinels."""
    if settings.sentinels:
        return f"{settings.sentinel_master} (sentinels: {', '.join(settings.sentinels)})"
    return redacted(settings.url)
