"""The type of a client, for annotations. It is in a module of its own, so that annotations do not import redis-py."""

from typing import Any, TypeAlias

Client: TypeAlias = Any
"""A `NamingRedis` or a `BlockingClient`.

The type is Any because redis-py annotates many replies as `bytes | str`, for clients with and without decoding. Our
clients do not decode: a text in a reply is always bytes.
"""
