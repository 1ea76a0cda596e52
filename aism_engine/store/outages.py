"""A name for every outage of Redis: what the errors of redis-py mean.

redis_error_codes.py names the error replies of a server, without redis-py.
"""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import AuthenticationError, InvalidResponse, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aism_engine.errors import ServerUnavailableError
from aism_engine.store.redis_error_codes import (
    NOT_REDIS,
    REPLY_OUTAGES,
    MissingScriptError,
    describe_connection_error,
    outage_of_reply,
)

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
    """Turn an error that means an outage into `ServerUnavailableError`, and NOSCRIPT into `MissingScriptError`.

    Other errors are raised unchanged.
    """
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
