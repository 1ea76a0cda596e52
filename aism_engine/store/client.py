"""Connections to Redis, one client per purpose.

No client retries. By default redis-py sends a command again when its reply is lost, and could push a message twice.
Only the writer sends a commit again: under the same id, and while this engine leads. All timeouts and retries are set
explicitly.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from aism_engine.redact import redacted
from aism_engine.server_url import parse_url
from aism_engine.settings import RedisSettings
from aism_engine.store.client_type import Client
from aism_engine.store.outages import naming_outages, outage_of
from aism_engine.store.redis_patches import PATCHED, PatchedPool, PrimaryConnection, PrimaryPool, PrimaryTlsConnection

_SEND_ITERATIONS: Final = 3
"""Iterations of the event loop that redis-py needs to send a request."""


class NamingRedis(Redis):
    """A client that names outages: its commands raise `ServerUnavailableError` while the server cannot serve."""

    is_blocking = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Send one command, and return its reply.

        The method of redis-py also retries and keeps statistics. Both together take a third of the time of a call, and
        we use neither.
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
        """Send commands in one pipeline, and return their replies. Raises the first error.

        With `raise_wrong_type` False, the error about a key of the wrong type is the reply instead.
        """
        pipeline = self.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        with naming_outages():
            # If redis-py raised the first error, its text would begin with the command instead of the error code.
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
