"""The type of a client, for annotations: a module that needs only that does not import redis-py."""

from typing import Any, TypeAlias

Client: TypeAlias = Any
"""A `NamingRedis` or a `BlockingClient`. redis-py's annotations also describe its synchronous client: they mislead."""
